"""A program, its stages and a config file, as a user would write them."""

from __future__ import annotations

import importlib
import sys

import pytest

STAGES = '''
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Pace:
    """How the counting goes."""

    rate: float = 0.5
    """numbers a second"""
    order: Literal["up", "down"] = "up"

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate = {self.rate} must be positive")


@dataclass(frozen=True)
class Count:
    """Count the words of a file."""

    source: str = "words.txt"
    """the file to read"""
    steps: int = 3
    """how far to count"""
    learning_rate: float = 0.1
    loud: bool = False
    tops: tuple[int, ...] = (1, 2)
    names: dict[str, str] = field(default_factory=lambda: {"behavior cloning": "a"})
    pace: Pace = Pace()
    other: Pace | None = None


@dataclass(frozen=True)
class Report:
    """Say what was counted."""

    counted: str = "{run}/count/counted.txt"
'''

PROGRAM = """
import os
import time

from counting import Count
from train.program import Context, main


def run(context: Context, stage: Count) -> None:
    source = context.path(stage.source)
    context.manifest(inputs={"words": source})
    output = context.stage_directory / "counted.txt"
    words = source.read_text().split()
    with output.open("a") as lines, context.progress(None) as bar:
        first = output.read_text().count("\\n")
        context.truncate_metrics(first)
        bar.start_at(first, stage.steps)
        for step in range(first, stage.steps):
            lines.write(f"{step} {words[step % len(words)]}\\n")
            lines.flush()
            context.metrics(step + 1, value=step * stage.pace.rate)
            bar.update(1, word=words[step % len(words)])
            if step + 1 == int(os.environ.get("PAUSE_AT", "-1")):
                print("paused", flush=True)
                time.sleep(300)


if __name__ == "__main__":
    main("count", Count, run)
"""

CONFIG = """
from counting import Count, Pace, Report
from dynarag_jax.config import Run

run = Run(directory="runs/a", compilation_cache="off")
stages = {
    "count": Count(steps=4),
    "report": Report(),
    "again": Count(steps=2, source="{run}/count/counted.txt"),
}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a program, its stages and a config file, and work going on there."""
    (tmp_path / "counting.py").write_text(STAGES)
    (tmp_path / "count.py").write_text(PROGRAM)
    (tmp_path / "good.py").write_text(CONFIG)
    (tmp_path / "words.txt").write_text("one two three\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    return tmp_path


@pytest.fixture
def counting(place):
    """The module of the stages' classes."""
    return importlib.import_module("counting")
