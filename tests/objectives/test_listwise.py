"""Listwise supervision against rax, and against formulas written by hand."""

from __future__ import annotations

import builtins
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax

from dynarag_jax.errors import MissingExtra
from dynarag_jax.objectives.listwise import lambda_loss, list_mle, list_net, rank_net


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
    with pytest.raises(MissingExtra, match=r"LambdaLoss"):
        lambda_loss(ones, ones, where=ones > 0)


# ---------------------------------------------------------------------------- the other losses


def cases(seed=2):
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=2, size=(len(CASES), 5)).astype(np.float32)
    relevance = np.stack([relevance_of(order, 5) for order, _ in CASES])
    where = np.array([[i in shown for i in range(5)] for _, shown in CASES])
    return scores, relevance, where


LOSSES = {
    "list_net": list_net,
    "rank_net": rank_net,
    "rank_net by rank": lambda s, r, *, where: rank_net(s, r, where=where, by_rank=True),
    "lambda_loss": lambda_loss,
    "lambda_loss of DCG": lambda s, r, *, where: lambda_loss(s, r, where=where, normalize=False),
}


def value_and_gradient(loss, scores, relevance, where):
    def total(scores):
        value = loss(scores, relevance, where=where)
        return value.sum(), value

    (_, value), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(scores))
    return np.asarray(value), np.asarray(gradient)


def rax_says(name, scores, relevance, where):
    """What rax gives for one row of shown ids, which are all that is handed to it."""
    if not where.any():
        return 0.0
    scores, relevance = jnp.asarray(scores[where]), jnp.asarray(relevance[where])
    if name == "list_net":
        total = max(float(relevance.sum()), 1e-9)
        return float(rax.softmax_loss(scores, relevance / total, reduce_fn=None))
    if name == "rank_net":
        return float(rax.pairwise_logistic_loss(scores, relevance, reduce_fn=jnp.sum))
    weight = partial(rax.dcg_lambdaweight, normalize=name == "lambda_loss")
    pairs = rax.pairwise_logistic_loss(scores, relevance, reduce_fn=jnp.sum, lambdaweight_fn=weight)
    return float(pairs) / len(scores)


@pytest.mark.parametrize("name", ["list_net", "rank_net", "lambda_loss", "lambda_loss of DCG"])
def test_equals_rax_on_the_shown_ids_alone(name):
    scores, relevance, where = cases()
    value, _ = value_and_gradient(LOSSES[name], scores, relevance, where)
    expected = [rax_says(name, *row) for row in zip(scores, relevance, where, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(value) > 0.1


def test_rank_net_equals_its_formula_with_and_without_firsts_weights():
    scores, relevance, where = cases(seed=3)
    for by_rank in (False, True):
        value, _ = value_and_gradient(
            lambda s, r, *, where, b=by_rank: rank_net(s, r, where=where, by_rank=b),
            scores, relevance, where,
        )  # fmt: skip
        for row, (order, shown) in enumerate(CASES):
            rank = {i: order.index(i) + 1 if i in order else len(order) + 1 for i in shown}
            expected = sum(
                math.log1p(math.exp(scores[row, j] - scores[row, i]))
                / (rank[i] + rank[j] if by_rank else 1)
                for i in shown for j in shown if rank[i] < rank[j]
            )  # fmt: skip
            assert value[row] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_ids_and_their_number_change_nothing(name):
    scores, relevance, where = cases(seed=4)
    value, gradient = value_and_gradient(LOSSES[name], scores, relevance, where)
    spoiled = np.where(where, scores, 60.0).astype(np.float32)
    other, other_gradient = value_and_gradient(LOSSES[name], spoiled, relevance, where)
    np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, other_gradient, rtol=1e-5, atol=1e-6)
    assert not gradient[~where].any()
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    wide = [np.pad(x, ((0, 0), (0, 3))) for x in (scores, relevance, where)]
    padded, _ = value_and_gradient(LOSSES[name], *wide)
    np.testing.assert_allclose(value, padded, rtol=1e-5, atol=1e-6)
    turn = [3, 0, 4, 1, 2]
    turned, _ = value_and_gradient(
        LOSSES[name], scores[:, turn], relevance[:, turn], where[:, turn]
    )
    np.testing.assert_allclose(value, turned, rtol=1e-5, atol=1e-6)
