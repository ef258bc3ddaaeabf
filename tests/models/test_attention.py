"""Attention against a softmax written out in NumPy float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models import attention
from dynarag_jax.models.attention import branch_attention, trunk_attention

H, G, K = 4, 2, 8


def normal(rng, *shape) -> Any:
    return rng.normal(size=shape).astype(np.float32)


def softmax_rows(q, k, v, visible):
    """One head: q [T, K], k and v [S, K], visible [T, S]."""
    scores = np.where(visible, q.astype(np.float64) @ k.astype(np.float64).T, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64)


def causal(q, k, v, length):
    """[P, H, K] over [P, G, K]: the first ``length`` rows of causal attention."""
    visible = np.tril(np.ones((length, length), bool))
    heads = [
        softmax_rows(q[:length, h], k[:length, h * G // H], v[:length, h * G // H], visible)
        for h in range(H)
    ]
    return np.stack(heads, axis=1)


@pytest.mark.parametrize("block", [512, 8, 5])
def test_trunk_equals_written_out_softmax_in_one_block_or_many(monkeypatch, block):
    # 24 positions are one block of 512, three of 8, and five of 5 with a rest.
    monkeypatch.setattr(attention, "BLOCK", block)
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 3, 24, H, K), normal(rng, 3, 24, G, K), normal(rng, 3, 24, G, K)
    lengths = np.array([24, 1, 13])
    # A function of its own: jit would answer the same one from its cache, whatever BLOCK is.
    out = np.asarray(jax.jit(lambda *x: trunk_attention(*x))(q, k, v, lengths))
    assert out.shape == q.shape
    assert np.isfinite(out).all()
    for row, length in enumerate(lengths):
        expected = causal(q[row], k[row], v[row], length)
        np.testing.assert_allclose(out[row, :length], expected, atol=2e-6)


def test_blocks_of_queries_equal_plain_with_gradients(monkeypatch):
    rng = np.random.default_rng(1)
    p = 1100
    q, k, v, weight = (normal(rng, 1, p, 1, 4) for _ in range(4))
    lengths = jnp.array([1051])
    real = (np.arange(p) < 1051)[None, :, None, None]

    def total(q, k, v):
        return (jnp.where(real, trunk_attention(q, k, v, lengths), 0.0) * weight).sum()

    blocks = jax.jit(jax.value_and_grad(lambda *x: total(*x), (0, 1, 2)))(q, k, v)
    monkeypatch.setattr(attention, "BLOCK", 4096)
    plain = jax.jit(jax.value_and_grad(lambda *x: total(*x), (0, 1, 2)))(q, k, v)
    for one, other in zip(jax.tree.leaves(blocks), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_score_matrix_is_bounded_when_the_prompt_is_no_multiple_of_a_block():
    shape = jax.ShapeDtypeStruct((1, 4000, 1, 4), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    text = str(jax.make_jaxpr(trunk_attention)(shape, shape, shape, lengths))
    assert f"{attention.BLOCK},4000" in text
    # The first of the parts takes a quarter of the keys.
    assert f"{attention.BLOCK},1024" in text
    assert "4000,4000" not in text


def test_trunk_of_padding_only_is_finite():
    rng = np.random.default_rng(2)
    q, k = normal(rng, 1, 4, H, K), normal(rng, 1, 4, G, K)
    assert np.isfinite(trunk_attention(q, k, k, jnp.array([0]))).all()


@pytest.mark.parametrize("first", [0, 2])
def test_branch_equals_written_out_softmax_over_trunk_and_own_past(first):
    rng = np.random.default_rng(3)
    b, n, t, p, r = 2, 3, 2, 6, 5
    q = normal(rng, b, n, t, H, K)
    trunk_k, trunk_v = normal(rng, b, p, G, K), normal(rng, b, p, G, K)
    own_k, own_v = normal(rng, b, n, r, G, K), normal(rng, b, n, r, G, K)
    lengths = np.array([6, 2])
    out = jax.jit(branch_attention)(q, trunk_k, trunk_v, lengths, own_k, own_v, first)
    for i in range(b):
        for j in range(n):
            keys = np.concatenate([trunk_k[i, : lengths[i]], own_k[i, j]])
            values = np.concatenate([trunk_v[i, : lengths[i]], own_v[i, j]])
            visible = np.arange(len(keys)) <= (lengths[i] + first + np.arange(t))[:, None]
            for h in range(H):
                g = h * G // H
                expected = softmax_rows(q[i, j, :, h], keys[:, g], values[:, g], visible)
                np.testing.assert_allclose(out[i, j, :, h], expected, atol=2e-6)


def test_branch_survives_scores_that_overflow_exp():
    q = jnp.full((1, 1, 1, 1, 2), 30.0)
    trunk_k = jnp.array([[[[10.0, 10.0]], [[-10.0, -10.0]]]])
    own_k = jnp.array([[[[[9.0, 9.0]]]]])
    trunk_v, own_v = jnp.ones_like(trunk_k), 3 * jnp.ones_like(own_k)

    def total(q):
        return branch_attention(q, trunk_k, trunk_v, jnp.array([2]), own_k, own_v).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(q)
    # Scores 600, -600 and 540: all the weight is on the first key.
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.slow  # many small programs
def test_branch_sums_of_bfloat16_values_are_float32():
    rng = np.random.default_rng(4)
    b, n, t, p, r, size = 1, 2, 8, 2000, 8, 64
    shapes = [(b, n, t, H, size), *[(b, p, G, size)] * 2, *[(b, n, r, G, size)] * 2]
    half = [jnp.asarray(normal(rng, *shape), jnp.bfloat16) for shape in shapes]
    half[0] *= size**-0.5

    def attend(q, *keys):
        return branch_attention(q, *keys[:2], jnp.array([p]), *keys[2:])

    exact = np.asarray(attend(*(x.astype(jnp.float32) for x in half)), np.float64)
    error = np.asarray(jax.jit(attend)(*half), np.float64) - exact
    # The least that a bfloat16 result can err, and as much again for rounding weights to bfloat16.
    rounding = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64) - exact
    assert 0 < np.square(error).mean() < 2 * np.square(rounding).mean()
