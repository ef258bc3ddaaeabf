"""Whether training fits the devices and the disk, by the plan."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.hub import gguf_file
from dynarag_jax.launch.checks.finding import Finding, Subject
from dynarag_jax.launch.plan import StagePlan, plan_stage
from dynarag_jax.launch.plan_models import NotFetched, is_hub_id, is_packed
from dynarag_jax.retrieval.index.memory import machine_memory
from dynarag_jax.training.config import Train
from dynarag_jax.training.plan import USABLE, plan

_GIB = 2**30


def check_memory(subject: Subject) -> list[Finding]:
    """Plan every training stage on the devices."""
    findings = []
    for name, stage in _training(subject):
        try:
            made = _planned(subject, stage)
        except NotFetched:
            continue
        except InputError as error:
            findings.append(Finding("problem", name, str(error)))
            continue
        if made is not None:
            findings.append(_fits(subject, name, made))
    return findings


def _training(subject: Subject) -> list[tuple[str, Train]]:
    """The stages that are planned for: an encoder policy's are small, and no plan knows them."""
    chosen = [(name, stage) for name, stage in subject.chosen() if isinstance(stage, Train)]
    return [(name, stage) for name, stage in chosen if stage.policy == "decoder"]


def _planned(subject: Subject, stage: Train) -> StagePlan | None:
    """The stage's plan; None where its model is missing, which the check of paths says."""
    if subject.devices is None:
        return None
    if not _known(subject, stage):
        return None
    devices, tokenizers = subject.devices, subject.tokenizers
    return plan_stage(subject.run, subject.stages, stage, devices, False, tokenizers)


def _known(subject: Subject, stage: Train) -> bool:
    """Whether the shape of a stage's model can be read."""
    if is_packed(text := str(subject.place(stage.init))):
        try:
            gguf_file(text)
        except InputError:
            return False  # the check of paths says that it is not installed
        return True
    path, maker = subject.place(stage.init), subject.stages.get(subject.maker(stage.init))
    if not stage.init or path.exists():
        return not stage.init or (path / "config.json").is_file()
    if isinstance(maker, Train):
        return maker is not stage and _known(subject, maker)
    return is_hub_id(stage.init)


def _fits(subject: Subject, name: str, made: StagePlan) -> Finding:
    devices, p = subject.devices, made.plan
    assert devices is not None
    # What is computed may be estimated too high, and a machine's memory may be freed; arrays that
    # stay, on a device whose memory is known, are certain.
    certain = bool(devices.memory) and p.weights + p.moments > devices.memory
    if devices.memory:
        memory, where = devices.memory, f"one of {devices.count} x {devices.name}"
        usable = int(USABLE * memory)
    elif devices.platform.name == "cpu":
        # Devices that are simulated share the machine's memory.
        memory = usable = (machine_memory() or 0) // devices.count
        where = "this machine"
    else:
        memory = usable = 0
        where = devices.name
    text = f"{p.total / _GIB:.3g} GiB a device by the plan"
    if not memory:
        return Finding("ok", name, f"{text}; memory of {where} is not known")
    text += f", {p.total / usable:.0%} of what {where} has to give ({usable / _GIB:.3g} GiB)"
    if p.total <= usable:
        return Finding("ok", name, text)
    mend = (
        "more devices on run.mesh.fsdp, model.remat = 'full', more 'accumulate', "
        "optimizer.offload, or lora.rank = 16"
    )
    return Finding("problem", name, f"does not fit: {text}; take {mend}", sure=certain)


def check_disk(subject: Subject) -> list[Finding]:
    """Compare what training stages will write with what the disk has left."""
    needed, largest = 0, 0
    for name, stage in _training(subject):
        try:
            one = _bytes(subject, stage)
        except InputError:
            continue
        kept = stage.keep + (stage.keep_best if stage.best else 0)
        # A checkpoint is written before the oldest is removed; the model follows.
        whole = one[0] * (kept + 1) + one[1]
        standing = _size(subject.place("{run}") / name)
        needed += max(whole - standing, 0)
        largest = max(largest, one[0] - standing)
    if not needed:
        return []
    text = f"checkpoints and models take {needed / _GIB:.3g} GiB of disk"
    if not subject.here:
        return [Finding("ok", "", text)]
    folder = subject.place("{run}").absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text += f", and {folder} has {free / _GIB:.3g} free"
    if needed <= free:
        return [Finding("ok", "", text)]
    mend = "fewer checkpoints ('keep'), or another run.directory"
    return [Finding("problem", "", f"{text}; {mend}", sure=largest > free)]


def _bytes(subject: Subject, stage: Train) -> tuple[int, int]:
    """Bytes of a checkpoint and of the model that a stage writes in the end.

    Raises:
      InputError: the stage cannot be planned.
    """
    made = _planned(subject, stage)
    if made is None:
        raise InputError("not known")
    whole = plan(
        made.model,
        list(made.streams.values()),
        (1, 1, 1),
        dataclasses.replace(stage.optimizer, offload=False),
        stage.accumulate,
        stage.lora,
    )
    stored = jnp.dtype(made.model.param_dtype).itemsize
    trained = whole.trained * (4 if stage.lora.rank else stored)
    return trained + whole.moments, whole.parameters * stored


def _size(directory: Path) -> int:
    size = 0
    for root, _, files in os.walk(directory):
        for file in files:
            try:
                size += (Path(root) / file).lstat().st_size
            except OSError:
                continue  # gone meanwhile
    return size
