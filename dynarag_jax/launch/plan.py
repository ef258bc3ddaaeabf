"""``--plan``: what a training stage will need, printed instead of running it.

    python -m train.sft configs/llama3_8b.py --init ORG/NAME --plan --plan.device h100 \
        --plan.devices 8

Of a model directory or hub id only config.json is read (and the tokenizer, where it lies beside
it); nothing is placed on a device.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.configs import config_from_hf
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import read_json
from dynarag_jax.hardware import Accelerator, accelerator, of_kind
from dynarag_jax.models import kernels
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.kernels import Platform
from dynarag_jax.policy.model import list_grammar
from dynarag_jax.sharding import mesh_sizes
from dynarag_jax.training.config import Train
from dynarag_jax.training.flops import PaddedShape
from dynarag_jax.training.plan import USABLE, MemoryPlan, plan

ID_TOKENS = 5
"""Tokens an id takes in a list, where no tokenizer says it: ``[12], `` in most vocabularies."""


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is for, beside the configuration."""

    device: str = ""
    """kind of accelerator (h100, v5p, ...); empty takes the one at hand"""
    devices: int = 0
    """how many; 0 takes those at hand"""
    mfu: float = 0.4
    """model FLOP utilization that the time is stated for"""

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise InputError(f"plan.mfu = {self.mfu} must lie in (0, 1]")


def print_plan(run: Run, stages: Mapping[str, Any], stage: Train, options: PlanOptions) -> None:
    """Print what one stage needs.

    Raises:
      InputError: the mesh does not fit the model or the devices, or the model is not found.
    """
    device, memory, peak, count, platform = _devices(options)
    sizes = mesh_sizes(run.mesh.data, run.mesh.fsdp, run.mesh.tensor, count)
    cfg, directory = _model(run, stages, stage)
    streams, notes = _streams(stages, stage, directory)
    shards = sizes[0] * sizes[1]
    for name, rows in streams.items():
        step = shards * stage.accumulate
        if rows.batch % step:
            below, above = rows.batch // step * step, -(-rows.batch // step) * step
            nearest = f"{below} or {above}" if below else f"{above}"
            raise InputError(
                f"{name}.batch = {rows.batch} does not divide over {shards} batch shards "
                f"(data x fsdp) in {stage.accumulate} microbatches; the nearest sizes are {nearest}"
            )
    choice = kernels.choose(cfg, platform)
    result = plan(
        cfg,
        list(streams.values()),
        sizes,
        stage.optimizer,
        stage.accumulate,
        stage.lora,
        choice.kernel != "plain",
    )
    shape = " x ".join(map(str, sizes))
    print(f"{count} x {device}, mesh data x fsdp x tensor = {shape}")
    for name, rows in streams.items():
        print(
            f"{name}: {rows.batch} rows a step in {stage.accumulate} microbatch(es), prompts of "
            f"{rows.prompt}, {rows.branches} branch(es) of {rows.branch} tokens"
        )
    print("\n".join([*notes, choice.reason]))
    print("\n".join(_lines(result, cfg, memory, peak, options.mfu)))


def _lines(p: MemoryPlan, cfg: DecoderConfig, memory: int, peak: float, mfu: float) -> list[str]:
    def row(name: str, size: int, note: str = "") -> str:
        return f"  {name:<22}{size / 2**30:10.2f} GiB  {note}".rstrip()

    lines = [
        f"{p.parameters:,} parameters, {p.trained:,} trained; weights {cfg.param_dtype}, "
        f"activations {cfg.dtype}, remat {cfg.remat}",
        "a device holds",
        row("weights", p.weights),
        row("gradients", p.gradients),
        row("optimizer", p.moments, "(in host memory)" if not p.moments and p.host else ""),
        row("activations kept", p.activations, "estimate"),
        row("activations at work", p.working, "estimate: a layer, or a chunk of scores"),
        row("in all", p.total),
    ]
    if p.host:
        lines.append(row("host memory", p.host, "a device's share"))
    lines.append(row("caches if sampled", p.cache, "the same prompts' keys and values"))
    if memory:
        usable = USABLE * memory
        verdict = "fits" if p.total <= usable else "DOES NOT FIT"
        lines.append(
            f"{verdict}: {p.total / usable:.0%} of the usable {usable / 2**30:.1f} GiB "
            f"({USABLE:.0%} of {memory / 2**30:.1f})"
        )
    work = p.work
    lines.append(
        f"{work.model:.3e} FLOPs a step"
        + (f", and {work.recomputed:.3e} recomputed" if work.recomputed else "")
    )
    if peak:
        lines.append(
            f"{p.seconds(peak, mfu):.3g} s a step at {mfu:.0%} of {peak / 1e12:.0f} TFLOP/s each"
        )
    return lines


def _devices(options: PlanOptions) -> tuple[str, int, float, int, Platform]:
    """Name, memory, peak, number and platform of the devices that are planned for."""
    known: Accelerator | None = None
    if options.device:
        known, name = accelerator(options.device), options.device
        count = options.devices or 1
        tpu = known.kinds[0].startswith("TPU")
        platform = Platform("tpu") if tpu else Platform("cuda", not name.startswith("a100"))
    else:
        # JAX may look at the devices, but must not take their memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        here = jax.devices()
        name, count = here[0].device_kind, options.devices or len(here)
        known, platform = of_kind(name), Platform.here()
    if known is None:
        return name, 0, 0.0, count, platform
    return name, known.memory, known.peak, count, platform


def _model(run: Run, stages: Mapping[str, Any], stage: Train) -> tuple[DecoderConfig, Path | None]:
    """The model's shape with this stage's numerics, and where a tokenizer may lie."""
    numerics = {
        name: getattr(stage.model, name)
        for name in ("dtype", "param_dtype", "remat", "attention", "unroll")
    }
    text = stage.init.replace("{run}", run.directory)
    if not text:
        directory = Path(stage.tokenizer.replace("{run}", run.directory))
        if not stage.tokenizer or not directory.exists():
            return stage.model, None
        vocab = -(-len(load_tokenizer(str(directory))) // 64) * 64
        return dataclasses.replace(stage.model, vocab=vocab), directory
    path = Path(text)
    if path.exists():
        config, directory = path / "config.json", path
        if not config.exists():
            raise InputError(f"{path}: no config.json; a plan needs it, and nothing else")
    elif maker := _maker(stage.init, stages):
        # What an earlier stage of this run will write has the shape that it begins with.
        cfg, directory = _model(run, stages, maker)
        return dataclasses.replace(cfg, **numerics), directory
    else:
        config, directory = _hub_config(text), None
    cfg = config_from_hf(read_json(config), str(config))
    return dataclasses.replace(cfg, **numerics), directory


def _maker(init: str, stages: Mapping[str, Any]) -> Train | None:
    parts = init.split("/")
    maker = stages.get(parts[1]) if parts[0] == "{run}" and len(parts) > 1 else None
    return maker if isinstance(maker, Train) else None


def _hub_config(name: str) -> Path:
    """The config.json of a hub id, and nothing else of it."""
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{name}: no such model directory")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # noqa: BLE001 - the hub's client raises errors of many classes
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: no such model directory, and the hub does not give its config.json "
            f"({type(error).__name__}: {reason})"
        ) from None


def _streams(
    stages: Mapping[str, Any], stage: Train, directory: Path | None
) -> tuple[dict[str, PaddedShape], list[str]]:
    """The shapes of the stage's batches, and what had to be assumed for them."""
    p, notes = stage.prompts, []
    longest = ID_TOKENS * min(p.max_list, p.ids) + 2
    try:
        tokenizer = load_tokenizer(str(directory)) if directory else None
    except InputError:
        tokenizer = None  # a directory of config.json alone
    if tokenizer is not None:
        longest = list_grammar(tokenizer, p)[0].longest(p.max_list)
    else:
        notes.append(f"no tokenizer at hand: a list of {p.max_list} ids taken as {longest} tokens")
    streams = {}
    for name, shape in stage.shapes(longest, _samples(stages, stage)).items():
        stream, active = shape.stream, shape.stream.objectives.active()
        if stream.batch and active:
            streams[name] = PaddedShape(
                stream.batch,
                stream.length or shape.prompt,
                shape.branches,
                shape.branch,
                "prompt_nll" in active,
            )
    if not streams:
        raise InputError("nothing to train on: every stream has batch 0 or no objective")
    return streams, notes


def _samples(stages: Mapping[str, Any], stage: Train) -> int:
    """Lists a question of the rollouts that a stage trains on; 8 where no stage here makes them."""
    parts = getattr(stage, "rollouts", "").split("/")
    maker = stages.get(parts[1]) if parts[0] == "{run}" and len(parts) > 1 else None
    return getattr(maker, "samples", 8)
