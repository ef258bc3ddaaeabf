"""The loop as a training stage runs it: its intervals, its profile, its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import jax

from dynarag_jax.training.bucketing import LengthBuckets
from dynarag_jax.training.checkpoints import Checkpoints
from dynarag_jax.training.config import Train
from dynarag_jax.training.loop import Trace, Watch, fit
from dynarag_jax.training.meter import Figures, Meter
from dynarag_jax.training.optimizer import learning_rate


class StepInput(Protocol):
    """A run's input: from a step's number its batches by stream, and the ids of their records."""

    buckets: LengthBuckets

    def __call__(self, step: int) -> tuple[Mapping[str, Any], list[str]]: ...


def fit_stage(
    stage: Train,
    state: Any,
    step: Callable[[Any, Mapping[str, Any]], tuple[Any, dict[str, jax.Array]]],
    data: StepInput,
    steps: int,
    checkpoints: Checkpoints,
    directory: Path,
    watch: Watch,
    meter: Meter | None = None,
) -> Any:
    """The state after ``steps``; figures get the learning rate, ``data`` is closed in the end.

    Raises:
      Stopped, NotFinite, InputError: as ``fit``.
    """
    rate = learning_rate(stage.optimizer, steps)

    def on_figures(number: int, values: Figures) -> None:
        watch.on_figures(number, values | {"learning_rate": float(rate(number - 1))})

    try:
        return fit(
            state,
            step,
            data,
            steps,
            checkpoints=checkpoints,
            every=stage.checkpoint_every,
            log_every=stage.log_every,
            meter=meter,
            trace=Trace(*stage.profile, directory / "profile") if any(stage.profile) else None,
            watch=replace(watch, on_figures=on_figures),
        )
    finally:
        data.buckets.close()
