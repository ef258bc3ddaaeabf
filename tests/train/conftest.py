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
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import main
from dynarag_jax.processes import wait


def run(context: Context, stage: Count) -> None:
    source = context.path(stage.source)
    context.manifest(inputs={"words": source})
    output = context.begin() / "counted.txt"
    words = source.read_text().split()
    with output.open("a") as lines, context.progress(None) as bar:
        first = output.read_text().count("\\n")
        wait("all have read")
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
    main(run)
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


SFT = """
from dynarag_jax.config import Run
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.training.config import Contexts
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.config import Stream
from dynarag_jax.training.optimizer import OptimizerConfig

run = Run(directory="runs/a", cpu_devices=1)
stages = {
    "sft": Sft(
        tokenizer="tokenizer",
        questions="train.jsonl",
        prompts=PromptConfig(
            style="compact", ids=4, max_list=4, rerank_tokens=120, answer_prompt_tokens=120,
            answer_tokens=4,
        ),
        model=DecoderConfig(
            width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=16, positions=256
        ),
        reranker=Stream(batch=4),
        generator=Stream(batch=4),
        contexts=Contexts(random=0.5),
        optimizer=OptimizerConfig(learning_rate=0.01),
        shuffled=0.5,
        lengths=2,
        steps=60,
        checkpoint_every=4,
        log_every=1,
    )
}
"""


@pytest.fixture
def sft_place(tmp_path, monkeypatch):
    """A directory with a small SFT stage: questions of every length, a tokenizer, a config file."""
    import random

    from dynarag_jax.exchange.tokenizers import train_word_level
    from dynarag_jax.prompts import COMPACT_WORDS
    from dynarag_jax.records import Passage, Question, write_questions

    rng = random.Random(0)
    words = [f"w{i}" for i in range(40)]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    questions = [
        Question(
            f"q{i}",
            text(2, 5),
            answers=(text(1, 2),),
            passages=tuple(Passage(f"q{i}p{j}", text(1, 20)) for j in range(rng.randint(1, 4))),
            expert=(1,) if i % 3 else (),
        )
        for i in range(40)
    ]
    write_questions(tmp_path / "train.jsonl", questions)
    train_word_level([*words, *COMPACT_WORDS], tmp_path / "tokenizer", 4)
    (tmp_path / "small.py").write_text(SFT)
    monkeypatch.chdir(tmp_path)
    return tmp_path
