"""Preference over all samples of a prompt: against enumeration, DPO, rax and formulas."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.objectives.preference import dpo_sigmoid
from dynarag_jax.objectives.ranked import lipo_lambda, plackett_luce

ALL = np.ones((1, 4), bool)


def test_plackett_luce_gives_the_probabilities_of_all_rankings():
    scores = np.array([0.3, -1.2, 2.0, 0.4], np.float32)
    total = 0.0
    for order in itertools.permutations(range(4)):
        rewards = np.zeros(4, np.float32)
        rewards[list(order)] = [4, 3, 2, 1]
        left, expected = list(range(4)), 0.0
        for i in order:
            expected -= scores[i] - math.log(sum(math.exp(scores[j]) for j in left))
            left.remove(i)
        loss = float(plackett_luce(scores[None], rewards[None], where=ALL)[0])
        assert loss == pytest.approx(expected, abs=1e-5)
        total += math.exp(-loss)
    assert total == pytest.approx(1, abs=1e-5)


def test_two_branches_are_dpo():
    rng = np.random.default_rng(0)
    w, l, rw, rl = (rng.normal(size=5).astype(np.float32) for _ in range(4))  # noqa: E741
    pair = dpo_sigmoid(w, l, rw, rl, 0.7)
    scores = jnp.stack([pair.chosen_reward, pair.rejected_reward], -1)
    rewards = np.tile(np.float32([1, 0]), (5, 1))
    where = np.ones((5, 2), bool)
    np.testing.assert_allclose(
        plackett_luce(scores, rewards, where=where), pair.loss, rtol=1e-5, atol=1e-6
    )
    # LiPO's single pair weighs the gain 2^1 - 2^0 times the discount of its two places.
    weight = 1 / math.log(2) - 1 / math.log(3)
    np.testing.assert_allclose(
        lipo_lambda(scores, rewards, where=where), weight * pair.loss, rtol=1e-5, atol=1e-6
    )
    # A policy that is the reference has all implicit rewards 0.
    even = plackett_luce(jnp.zeros((1, 2)), rewards[:1], where=where[:1])
    assert float(even[0]) == np.float32(np.log(2))


def test_branches_of_equal_reward_stand_beside_each_other():
    scores = np.float32([[0.5, -0.3, 1.0, 2.0]])
    rewards = np.float32([[1, 1, 0.5, 0.5]])
    e = np.exp(scores[0].astype(np.float64))
    # Both good ones are drawn from all four; the others were preferred to nothing.
    expected = -np.log(e[0] / e.sum()) - np.log(e[1] / e.sum())
    assert plackett_luce(scores, rewards, where=ALL)[0] == pytest.approx(expected, rel=1e-5)
    for loss in (plackett_luce, lipo_lambda):
        value, gradient = jax.value_and_grad(
            lambda s, loss=loss: loss(s, 0 * rewards, where=ALL).sum()
        )(jnp.asarray(scores))
        assert value == 0
        assert not np.asarray(gradient).any()


def test_lipo_equals_its_formula_and_raxs_lambda_weights():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(3, 6)).astype(np.float32)
    rewards = rng.choice([0, 0.25, 0.5, 1], (3, 6)).astype(np.float32)
    where = np.ones((3, 6), bool)
    value = lipo_lambda(scores, rewards, where=where)
    for row in range(3):
        s, psi = scores[row].astype(np.float64), rewards[row]
        rank = {i: 1 + sum(s > s[i]) for i in range(6)}
        expected = sum(
            abs(2.0 ** psi[i] - 2.0 ** psi[j])
            * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            * math.log1p(math.exp(s[j] - s[i]))
            for i in range(6) for j in range(6) if psi[i] > psi[j]
        )  # fmt: skip
        assert value[row] == pytest.approx(expected, rel=1e-5)
    theirs = rax.pairwise_logistic_loss(
        jnp.asarray(scores), jnp.asarray(rewards), where=where, reduce_fn=None,
        lambdaweight_fn=rax.dcg_lambdaweight,
    )  # fmt: skip
    # rax takes the logarithm to base 2, and multiplies by the length of the list.
    np.testing.assert_allclose(value, theirs.sum(-1) / 6 / math.log(2), rtol=1e-5)


@pytest.mark.parametrize("loss", [jax.jit(plackett_luce), jax.jit(lipo_lambda)], ids=["pl", "lipo"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_masked_branches_and_the_order_of_branches_change_nothing(loss, data):
    finite = st.floats(-30, 30, width=32)
    scores = np.float32([data.draw(st.lists(finite, min_size=5, max_size=5))])
    rewards = np.float32(
        [data.draw(st.lists(st.sampled_from([0, 0.5, 1.0]), min_size=5, max_size=5))]
    )
    where = np.array([data.draw(st.lists(st.booleans(), min_size=5, max_size=5))])
    # Ranks of equal scores depend on the order of branches; a weighted tie is no error.
    scores += np.float32([[0, 1e-3, 2e-3, 3e-3, 4e-3]])

    def both(scores, rewards, where):
        return jax.value_and_grad(lambda s: loss(s, rewards, where=where).sum())(
            jnp.asarray(scores)
        )

    value, gradient = both(scores, rewards, where)
    spoiled, _ = both(np.where(where, scores, np.float32(77)), np.where(where, rewards, 9), where)
    np.testing.assert_allclose(value, spoiled, rtol=1e-5, atol=1e-5)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~where].any()
    assert abs(float(gradient.sum())) < 1e-3 * (1 + float(np.abs(gradient).sum()))
    order = data.draw(st.permutations(range(5)))
    moved, _ = both(scores[:, order], rewards[:, order], where[:, order])
    np.testing.assert_allclose(value, moved, rtol=1e-4, atol=1e-4)
