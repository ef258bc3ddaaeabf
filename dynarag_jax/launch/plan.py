"""``--plan``: what a training stage will need, printed instead of running it.

    python -m train.sft configs/llama3_8b.py --init ORG/NAME --plan --plan.device h100 \
        --plan.devices 8

Of a model directory or hub id only config.json is read (and the tokenizer, where it lies beside
it); nothing is placed on a device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from dynarag_jax.compilers.topologies import Topology, read_topology
from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.hardware import ALIASES, Accelerator, accelerator, of_kind
from dynarag_jax.launch.plan_compiled import compile_step, head_line, report_lines
from dynarag_jax.launch.plan_models import model_shape
from dynarag_jax.launch.start import start_jax
from dynarag_jax.models import kernels
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.kernels import Platform
from dynarag_jax.policy.model import list_grammar
from dynarag_jax.sharding import Sizes, described, mesh_sizes, padded_prompt, sequence_parts
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
    compile: str = ""
    """devices whose compiler is asked as well, such as v5p:4x4x4, v5e:16x16 (run.mesh.slices of
    them) or h100:2x8; they stand for device and devices"""
    card: str = ""
    """XLA's description of the GPU, a file, for the compilers of GPUs"""

    def __post_init__(self) -> None:
        if self.compile and (self.device or self.devices):
            raise InputError(
                f"plan.compile = '{self.compile}' names the devices: leave plan.device and "
                f"plan.devices away"
            )
        if not 0 < self.mfu <= 1:
            raise InputError(f"plan.mfu = {self.mfu} must lie in (0, 1]")


@dataclass(frozen=True)
class Devices:
    """The devices that a stage runs on, or is planned for.

    Attributes:
      name: their kind, as asked for or as JAX says it.
      count: how many.
      memory: bytes of one, as its maker or else the runtime states them; 0 where neither does.
      peak: operations a second of one; 0 where nobody has stated them.
    """

    name: str
    count: int
    memory: int
    peak: float
    platform: Platform


@dataclass(frozen=True)
class StagePlan:
    """A stage's plan, and what it was made for."""

    plan: MemoryPlan
    model: DecoderConfig
    sizes: Sizes
    streams: dict[str, PaddedShape]
    notes: list[str]


def print_plan(run: Run, stages: Mapping[str, Any], stage: Train, options: PlanOptions) -> None:
    """Print what one stage needs.

    Raises:
      InputError: the mesh does not fit the model or the devices, the model is not found, or the
        stage trains an encoder policy.
    """
    if stage.policy == "encoder":
        raise InputError("plans are of language models, and this stage trains an encoder policy")
    devices, topology = target_of(run, options)
    made = plan_stage(run, stages, stage, devices)
    _require_positions(made.model, made.streams, sequence_parts(made.sizes))
    print(f"{devices.count} x {devices.name}, mesh {described(made.sizes)}")
    for name, rows in made.streams.items():
        print(
            f"{name}: {rows.batch} rows a step in {stage.accumulate} microbatch(es), prompts of "
            f"{rows.prompt}, {rows.branches} branch(es) of {rows.branch} tokens"
        )
    print("\n".join(made.notes))
    print("\n".join(_lines(made.plan, made.model, devices.memory, devices.peak, options.mfu)))
    if topology is not None:
        print(f"compiling for {topology.name} ...", flush=True)
        report = compile_step(
            topology, options.card, stage, made.model, made.streams, made.sizes, made.plan
        )
        print(head_line(report, topology))
        print("\n".join(report_lines(report, topology, made.plan.total)))


def target_of(run: Run, options: PlanOptions) -> tuple[Devices, Topology | None]:
    """What a plan is for, and the topology whose compiler is asked, if one is.

    Raises:
      InputError: there is no such kind of device, or no such topology.
    """
    topology = read_topology(options.compile, run.mesh.slices) if options.compile else None
    if not options.device and topology is None:
        # Planning takes no memory, and training's number of devices.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        start_jax(run)
    kind, count = options.device, options.devices
    if topology is not None:
        kind, count = topology.kind, topology.devices
    return devices_of(kind, count), topology


def plan_stage(
    run: Run,
    stages: Mapping[str, Any],
    stage: Train,
    devices: Devices,
    fetch: bool = True,
    tokenizer: bool = True,
) -> StagePlan:
    """Plan one training stage of a run.

    Args:
      fetch: a hub model's config.json, where the hub's cache lacks it.
      tokenizer: read it, where there is one, to count a list's tokens.

    Raises:
      InputError: the mesh does not fit the model or the devices, or the model is not found.
      NotFetched: the model is the hub's, and ``fetch`` is off.
    """
    m = run.mesh
    sizes = mesh_sizes(m.data, m.fsdp, m.tensor, devices.count, m.sequence)
    parts = sequence_parts(sizes)
    cfg, directory = model_shape(run, stages, stage, fetch)
    streams, notes = _streams(stages, stage, directory if tokenizer else None)
    streams = {
        name: replace(rows, prompt=padded_prompt(rows.prompt, parts))
        for name, rows in streams.items()
    }
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
    choice = kernels.choose(cfg, devices.platform, parts)
    result = plan(
        cfg,
        list(streams.values()),
        sizes,
        stage.optimizer,
        stage.accumulate,
        stage.lora,
        choice.kernel,
    )
    return StagePlan(result, cfg, sizes, streams, [*notes, choice.reason])


def _require_positions(cfg: DecoderConfig, streams: Mapping[str, PaddedShape], parts: int) -> None:
    """Refuse to plan for prompts that the model has no positions for, as training refuses them."""
    limits = {"reranker": "prompts.rerank_tokens", "generator": "prompts.answer_prompt_tokens"}
    for name, rows in streams.items():
        if 0 < padded_prompt(cfg.positions, parts) < rows.prompt:
            raise InputError(
                f"{name}: prompts of {rows.prompt} tokens are more than the model's "
                f"{cfg.positions} positions (max_position_embeddings), and training refuses them; "
                f"lower {limits.get(name, f'{name}.length')}"
            )


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
    if p.sent:
        lines.append(
            f"{p.sent / 1e9:.3g} GB of keys and values that a device sends a step, over the "
            f"sequence axis"
        )
    lines.append(
        f"{work.model:.3e} FLOPs a step"
        + (f", and {work.recomputed:.3e} recomputed" if work.recomputed else "")
    )
    if peak:
        lines.append(
            f"{p.seconds(peak, mfu):.3g} s a step at {mfu:.0%} of {peak / 1e12:.0f} TFLOP/s each"
        )
    return lines


def devices_of(kind: str = "", count: int = 0) -> Devices:
    """Devices of a kind (``h100``); those at hand where it is empty.

    Args:
      count: 0 takes those at hand, or one of another kind.

    Raises:
      InputError: there is no such kind.
    """
    known: Accelerator | None = None
    if kind:
        known, name, count = accelerator(kind), ALIASES.get(kind, kind), count or 1
        tpu = known.kinds[0].startswith("TPU")
        platform = Platform("tpu") if tpu else Platform("cuda", not name.startswith("a100"))
    else:
        # JAX may look at the devices, but must not take their memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        here = jax.devices()
        name, count = here[0].device_kind, count or len(here)
        known, platform = of_kind(name), Platform.here()
    if known is None:
        # Where no maker's figure is known here, the runtime's own limit is.
        stats = {} if kind else jax.local_devices()[0].memory_stats() or {}
        return Devices(name, count, stats.get("bytes_limit", 0), 0.0, platform)
    return Devices(name, count, known.memory, known.peak, platform)


def _streams(
    stages: Mapping[str, Any], stage: Train, directory: Path | None
) -> tuple[dict[str, PaddedShape], list[str]]:
    """The shapes of the stage's batches, and what had to be assumed for them."""
    p, notes = stage.prompts, []
    longest = ID_TOKENS * min(p.max_list, p.ids) + 2 + p.thought_tokens
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
