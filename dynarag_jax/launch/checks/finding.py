"""What a check looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.config import Run
from dynarag_jax.launch.plan import Devices


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
      level: "ok"; "note" for what one should know and is no mistake; "problem".
      stage: where; empty for the run.
      text: what, in one line, with the mend where it is a problem.
      sure: a problem that is certain to end the stage; others are estimates.
    """

    level: Literal["ok", "note", "problem"]
    stage: str
    text: str
    sure: bool = True


@dataclass(frozen=True)
class Subject:
    """A configuration that is checked.

    Attributes:
      stages: all of the run, in order, what they leave to the run filled in.
      names: the stages that findings are wanted of.
      devices: where it will run; None where that is not known.
      here: whether it will run on this machine, so that its disk is the one to ask.
      tokenizers: whether there is time to read some.
      alone: the stage runs without the ones before it: inputs that these make are its own affair.
    """

    run: Run
    stages: Mapping[str, Any]
    names: Collection[str] = field(default=())
    devices: Devices | None = None
    here: bool = True
    tokenizers: bool = False
    alone: bool = False

    def chosen(self) -> Iterator[tuple[str, Any]]:
        """The stages that findings are wanted of, if they are this library's."""
        for name, stage in self.stages.items():
            if (not self.names or name in self.names) and is_ours(stage):
                yield name, stage

    def place(self, text: str) -> Path:
        """A path of the configuration."""
        return Path(text.replace("{run}", self.run.directory))

    def maker(self, text: str) -> str:
        """The stage in whose directory a path of the configuration lies; empty for none."""
        parts = text.split("/")
        return (
            parts[1] if parts[0] == "{run}" and len(parts) > 1 and parts[1] in self.stages else ""
        )


def is_ours(stage: Any) -> bool:
    """Whether the meaning of a stage's fields is known here: its class, or one it is made of."""
    return any(kind.__module__.startswith("dynarag_jax.") for kind in type(stage).__mro__)


def kinds(stage: Any) -> set[str]:
    """Names of a stage's classes: its own, and those it is made of.

    By name, since stages are above this room and not imported here.
    """
    return {k.__name__ for k in type(stage).__mro__ if k.__module__.startswith("dynarag_jax.")}


def prompts_are_read(stage: Any) -> bool:
    """Whether a stage that has prompts writes any: labels need them for a reader's lists only."""
    return "Label" not in kinds(stage) or stage.source == "minimal"
