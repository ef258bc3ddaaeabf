"""A pipeline in two processes, of which one or both are killed; it ends as if nothing was."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from dynarag_jax.files import read_json
from dynarag_jax.launch.options import load_config
from tests.hosts import ROOT, assert_alike, contents, ended, start
from tests.small_quickstart import STAGES, WORLD, needs_encoder

from .test_pipeline_on_hosts import FINGERPRINTS, OF_THE_CLOCK

CONFIG = str(ROOT / "configs" / "quickstart.py")
SMALL = [CONFIG, *WORLD, *STAGES, "--run.cpu_devices", "1"]
KILLS = 20


def starts(run: Path, stage: str) -> int:
    """How often a stage has begun."""
    record = run / stage / "run.json"
    return len(read_json(record)["starts"]) if record.is_file() else 0


def kill_in(run: Path, stage: str, delay: float, which: list[int]) -> list[int]:
    """Start the pipeline, and kill some of its two processes so long after a stage has begun.

    Returns:
      The exit codes: that of a process that was not killed is its own.
    """
    before = starts(run, stage)
    processes = start([*SMALL, "--run.directory", str(run)], 2)
    try:
        until = time.monotonic() + 900
        while starts(run, stage) == before and time.monotonic() < until:
            if any(process.poll() is not None for process in processes):
                break
            time.sleep(0.01)
        time.sleep(delay)
        for one in which:
            processes[one].kill()
        for process in processes:
            process.communicate(timeout=300)
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes]


@pytest.mark.slow
@needs_encoder
def test_killed_twenty_times_in_two_processes_the_run_ends_as_if_nothing_was(tmp_path):
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    ended(start([*SMALL, "--run.directory", str(straight)], 2))
    order = [name for name in load_config(CONFIG)[1] if (straight / name / "done.json").is_file()]
    seconds = {name: read_json(straight / name / "done.json")["seconds"] for name in order}
    rng, hit = random.Random(0), dict.fromkeys(order, 0)
    kills = 0
    while kills < KILLS:
        left = [name for name in order if not (disturbed / name / "done.json").is_file()]
        if not left:
            # All is done: the last stages once more.
            for name in order[len(order) // 2 :]:
                shutil.rmtree(disturbed / name)
            continue
        which = rng.choice([[0], [1], [0, 1]])
        # Later, the oftener it was killed: a machine may be slower by now.
        delay = rng.uniform(0, 1.2) * seconds[left[0]] * (1 + hit[left[0]] / 2)
        codes = kill_in(disturbed, left[0], delay, which)
        if codes == [0, 0]:
            continue  # it was faster
        kills += 1
        hit[left[0]] += 1
        # Whoever is left ends by itself, and not as if all were well.
        assert all(codes[one] == -signal.SIGKILL for one in which if codes[one])
        assert all(codes), (left[0], which, codes)
    assert sum(map(bool, hit.values())) > len(order) / 2, hit
    ended(start([*SMALL, "--run.directory", str(disturbed)], 2))
    ignored = FINGERPRINTS + OF_THE_CLOCK
    assert_alike(contents(straight), contents(disturbed), "run", ignored)
