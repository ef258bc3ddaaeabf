"""Export the trained model as a directory that transformers and vLLM load.

    dynarag export configs/quickstart.py --dtype bfloat16
    dynarag export configs/llama3_8b.py --checkpoint feedback

Writes model/ into RUN/export, and says how far it is from what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.adapters import save_adapters
from dynarag_jax.exchange.calibration import carry_calibration, read_calibration
from dynarag_jax.exchange.cards import PAGE, ModelCard, model_card
from dynarag_jax.exchange.convert import Convert, Differences, convert, export_live
from dynarag_jax.exchange.encoder_policies import (
    is_encoder_policy,
    policy_fingerprint,
    read_encoder_policy,
    save_encoder_policy,
)
from dynarag_jax.exchange.int8 import WEIGHTS
from dynarag_jax.exchange.onnx_policy import write_onnx
from dynarag_jax.exchange.python_package import PackageConfig, write_package
from dynarag_jax.files import read_json, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.manifests import differences as changes
from dynarag_jax.launch.manifests import plain
from dynarag_jax.processes import once
from dynarag_jax.stages.common.training import ABOUT, TITLE, models, start_stage
from dynarag_jax.training.checkpoints import Checkpoints
from dynarag_jax.training.config import Train
from dynarag_jax.training.exports import merged, restore_trained


@dataclass(frozen=True)
class Export:
    """Write the trained model as a directory that transformers and vLLM load."""

    model: str = "{run}/feedback/model"
    """a model directory or hub id"""
    checkpoint: str = ""
    """a training stage of this configuration, finished or not: export what its checkpoint holds,
    adapters merged and alone, instead of ``model``"""
    step: int = 0
    """which checkpoint; 0 is the newest"""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """type of the stored weights"""
    shard_bytes: int = 5_000_000_000
    """start a new file beyond this size"""
    check: bool = True
    """read the directory back and compare its tensors and logits with the source's"""
    onnx: tuple[Literal["float32", "int8"], ...] = ()
    """of an encoder policy: also write policy.onnx, policy.int8.onnx; its directory's weights are
    float32 always"""
    package: PackageConfig = PackageConfig()
    """of an encoder policy: also a Python package, to be built with ``pip wheel``"""


def run(context: Context, stage: Export) -> None:
    """Write ``model/`` in the export's type, read it back, and say how far it is off."""
    if not stage.checkpoint and is_encoder_policy(source := context.model(stage.model)):
        export_policy(context, stage, source)
        return
    model = _checkpoint(context, stage) if stage.checkpoint else _model(context, stage)
    target = context.stage_directory / "model"
    if model is None:
        context.log(f"{target}: {stage.dtype}; not checked, since check is off")
        return
    if context.primary:
        write_json(context.stage_directory / "differences.json", asdict(model))
    context.log(
        f"{target}: {stage.dtype}; checked: read back, its {len(model.tensors)} tensors are within "
        f"{max(model.tensors.values()):.2e} of the trained model's, and its logits for a fixed "
        f"random text, in float32, within {model.logits:.2e}"
    )


def export_policy(context: Context, stage: Export, source: Path) -> None:
    """Write an encoder policy as a cross-encoder's directory with its head, and as ONNX if asked.

    Raises:
      InputError: weights of another type are asked for, or ONNX cannot hold the policy.
    """
    beside = {"card": context.path(stage.package.card)} if stage.package.name else {}
    context.manifest(inputs={"model": source} | beside)
    directory = context.begin()
    target = directory / "model"
    stored = read_encoder_policy(source)
    page = source / PAGE
    manifest = {"seed": context.run.seed, "stages": context.made_by()}
    card = ModelCard(page.read_text(encoding="utf-8"), manifest) if page.is_file() else None
    save_encoder_policy(target, stored, card=card, overwrite=True)
    if context.primary and (calibration := carry_calibration(source, target)):
        context.log(f"{target}: {calibration}")
    for kind in stage.onnx:
        name = "policy.onnx" if kind == "float32" else "policy.int8.onnx"
        once(partial(write_onnx, source, target / name, int8=kind == "int8"))
        context.log(f"{target / name}: {(target / name).stat().st_size / 1e6:.1f} MB")
    if stage.package.name:
        place = directory / "package"
        once(partial(write_package, target, place, stage.package, beside["card"]))
        inside = place / stage.package.name / "model" / WEIGHTS
        context.log(
            f"{place}: weights of {inside.stat().st_size / 1e6:.1f} MB in int8; build it with: "
            f"pip wheel --no-deps {place}"
        )
    same = policy_fingerprint(source) == policy_fingerprint(target)
    context.log(f"{target}: float32; " + ("the same" if same else "other bytes") + " as trained")


def _model(context: Context, stage: Export) -> Differences | None:
    source = context.model(stage.model)
    context.manifest(inputs={"model": source})
    for name, asked in (("onnx", list(stage.onnx)), ("package.name", stage.package.name)):
        if asked:
            raise InputError(
                f"{name} = {asked} is of encoder policies, and {source} is a language model"
            )
    if (calibration := read_calibration(source)) is not None:
        context.log(f"{source}: {calibration}; kept, and dynarag_jax alone applies it")
    return convert(
        Convert(
            source=str(source),
            target=str(context.begin() / "model"),
            dtype=stage.dtype,
            shard_bytes=stage.shard_bytes,
            overwrite=True,
            check=stage.check,
            against_transformers=False,
            mesh=context.run.mesh,
        ),
        title=TITLE,
        about=ABOUT,
        manifest={"seed": context.run.seed, "stages": context.made_by()},
        style=context.run.prompts.style,
        thought_tokens=context.run.prompts.thought_tokens,
    )


def _checkpoint(context: Context, stage: Export) -> Differences | None:
    """Export what a training stage's checkpoint holds; adapters also by themselves."""
    name, training = stage.checkpoint, context.stages.get(stage.checkpoint)
    if not isinstance(training, Train):
        known = ", ".join(n for n, s in context.stages.items() if isinstance(s, Train)) or "none"
        raise InputError(f"checkpoint = {name!r} is no training stage; there are: {known}")
    folder = context.directory / name / "checkpoints"
    _require_same(context, name, training)
    checkpoints = Checkpoints(folder, read_only=True)
    step = stage.step or checkpoints.latest() or 0
    checkpoints.close()
    inputs = {"checkpoint": folder / str(step)} if step else {}
    context.manifest(inputs=inputs | models(context, training), unfinished=("checkpoint",))
    start = start_stage(context, training, weights=False)
    step, trained = restore_trained(start, context.training_mesh, folder, step)
    context.log(f"stage '{name}' at step {step}")
    directory = context.begin()
    how = training.prompts.style, training.prompts.thought_tokens
    manifest = {"step": step, "seed": context.run.seed, "stages": context.made_by()}
    if start.lora:
        save_adapters(
            directory / "adapters", start.cfg, start.lora, trained,
            base=start.init, overwrite=True,
            card=model_card(TITLE, ABOUT, "float32", manifest, start.init, *how),
        )  # fmt: skip
    return export_live(
        directory / "model",
        start.cfg,
        merged(start, trained),
        start.tokenizer,
        context.training_mesh,
        dtype=stage.dtype,
        shard_bytes=stage.shard_bytes,
        card=model_card(TITLE, ABOUT, stage.dtype, manifest, start.init, *how),
        source=start.init or None,
        check=stage.check,
    )


def _require_same(context: Context, name: str, training: Train) -> None:
    """Refuse to read a checkpoint by another configuration than the one that trained it.

    The shapes of arrays are checked later; a scale of adapters, say, has no shape.
    """
    record = context.directory / name / "run.json"
    if not record.is_file():
        raise InputError(f"{record.parent}: stage '{name}' has not run; there is no checkpoint")
    before: Mapping[str, Any] = read_json(record).get("config", {})
    if changed := changes({"config": before}, {"config": plain(training)}):
        raise InputError(
            f"{record.parent}: stage '{name}' was trained with another configuration "
            f"({'; '.join(changed[:3])}); export with the one it was trained with"
        )
