"""The training loop: input ahead of the device, metrics, checkpoints, exact continuation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.policy.batches import Batch
from dynarag_jax.training.checkpoints import Checkpoints, Mean
from dynarag_jax.training.meter import Figures, Meter, means
from dynarag_jax.training.prefetch import prefetch
from dynarag_jax.training.step import State

SHOWN = 16
"""record ids named in a message at most"""

AHEAD = 2
"""updates handed to the devices beyond the one they work on; simulated devices share one pool of
threads, and with many updates in it their collectives wait for each other for ever"""


class NotFinite(InputError):
    """The loss or a gradient became NaN or infinite."""


class Stopped(Exception):
    """The run was asked to stop; ``step`` is saved, and the same command continues from it."""

    def __init__(self, step: int):
        where = f"after step {step}, which is saved" if step else "before the first step"
        super().__init__(f"stopped {where}")
        self.step = step


@dataclass(frozen=True)
class Trace:
    """Steps to look into with JAX's profiler; ``first`` and ``last`` are traced, too."""

    first: int
    last: int
    directory: Path


@dataclass(frozen=True)
class Watch:
    """Who hears of a training while it runs, and may stop it; what is left out does nothing.

    Attributes:
      log: gets a line of text.
      on_begin: gets the number of steps made before, and of all steps.
      on_figures: gets a step's number and the means of the figures since the last call.
      on_step: called for every step when the devices have made it.
      on_ready: called before ``on_step`` with the number of steps made and a function that gives
        the figures of a late step, and waits for them: of the first step made, of that one.
      stop: asked after every step, with the number of steps made; True saves and stops. Of several
        processes, all must get the same answer.
    """

    log: Callable[[str], None] = lambda text: None
    on_begin: Callable[[int, int], None] = lambda first, steps: None
    on_figures: Callable[[int, Figures], None] = lambda step, figures: None
    on_step: Callable[[], None] = lambda: None
    on_ready: Callable[[int, Callable[[], Figures]], None] = lambda step, latest: None
    stop: Callable[[int], bool] = lambda step: False


SILENT = Watch()


def fit(
    state: State,
    step: Callable[[State, Mapping[str, Batch]], tuple[State, dict[str, jax.Array]]],
    make: Callable[[int], tuple[Mapping[str, Batch], list[str]]],
    steps: int,
    *,
    checkpoints: Checkpoints | None = None,
    every: int = 0,
    log_every: int = 10,
    meter: Meter | None = None,
    trace: Trace | None = None,
    watch: Watch = SILENT,
) -> State:
    """Train from ``state.step`` to ``steps``.

    Args:
      make: from a step number to its batches and the ids of their records; called ahead of time
        in a thread. It must depend on the step number alone, so that a restored state continues
        with the very input it would have seen.
      every: steps between checkpoints; 0 saves only at the end.
      log_every: steps between calls of ``watch.on_figures``, which also get ``seconds`` per step,
        ``waiting``, the share of it spent waiting for input, and what ``meter`` adds.
      trace: steps that the profiler records.

    Raises:
      NotFinite: names the step, the batch's record ids and the last checkpoint.
      Stopped: ``watch.stop`` said so.
      InputError: no figure has the name by which the best checkpoint is chosen.
    """
    first = int(state.step)
    watch.on_begin(first, steps)
    if first < steps and watch.stop(first):
        raise Stopped(first)
    meter = meter or Meter()
    tracer = _Tracer(trace)
    pending: list[dict[str, jax.Array]] = []
    ids: list[list[str]] = []
    mean = checkpoints.mean_at(first) if checkpoints else Mean()
    counted = first

    def count_to(step: int) -> None:
        """Tell of every step that the devices have made by now."""
        nonlocal counted
        while counted < step:
            counted += 1
            watch.on_step()

    began, waited, clock = time.perf_counter(), 0.0, time.perf_counter()
    try:
        for number, (batches, names) in prefetch(make, first, steps):
            waited += time.perf_counter() - clock
            done = number + 1
            tracer.before(done)
            state, figures = step(state, batches)
            meter.add(batches)
            pending.append(figures)
            jax.block_until_ready(pending[-1 - AHEAD : -AHEAD])
            ids.append(names)
            tracer.after(done, state)
            ready = pending[max(len(pending) - 1 - AHEAD, 0)]
            watch.on_ready(done, lambda ready=ready: {k: float(v) for k, v in ready.items()})
            count_to(done - AHEAD)
            stopping = done < steps and watch.stop(done)
            scheduled = every > 0 and done % every == 0
            save = checkpoints is not None and (scheduled or stopping or done == steps)
            if done % log_every == 0 or done == steps or save or stopping:
                values = [{k: float(v) for k, v in f.items()} for f in jax.device_get(pending)]
                count_to(done)
                kept = _finite(values, done - len(values), ids, checkpoints, watch.log)
                now = time.perf_counter()
                if checkpoints is not None and checkpoints.best and kept:
                    mean = _add(mean, kept, checkpoints.best.figure)
                line = means(kept)
                if "skipped" in values[0]:
                    line["skipped"] = sum(v["skipped"] for v in values)
                line["seconds"] = (now - began) / len(values)
                line["waiting"] = waited / max(now - began, 1e-9)
                watch.on_figures(done, meter.read(line, len(values), now - began))
                pending, ids, began, waited = [], [], now, 0.0
            if save and checkpoints is not None:
                complete = scheduled or done == steps
                checkpoints.save(state, mean, complete)
                mean = Mean() if complete else mean
            if stopping:
                raise Stopped(done)
            clock = time.perf_counter()
    finally:
        tracer.close()
        if checkpoints is not None:
            checkpoints.wait()
    return state


def _add(mean: Mean, values: Sequence[Figures], name: str) -> Mean:
    if name not in values[0]:
        raise InputError(
            f"best = '{name}' is no figure of this run{nearest(name, values[0])}: "
            f"{', '.join(values[0])}"
        )
    return Mean(mean.total + sum(v[name] for v in values), mean.count + len(values))


def _finite(
    values: list[Figures],
    before: int,
    ids: list[list[str]],
    checkpoints: Checkpoints | None,
    log: Callable[[str], None],
) -> list[Figures]:
    """The figures of the steps that were made; those skipped are named in the log."""
    kept = []
    for offset, figures in enumerate(values):
        number = before + offset + 1
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        records = ", ".join(ids[offset][:SHOWN]) + (", ..." if len(ids[offset]) > SHOWN else "")
        if figures.get("skipped"):
            what = f"{bad[0]} is {figures[bad[0]]}" if bad else "an update is not finite"
            log(f"step {number} is skipped: {what}; records {records}")
        elif bad:
            saved = checkpoints.latest() if checkpoints else None
            last = f"the last good checkpoint is step {saved}" if saved else "nothing was saved yet"
            raise NotFinite(
                f"step {number}: {bad[0]} is {figures[bad[0]]}; records {records}; {last}; "
                f"lower the learning rate, look at these records, or set nonfinite to 'skip'"
            )
        else:
            kept.append(figures)
    return kept


class _Tracer:
    """Starts and stops the profiler around the steps of a ``Trace``."""

    def __init__(self, trace: Trace | None):
        self._trace, self._on = trace, False

    def before(self, step: int) -> None:
        if self._trace and self._trace.first <= step <= self._trace.last and not self._on:
            jax.profiler.start_trace(str(self._trace.directory))
            self._on = True

    def after(self, step: int, state: Any) -> None:
        if self._trace and self._on and step == self._trace.last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
