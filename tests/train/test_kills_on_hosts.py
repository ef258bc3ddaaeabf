"""Two processes of one stage, one or both killed by SIGKILL: the files of a run in peace."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dynarag_jax.files import read_json
from tests.hosts import ROOT, ended, joined

from .test_kills import OF_THE_CLOCK

pytestmark = pytest.mark.slow

KILLS = 10
"""of each stage; the process that is killed is the first, the second or both, in turn"""

PROMPTS = """
--prompts.style compact --prompts.ids 4 --prompts.max_list 4 --prompts.rerank_tokens 120
--prompts.answer_prompt_tokens 120 --prompts.answer_tokens 4
""".split()
"""those that small.py's policy learns"""


def start(stage: str, directory: str, *more: str) -> list[subprocess.Popen[str]]:
    """A stage of small.py in two processes of one device each."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUM", "XLA_"))}
    keep |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"train.{stage}", "small.py", "--run.directory", directory]
    return [
        subprocess.Popen(
            [*command, *more], env=keep | own,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for own in joined(2)
    ]  # fmt: skip


def lines_of(paths: Sequence[Path]) -> int:
    """Whole lines that stand in files."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def starts_of(stage: Path) -> int:
    """How often a stage has begun."""
    return len(read_json(stage / "run.json")["starts"]) if (stage / "run.json").exists() else 0


def kill(
    processes: Sequence[subprocess.Popen[str]],
    which: Sequence[int],
    reached: Callable[[], bool],
    delay: float,
    moment: int,
) -> None:
    """SIGKILL ``delay`` seconds after a moment is reached; the others end by themselves."""
    try:
        until = time.monotonic() + 1200  # a machine may be busy
        while not reached() and time.monotonic() < until:
            if any(process.poll() is not None for process in processes):
                break  # said below
            time.sleep(0.002)
        time.sleep(delay)
        for number in which:
            processes[number].kill()
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert all(codes[number] == -signal.SIGKILL for number in which), (moment, codes, said)
    # Who is left alone does not end as if the work were done.
    assert 0 not in codes, (moment, codes, said)


def killed_and_ended(
    stage: str, directory: str, stands: Callable[[], int], most: int, *more: str
) -> None:
    """Kill ``KILLS`` times, each later in the course of the work, and run to the end."""
    rng, place = random.Random(stage), Path(directory) / stage
    moments = sorted(rng.randrange(1, most) for _ in range(KILLS))
    for number, moment in enumerate(moments):
        which, before = ((0,), (1,), (0, 1))[number % 3], starts_of(place)

        def reached(moment: int = moment, before: int = before) -> bool:
            # Not before they have met: who waits for another to come waits for minutes.
            return starts_of(place) > before and stands() >= moment

        kill(start(stage, directory, *more), which, reached, rng.uniform(0, 0.1), moment)
    ended(start(stage, directory, *more))
    assert starts_of(place) == KILLS + 1


def without_clock(path: Path) -> list[dict]:
    """The lines of metrics, without what they say of the machine."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in lines]


def test_training_and_sampling_are_killed_ten_times_each_and_end_as_in_peace(sft_place):
    steps = 300
    straight, killed = (sft_place / "runs" / name for name in ("straight", "killed"))
    ended(start("sft", "runs/straight", "--steps", str(steps)))

    metrics = killed / "sft" / "metrics.jsonl"
    stands = lambda: lines_of([metrics]) if metrics.exists() else 0  # noqa: E731
    killed_and_ended("sft", "runs/killed", stands, steps - 20, "--steps", str(steps))
    one, other = (root / "sft" for root in (straight, killed))
    weights = [(root / "model" / "model.safetensors").read_bytes() for root in (one, other)]
    assert weights[0] == weights[1]
    assert without_clock(one / "metrics.jsonl") == without_clock(other / "metrics.jsonl")
    kept = [sorted(p.name for p in (root / "checkpoints").iterdir()) for root in (one, other)]
    assert kept[0] == kept[1]

    # Few at a time, so that there are many moments between the first line and the last.
    more = ["--model", "runs/straight/sft/model", "--questions", "train.jsonl", "--samples", "4"]
    more += ["--batch", "2", *PROMPTS]
    ended(start("rollout", "runs/straight", *more))
    parts = killed / "rollout"
    stands = lambda: lines_of(list(parts.glob("rollouts*.jsonl")))  # noqa: E731
    killed_and_ended("rollout", "runs/killed", stands, 34, *more)
    one, other = (root / "rollout" for root in (straight, killed))
    assert (one / "rollouts.jsonl").read_bytes() == (other / "rollouts.jsonl").read_bytes()
    assert lines_of([one / "rollouts.jsonl"]) == 40
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
