"""Two processes: each reads its rows, both are one run, both stop and both fail together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hosts import ROOT, joined


def start(name: str, count: int, *more: str) -> list[subprocess.Popen[str]]:
    """The small SFT stage on ``count`` processes, two devices in all."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUM", "XLA_"))}
    keep |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "train.sft", "small.py", "--run.directory", f"runs/{name}"]
    command += ["--run.cpu_devices", str(2 // count), *more]
    return [
        subprocess.Popen(command, env=keep | own, stderr=subprocess.PIPE, text=True)
        for own in joined(count)
    ]


def finish(processes: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    try:
        said = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(processes), said
    return said


def metrics(place: Path, name: str) -> list[dict]:
    path = place / "runs" / name / "sft" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together(sft_place):
    finish(start("one", 1, "--steps", "40"))
    one = metrics(sft_place, "one")

    processes = start("two", 2, "--steps", "40")
    until = time.monotonic() + 300
    while len(metrics(sft_place, "two")) < 7 and time.monotonic() < until:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.002)
    # A notice to one of them stops both, after the same step.
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, 143)
    (step,) = {int(n) for n in re.findall(r"stopped after step (\d+), which is saved", said[0])}
    assert len(metrics(sft_place, "two")) == step < 40
    said = finish(start("two", 2, "--steps", "40"))
    assert f"continuing at step {step} of 40" in said[0]

    two = metrics(sft_place, "two")
    assert [line["step"] for line in two] == [line["step"] for line in one] == list(range(1, 41))
    for ours, theirs in zip(two, one, strict=True):
        for name in ("loss", "reranker/nll", "generator/nll", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), (ours["step"], name)
        for name in ("reranker/padding", "generator/padding", "reranker/dropped_passages"):
            assert ours[name] == theirs[name]


FAILING = """
import sys
from dynarag_jax import processes
from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch import exit_codes, start

which = sys.argv[1]


def work():
    start.start_jax(Run(directory="."))
    processes.wait("both are here")
    if which == "both" or processes.index() == int(which):
        raise InputError("q.jsonl:7: no such field")
    for turn in range(10**9):
        processes.wait(f"turn {turn}")


sys.exit(exit_codes.guard(work))
"""


@pytest.mark.slow  # one waits for the other a while
@pytest.mark.parametrize("which", ["0", "1", "both"])
def test_a_process_that_fails_ends_the_others_with_its_reason(which):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING, which],
            env=os.environ | own | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in joined(2)
    ]
    said = finish(both, 2)
    for i, text in enumerate(said):
        assert "Traceback" not in text
        if which in ("both", str(i)):
            assert "error: q.jsonl:7: no such field\n" in text
        else:
            assert f"error: stopped, since process {which} failed: q.jsonl:7: no such field" in text
