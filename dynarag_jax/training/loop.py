"""The training loop: input ahead of the device, metrics, checkpoints, exact continuation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.training.batches import Batch, prefetch
from dynarag_jax.training.checkpoints import Checkpoints
from dynarag_jax.training.step import State

Figures = dict[str, float]


class NotFinite(InputError):
    """The loss or a gradient became NaN or infinite."""


def fit(
    state: State,
    step: Callable[[State, Mapping[str, Batch]], tuple[State, dict[str, jax.Array]]],
    make: Callable[[int], tuple[Mapping[str, Batch], list[str]]],
    steps: int,
    *,
    checkpoints: Checkpoints | None = None,
    every: int = 0,
    log_every: int = 10,
    on_figures: Callable[[int, Figures], None] = lambda step, figures: None,
    on_step: Callable[[], None] = lambda: None,
) -> State:
    """Train from ``state.step`` to ``steps``.

    Args:
      make: from a step number to its batches and the ids of their records; called ahead of time
        in a thread. It must depend on the step number alone, so that a restored state continues
        with the very input it would have seen.
      every: steps between checkpoints; 0 saves only at the end.
      log_every: steps between calls of ``on_figures(step, means since the last call)``, which also
        get ``seconds`` per step and ``waiting``, the share of it spent waiting for input.

    Raises:
      NotFinite: names the step, the batch's record ids and the last checkpoint.
    """
    pending: list[dict[str, jax.Array]] = []
    first = int(state.step)
    began, waited, clock = time.perf_counter(), 0.0, time.perf_counter()
    ids: list[list[str]] = []
    for number, (batches, names) in prefetch(make, first, steps):
        waited += time.perf_counter() - clock
        state, figures = step(state, batches)
        pending.append(figures)
        ids.append(names)
        done = number + 1
        on_step()
        save = checkpoints is not None and every > 0 and done % every == 0 and done < steps
        if done % log_every == 0 or done == steps or save:
            values = [{k: float(v) for k, v in f.items()} for f in jax.device_get(pending)]
            _require_finite(values, done - len(values), ids, checkpoints)
            now = time.perf_counter()
            means = {k: float(np.mean([v[k] for v in values])) for k in values[0]}
            means["seconds"] = (now - began) / len(values)
            means["waiting"] = waited / max(now - began, 1e-9)
            on_figures(done, means)
            pending, ids, began, waited = [], [], now, 0.0
        if save and checkpoints is not None:
            checkpoints.save(state)
        clock = time.perf_counter()
    if checkpoints is not None and steps > first:
        checkpoints.save(state)
        checkpoints.wait()
    return state


def _require_finite(
    values: list[Figures], before: int, ids: list[list[str]], checkpoints: Checkpoints | None
) -> None:
    for offset, figures in enumerate(values):
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            saved = checkpoints.latest() if checkpoints else None
            last = f"the last good checkpoint is step {saved}" if saved else "nothing was saved yet"
            raise NotFinite(
                f"step {before + offset + 1}: {bad[0]} is {figures[bad[0]]}; records "
                f"{', '.join(ids[offset][:8])}{', ...' if len(ids[offset]) > 8 else ''}; {last}; "
                f"lower the learning rate or look at these records"
            )
