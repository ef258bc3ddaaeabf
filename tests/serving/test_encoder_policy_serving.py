"""An encoder policy behind Reranker: its lists, and why each passage is on them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import jax
import numpy as np
import pytest

import dynarag_jax
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoder_policies import read_encoder_policy, save_encoder_policy
from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.list_head import ListHeadConfig, list_head_table
from dynarag_jax.records import Passage, Question

QUERY = "where is port 7?"


@pytest.fixture(scope="module")
def policy(cross_encoder, tmp_path_factory):
    cfg = ListHeadConfig(width=8, layers=1, steps=1, heads=2, mlp=12, vectors=24)
    rng = np.random.default_rng(0)

    def one(p):
        start = 1.0 if p.scale is None else 0.0
        return np.float32(start + rng.normal(size=p.shape) * ((p.scale or 0) + 0.3))

    head = jax.tree.map(one, list_head_table(cfg), is_leaf=is_parameter)
    stored = replace(
        read_encoder_policy(cross_encoder), head=cfg, head_params=head,
        settings={"pieces": 32, "max_list": 2},
    )  # fmt: skip
    place = tmp_path_factory.mktemp("policy") / "model"
    save_encoder_policy(place, stored)
    return place


@pytest.fixture(scope="module")
def reranker(policy, one_device):
    return dynarag_jax.Reranker(policy, devices=one_device)


def documents(n, seed=0):
    rng = np.random.default_rng(seed)
    return [f"port {rng.integers(10)} lies on the river {rng.integers(10)}" for _ in range(n)]


def question_of(n):
    texts = documents(n)
    return Question(QUERY, QUERY, passages=tuple(Passage(str(i), t) for i, t in enumerate(texts)))


def test_a_directory_of_an_encoder_policy_is_served_as_one(reranker):
    assert reranker.policy.kind == "encoder policy"
    ranked = reranker.rank(QUERY, documents(4))
    found = [one["corpus_id"] for one in ranked]
    (own,) = reranker.policy.rank_lists([question_of(4)])
    assert found == [i - 1 for i in own.chosen]
    assert own.shown == 4
    assert own.calls == 1
    assert own.tokens > 0


def test_explained_lists_are_the_enumerated_distribution(reranker):
    question = question_of(3)
    lists = [p for k in range(3) for p in itertools.permutations((1, 2, 3), k)]
    whole = {one: reranker.policy.explain(question, one) for one in lists}
    assert math.fsum(math.exp(one.logp) for one in whole.values()) == pytest.approx(1, abs=1e-5)
    for chosen, one in whole.items():
        assert one.chosen == chosen
        # As long as lists may be, it stops by itself.
        assert len(one.steps) == min(len(chosen) + 1, 2)
        for place, step in enumerate(one.steps):
            assert set(step.logps) == {0, 1, 2, 3} - set(chosen[:place])
            assert math.fsum(map(math.exp, step.logps.values())) == pytest.approx(1, abs=1e-5)
    own = reranker.policy.explain(question)
    (ranked,) = reranker.policy.rank_lists([question])
    assert own.chosen == ranked.chosen
    with pytest.raises(InputError, match="outside 1"):
        reranker.policy.explain(question, (4,))
    with pytest.raises(InputError, match="more than max_list = 2"):
        reranker.policy.explain(question, (1, 2, 3))


def test_the_same_directory_is_a_scorer_if_asked(policy, one_device):
    scorer = dynarag_jax.Reranker(policy, devices=one_device, kind="scorer")
    assert scorer.policy.kind == "cross-encoder"
