"""Token likelihood, and ListMLE against a Plackett-Luce likelihood written by hand."""

from __future__ import annotations

import builtins
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import MissingExtra
from dynarag_jax.objectives.supervised import list_mle, token_nll


@jax.jit
def loss_and_gradient(scores, relevance, where):
    def total(scores):
        loss = list_mle(scores, relevance, where=where)
        return loss.sum(), loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(scores)
    return loss, gradient


def plackett_luce(scores, order, shown):
    """Minus log of the probability that ``order`` (0-based ids) is drawn first, one by one."""
    left, total = list(shown), 0.0
    for i in order:
        total -= scores[i] - math.log(sum(math.exp(scores[j]) for j in left))
        left.remove(i)
    return total


def relevance_of(order, size):
    """k for the first id of the expert's list down to 1, 0 for the others."""
    relevance = np.zeros(size, np.float32)
    for place, i in enumerate(order):
        relevance[i] = len(order) - place
    return relevance


CASES = [
    ((2, 0, 1, 4, 3), range(5)),  # every id ranked
    ((3,), range(5)),  # one id, the others only compete
    ((1, 4), range(5)),
    ((0, 2), (0, 1, 2)),  # ids 3 and 4 are not shown
    ((2,), (2,)),  # nothing to choose between
    ((), range(5)),  # an expert that writes None ranks nothing
    ((), ()),  # a row that shows nothing, such as an answer's
]


def test_list_mle_equals_plackett_luce_for_ranked_unranked_and_masked_ids():
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=2, size=(len(CASES), 5)).astype(np.float32)
    relevance = np.stack([relevance_of(order, 5) for order, _ in CASES])
    where = np.array([[i in shown for i in range(5)] for _, shown in CASES])
    scores[~where] = 50.0  # what is masked must not leak, however large
    loss, gradient = loss_and_gradient(scores, relevance, where)
    for row, (order, shown) in enumerate(CASES):
        assert loss[row] == pytest.approx(plackett_luce(scores[row], order, shown), abs=1e-5)
    assert not np.asarray(gradient)[~where].any()
    # By hand: each draw pulls its own id up by 1 and all that were left down by their probability.
    expected = np.zeros((len(CASES), 5))
    for row, (order, shown) in enumerate(CASES):
        left = list(shown)
        for i in order:
            mass = np.exp(scores[row, left].astype(np.float64))
            expected[row, left] += mass / mass.sum()
            expected[row, i] -= 1
            left.remove(i)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_probabilities_of_all_lists_of_each_length_sum_to_one():
    scores = np.random.default_rng(1).normal(size=4).astype(np.float32)
    lists = [order for k in range(1, 5) for order in itertools.permutations(range(4), k)]
    loss, _ = loss_and_gradient(
        np.tile(scores, (len(lists), 1)),
        np.stack([relevance_of(order, 4) for order in lists]),
        np.ones((len(lists), 4), bool),
    )
    sizes = np.array([len(order) for order in lists])
    for k in range(1, 5):
        assert np.exp(-np.asarray(loss))[sizes == k].sum() == pytest.approx(1, abs=1e-5)


def test_a_common_shift_and_the_order_of_columns_change_nothing():
    scores = np.array([[0.3, -1.0, 2.0, 0.5]], np.float32)
    relevance = relevance_of((1, 3), 4)[None]
    where = np.array([[True, True, True, True]])
    loss, gradient = loss_and_gradient(scores, relevance, where)
    shifted, _ = loss_and_gradient(scores + 100, relevance, where)
    turn = [2, 0, 3, 1]
    turned, turned_gradient = loss_and_gradient(scores[:, turn], relevance[:, turn], where)
    np.testing.assert_allclose(loss, shifted, rtol=1e-4)
    np.testing.assert_allclose(loss, turned, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, turn], turned_gradient, atol=1e-6)


def test_list_mle_of_extreme_scores_is_finite():
    scores = np.array([[1e4, -1e4, 0.0, 3.0]], np.float32)
    loss, gradient = loss_and_gradient(scores, relevance_of((1,), 4)[None], np.ones((1, 4), bool))
    assert loss[0] == pytest.approx(2e4)
    assert np.isfinite(gradient).all()


def test_without_rax_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "rax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    ones = jnp.ones((1, 2))
    with pytest.raises(MissingExtra, match=r"dynarag_jax\[listwise\]"):
        list_mle(ones, ones, where=ones > 0)


def test_token_nll_sums_real_tokens_only_even_beside_infinities():
    logps = jnp.array([[-1.0, -2.0, -jnp.inf], [-0.5, jnp.nan, -jnp.inf]])
    where = jnp.array([[True, True, False], [True, False, False]])
    value, gradient = jax.value_and_grad(lambda x: token_nll(x, where=where).sum())(logps)
    assert value == 3.5
    assert gradient.tolist() == [[-1, -1, 0], [-1, 0, 0]]
