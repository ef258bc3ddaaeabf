"""The whole method, from a corpus to an exported model, in two processes as in one."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.hosts import ROOT, assert_alike, contents, ended, start
from tests.small_quickstart import STAGES, WORLD, needs_encoder

SMALL = [*WORLD, *STAGES]

FINGERPRINTS = ("policy", "reference", "sha256")
"""Of weights, which differ in the last digits."""

OF_THE_CLOCK = ("command", "seconds", "seconds_total", "peak_memory_bytes")
"""What a summary says about how the run was started, and what that cost."""


@pytest.mark.slow
@needs_encoder
def test_the_pipeline_in_two_processes_equals_that_in_one(tmp_path):
    config = str(ROOT / "configs" / "quickstart.py")
    for name, count in (("one", 1), ("two", 2)):
        more = ["--run.directory", str(tmp_path / name), "--run.cpu_devices", str(2 // count)]
        ended(start([config, *SMALL, *more], count))
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert {"rollout/rollouts.jsonl", "evaluate/predictions.jsonl"} <= two.keys()
    assert_alike(one, two, "run", FINGERPRINTS + OF_THE_CLOCK)
    weights = [
        load_file(tmp_path / name / "export" / "model" / "model.safetensors")
        for name in ("one", "two")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=1e-4)
