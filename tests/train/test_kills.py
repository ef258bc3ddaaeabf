"""Training that is killed or told to stop: the same bytes in the end, and every step once."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OF_THE_CLOCK = {"time", "seconds", "waiting", "tokens_per_second", "host_memory_gib"}
"""what a line of metrics says about this machine and hour"""


class Job:
    """The small SFT stage in a run directory of its own, started as a user starts it."""

    def __init__(self, place: Path, name: str, steps: int):
        self.stage = place / "runs" / name / "sft"
        self.command = [sys.executable, "-m", "train.sft", "small.py"]
        self.command += ["--steps", str(steps), "--run.directory", f"runs/{name}"]
        self.steps = steps

    def start(self) -> subprocess.Popen[str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUM", "XLA_"))}
        quick = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(self.command, env=keep | quick, stderr=subprocess.PIPE, text=True)

    def finish(self) -> str:
        """Run to the end, and say what was said."""
        process = self.start()
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        return said

    def reported(self) -> int:
        """Steps that stand in the metrics."""
        path = self.stage / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def stop(self, kind: signal.Signals, step: int, delay: float) -> tuple[int, str]:
        """Start, and send a signal ``delay`` seconds after ``step`` was reported: (code, words)."""
        process = self.start()
        try:
            until = time.monotonic() + 300
            while self.reported() < step and process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(delay)
            process.send_signal(kind)
            _, said = process.communicate(timeout=300)
        finally:
            process.kill()
        return process.returncode, said

    def metrics(self) -> list[dict]:
        lines = (self.stage / "metrics.jsonl").read_text().splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if k not in OF_THE_CLOCK} for line in lines
        ]

    def weights(self) -> bytes:
        return (self.stage / "model" / "model.safetensors").read_bytes()

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.stage / "checkpoints").iterdir())


def assert_same(job: Job, straight: Job) -> None:
    """Weights, moments (by the gradients and losses they led to) and data are the same."""
    assert job.weights() == straight.weights()
    assert [line["step"] for line in job.metrics()] == list(range(1, job.steps + 1))
    assert job.metrics() == straight.metrics()
    # Nothing half written is left behind.
    assert job.checkpoints() == straight.checkpoints() == [str(job.steps - 4), str(job.steps)]


def test_stopped_by_sigterm_then_killed_the_run_ends_as_if_nothing_was(sft_place):
    straight = Job(sft_place, "straight", 40)
    straight.finish()
    job = Job(sft_place, "stopped", 40)
    # A signal finds the run between steps or in one: the step is finished, and saved.
    code, said = job.stop(signal.SIGTERM, 6, 0.0)
    assert code == 143, said
    assert said.splitlines()[-1] == "stopped; run the same command again to continue"
    found = re.search(r"stopped after step (\d+), which is saved", said)
    assert found, said
    step = int(found[1])
    assert 6 <= step < 40 and str(step) in job.checkpoints()
    assert job.metrics()[-1]["step"] == step
    code, said = job.stop(signal.SIGKILL, step + 7, 0.01)
    assert code == -signal.SIGKILL, said
    # It went on where it was stopped, not where the last regular checkpoint lay.
    assert f"continuing at step {step} of 40" in said
    job.finish()
    assert_same(job, straight)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_the_run_ends_as_if_nothing_was(sft_place):
    steps, kills = 800, 20
    straight = Job(sft_place, "straight", steps)
    straight.finish()
    rng = random.Random(0)
    # In the course of the run, and a moment later: within a step, a save, or the writing of the
    # model. Every fifth comes by the clock alone, so that starts are hit as well.
    moments = sorted(rng.randrange(steps) for _ in range(kills))
    job = Job(sft_place, "killed", steps)
    for number, moment in enumerate(moments):
        clock = number % 5 == 4
        code, said = job.stop(
            signal.SIGKILL, 0 if clock else moment, rng.uniform(0, 8 if clock else 0.1)
        )
        assert code == -signal.SIGKILL, f"kill {number} at {moment}: {said}"
    job.finish()
    assert_same(job, straight)
