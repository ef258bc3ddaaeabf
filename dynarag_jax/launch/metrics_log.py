"""A stage's figures over its steps: metrics.jsonl, and the trackers that a run asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.files import JsonlAppender, read_jsonl, write_jsonl
from dynarag_jax.launch.trackers import Tracker, trackers


class MetricsLog:
    """Appends one line of figures a step; each step stands once, also after a kill."""

    def __init__(self, run: Run, stage: str, directory: Path, config: Mapping[str, Any]):
        self._run, self._stage, self._directory, self._config = run, stage, directory, config
        self._path = directory / "metrics.jsonl"
        self._lines: JsonlAppender | None = None
        self._trackers: list[Tracker] | None = None

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
          InputError: a figure is NaN or infinite.
        """
        line = {"stage": self._stage, "step": int(step), "time": round(time.time(), 3)}
        for name, value in figures.items():
            if isinstance(value, np.ndarray | np.generic | jax.Array):
                value = value.item()
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(
                    f"stage '{self._stage}': {name} is {value} at step {step}, and nothing that "
                    f"follows can be trusted; a smaller learning rate or other data may help"
                )
            line[name] = value
        if self._lines is None:
            self._lines = JsonlAppender(self._path, key=_step)
        self._lines.append(line)
        numbers = {k: v for k, v in line.items() if k in figures and _is_number(v)}
        for tracker in self._open_trackers(0):
            tracker.write(line["step"], numbers)

    def truncate(self, step: int) -> None:
        """Forget what was reported after ``step``: a stage that continues reports it again."""
        self.close()
        # Opening cuts off an unfinished last line, the trace of a kill.
        JsonlAppender(self._path, key=_step).close()
        lines = [line for _, line in read_jsonl(self._path)]
        kept = [line for line in lines if line.get("step", 0) <= step]
        if len(kept) < len(lines):
            write_jsonl(self._path, kept)
        self._open_trackers(step)

    def close(self) -> None:
        """Close the file and the trackers; the next line opens them again."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        for tracker in self._trackers or ():
            tracker.close()
        self._trackers = None

    def _open_trackers(self, first: int) -> list[Tracker]:
        if self._trackers is None:
            self._trackers = trackers(self._run, self._directory, self._config, first)
        return self._trackers


def _step(line: Mapping[str, Any]) -> str:
    return str(line.get("step"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
