"""Where metrics go beside metrics.jsonl: TensorBoard and Weights & Biases, where asked for."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dynarag_jax.config import Run
from dynarag_jax.errors import MissingExtra


class Tracker(Protocol):
    """Takes the figures of a step."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``directory``; what an earlier start wrote from ``first`` on is hidden."""

    def __init__(self, directory: Path, first: int):
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise MissingExtra("tensorboard", "watch", "run.tensorboard") from None
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory))
        if first:
            # Readers drop what older files say of steps from here on: a kill may have repeated it.
            log = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=first + 1, session_log=log))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one step."""
        values = [self._summary.Value(tag=k, simple_value=v) for k, v in figures.items()]
        self._writer.add_event(
            self._event(step=step, wall_time=time.time(), summary=self._summary(value=values))
        )
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project; a stage that continues goes on in the same one."""

    def __init__(self, project: str, directory: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise MissingExtra("wandb", "watch", "run.wandb") from None
        # The same for every start of this stage, and no other's.
        identity = hashlib.sha256(f"{directory.absolute()}/{dict(config)}".encode()).hexdigest()
        self._run = wandb.init(
            project=project,
            dir=str(directory),
            name=f"{directory.parent.name}/{directory.name}",
            id=identity[:16],
            resume="allow",
            config=dict(config),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one step; what the project has of a step already stays."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def trackers(run: Run, directory: Path, config: Mapping[str, Any], first: int = 0) -> list[Tracker]:
    """What a run's configuration asks for, for a stage that begins after step ``first``.

    Raises:
      MissingExtra: it asks for a package that is not installed.
    """
    chosen: list[Tracker] = []
    if run.tensorboard:
        chosen.append(TensorBoard(directory / "tensorboard", first))
    if run.wandb:
        chosen.append(WeightsAndBiases(run.wandb, directory, config))
    return chosen
