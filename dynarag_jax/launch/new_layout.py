"""How a config of one's own is laid out on the machine: the first layout and pace that fit."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.config import inherit
from dynarag_jax.errors import InputError
from dynarag_jax.hardware import measured_rate
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.launch.new_config import Data, Layout, Lengths, Pace, config_text, top_ks
from dynarag_jax.launch.plan import Devices, plan_stage
from dynarag_jax.retrieval.index.memory import machine_memory
from dynarag_jax.training.config import Train
from dynarag_jax.training.plan import USABLE

FREE = 0.5
"""share of the memory that a machine has free now that is taken: others want some in an hour"""

PATIENCE = 30 * 60.0
"""seconds that a first run may take on a CPU, by the estimate"""

PACES = (Pace(), Pace(10, 4, 10, 32, 4, 24, 6), Pace(10, 2, 10, 16, 4, 16, 4))
"""Of first runs, the one to prefer first."""
FEWER_CANDIDATES = (
    Pace(5, 4, 10, 24, 4, 24, 4),
    Pace(5, 2, 10, 16, 4, 16, 4),
    Pace(5, 2, 6, 10, 4, 10, 3),
    Pace(3, 2, 6, 8, 4, 8, 2),
)
"""Where these take too long, and candidates are searched for."""
FEWER_QUESTIONS = (Pace(10, 2, 6, 10, 4, 10, 3), Pace(10, 2, 4, 8, 4, 8, 2))
"""Where these take too long, and all candidates are given."""


@dataclass(frozen=True)
class Sized:
    """A config file's text, and how long its first run will take; 0 where nobody knows."""

    text: str
    seconds: float = 0.0


def paces(small: bool, given: bool, devices: Devices) -> list[Pace | None]:
    """The paces to try: of a first run, or None for all questions.

    Args:
      given: the questions bring their candidates, which all are shown.
    """
    if not small:
        return [None]
    if devices.platform.name != "cpu":
        return [PACES[0]]
    return [*PACES, *(FEWER_QUESTIONS if given else FEWER_CANDIDATES)]


def first_that_suits(
    at: Callable[[Pace | None], tuple[Data, Sized]], tried: Sequence[Pace | None]
) -> tuple[Pace | None, tuple[Data, Sized]]:
    """The first pace that fits the memory and the patience; else the last that fits the memory.

    Raises:
      InputError: none fits the memory.
    """
    found, wrong = None, InputError("no pace to try")
    for pace in tried:
        try:
            found = pace, at(pace)
        except InputError as error:
            wrong = error
            continue
        if found[1][1].seconds <= PATIENCE:
            break
    if found is None:
        raise wrong
    return found


def sized(
    name: str, model: str, data: Data, lengths: Lengths, pace: Pace | None, devices: Devices
) -> Sized:
    """The first layout that fits; whole weights before adapters, and little recomputed.

    Raises:
      InputError: none does.
    """
    accelerated = devices.platform.name != "cpu"
    where = f"{devices.count} x {devices.name}"
    if not accelerated:
        where = f"{devices.count} device(s) of a CPU"
    memory = USABLE * devices.memory
    if not accelerated:
        memory = FREE * (machine_memory() or 0) / devices.count
    if not memory:
        raise InputError(f"memory of {where} is not known; --devices KIND:N sizes it for a kind")
    fewest, wrong = float("inf"), None

    for layout in layouts(where, devices, data, accelerated, pace):
        text = config_text(name, model, data, lengths, layout, pace)
        try:
            needed, works = _needed(text, devices)
        except InputError as error:  # a mesh that does not divide the model's arrays
            wrong = error
            continue
        if needed > memory:
            fewest = min(fewest, needed)
        elif accelerated or pace is None:
            return Sized(text)
        else:
            return Sized(text, operations(works, layout.batch, data, pace) / measured_rate())
    if wrong is not None and fewest == float("inf"):
        raise wrong
    raise InputError(
        f"{model}: training takes {fewest / 2**30:.3g} GiB a device at the least, and "
        f"{where} have {memory / 2**30:.3g} each; take more or larger ones (--devices says which)"
    )


def layouts(
    where: str, devices: Devices, data: Data, accelerated: bool, pace: Pace | None
) -> Iterator[Layout]:
    """Layouts of training, the ones to prefer first."""
    n = devices.count
    wanted = pace.batch if pace else 32 if accelerated else 4
    batch = _up(min(wanted, max(data.count, 1)), n)
    meshes = ["Mesh()"]
    if n > 1:
        # Devices that are simulated share one memory: whole copies in it are of no use.
        meshes.insert(1 if accelerated else 0, "Mesh(data=1, fsdp=-1)")
    remats = ("none", "dots", "full") if accelerated else ("none", "full")
    steps = [a for a in (1, 2, 4, 8, 16, 32) if batch % (a * n) == 0]
    for lora in (False, True):
        # What is copied by fewer hands is simpler; recomputing costs more than microbatches.
        for mesh, remat, accumulate in itertools.product(meshes, remats, steps):
            yield Layout(where, lora, batch, accumulate, remat, mesh, accelerated, n > 8)


def operations(works: list[float], batch: int, data: Data, pace: Pace) -> float:
    """About how many operations a first run takes.

    Args:
      works: of a step of each training stage, prompts as long as they may be.
    """
    training = sum(work * pace.steps / 2**i for i, work in enumerate(works))
    # A step goes forward and back, three times a forward pass, over prompts for lists and answers.
    prompt = works[0] / (3 * 2 * batch)
    if not data.answered:
        return training + prompt * data.count
    fixed = len(top_ks(data.candidates)) + 2
    # Of each list an answer, and how likely the right one is.
    prompts = min(pace.limit, data.count) * (1 + 2 * pace.samples)
    prompts += min(pace.evaluated, data.evaluated) * (2 * 2 + fixed)
    prompts += pace.examples * (1 + pace.samples)
    return training + prompt * prompts


def _needed(text: str, devices: Devices) -> tuple[float, list[float]]:
    """Bytes of a device in the config's largest training stage, and operations of each one's step,
    by the plan."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "sized.py"
        file.write_text(text)
        run, stages = read_config(file)
    filled = {name: inherit(run, stage) for name, stage in stages.items()}
    plans = [
        plan_stage(run, filled, stage, devices, tokenizer=False).plan
        for stage in filled.values()
        if isinstance(stage, Train)
    ]
    return max(one.total for one in plans), [one.work.model for one in plans]


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
