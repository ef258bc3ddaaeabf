"""Pairs in the encoder: candidates that see each other, and pairs with what was chosen."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models import encoder, encoder_parts
from dynarag_jax.models.encoder_layout import (
    TrainedEncoder,
    begin_encoder,
    encoder_table,
    trained_encoder_table,
    whole_encoder,
)
from dynarag_jax.models.encoder_parts import EncoderConfig, attend, attend_across
from dynarag_jax.models.pairs import PairBatch, pair_vectors, pairs_with_chosen

BERT = EncoderConfig(vocab=50, width=16, layers=3, heads=4, mlp=24, positions=40)
MODERN = dataclasses.replace(
    BERT, family="modernbert", types=1, window=4, windowed=(False, True, False), norm_eps=1e-5
)
FAMILIES = pytest.mark.parametrize("cfg", [BERT, MODERN], ids=["bert", "modernbert"])


@functools.cache
def params_of(cfg):
    params = encoder.init_params(cfg, jax.random.key(0), scored=True)
    # As strong as a trained model's: what one text holds then changes another's.
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)


def pairs_of(seed=0, b=2, n=3):
    rng = np.random.default_rng(seed)
    tokens, types = np.zeros((2, b, n, 14), np.int32)
    lengths, second = np.zeros((2, b, n), np.int32)
    for i in range(b):
        question = list(rng.integers(5, 50, 3))
        for j in range(n):
            row = [1, *question, 2, *rng.integers(5, 50, rng.integers(1, 8)), 2]
            tokens[i, j, : len(row)], lengths[i, j], second[i, j] = row, len(row), 5
            types[i, j, 5 : len(row)] = 1
    return PairBatch(*map(jnp.asarray, (tokens, lengths, types, second)))


@pytest.mark.slow  # many small programs
def test_attention_across_is_attention_over_own_keys_and_the_others_first_ones():
    rng = np.random.default_rng(0)
    g, n, h, t, k = 2, 3, 2, 5, 4
    q, keys, values, first = rng.normal(size=(4, g * n, h, t, k)).astype(np.float32)
    visible = rng.uniform(size=(g * n, 1, 1, t)) < 0.7
    visible[..., 0] = True
    there = np.array([[True, True, True], [True, False, True]])
    ours = attend_across(*map(jnp.asarray, (q, keys, values, visible, there, first)))
    for row in range(g * n):
        group, own = divmod(row, n)
        others = [group * n + m for m in range(n) if m != own and there[group, m]]
        for head in range(h):
            scores = q[row, head] @ keys[row, head].T
            scores = np.where(visible[row, 0], scores, -np.inf)
            far = first[row, head] @ keys[others, head, 0].T
            weights = np.exp(np.concatenate([scores, far], 1) * k**-0.5)
            weights /= weights.sum(1, keepdims=True)
            every = np.concatenate([values[row, head], values[others, head, 0]])
            np.testing.assert_allclose(ours[row, head], weights @ every, atol=1e-5)
    alone = attend(*map(jnp.asarray, (q, keys, values, visible)))
    single = attend_across(
        *map(jnp.asarray, (q, keys, values, visible, np.ones((g * n, 1), bool), first))
    )
    np.testing.assert_allclose(single, alone, atol=1e-5)


@FAMILIES
def test_candidates_that_see_each_other_change_each_other_and_have_no_order(cfg):
    run = jax.jit(pair_vectors, static_argnums=(0, 3, 4))
    params, pairs = params_of(cfg), pairs_of()
    vectors, scores = run(cfg, params, pairs, "first", True)
    order = jnp.array([2, 0, 1])
    turned = jax.tree.map(lambda x: x[:, order], pairs)
    moved, moved_scores = run(cfg, params, turned, "first", True)
    np.testing.assert_allclose(moved, vectors[:, order], atol=2e-5)
    np.testing.assert_allclose(moved_scores, scores[:, order], atol=2e-5)
    other = pairs._replace(tokens=pairs.tokens.at[0, 0, 6].add(1))
    changed, _ = run(cfg, params, other, "first", True)
    assert float(jnp.abs(changed[0, 1:] - vectors[0, 1:]).max()) > 1e-3
    np.testing.assert_allclose(changed[1], vectors[1], atol=2e-5)  # another question
    # By themselves they do not; and a candidate that does not exist is seen by none.
    apart, _ = run(cfg, params, pairs, "first", False)
    apart_changed, _ = run(cfg, params, other, "first", False)
    np.testing.assert_allclose(apart_changed[0, 1:], apart[0, 1:], atol=2e-5)
    fewer = pairs._replace(lengths=pairs.lengths.at[0, 0].set(0))
    without, _ = run(cfg, params, fewer, "first", True)
    without_changed, _ = run(cfg, params, other._replace(lengths=fewer.lengths), "first", True)
    np.testing.assert_allclose(without_changed[0, 1:], without[0, 1:], atol=2e-5)


@FAMILIES
def test_scores_are_those_of_the_cross_encoder_and_means_are_over_real_positions(cfg):
    params, pairs = params_of(cfg), pairs_of()
    flat = [x.reshape(6, *x.shape[2:]) for x in pairs[:3]]
    expected = encoder.pair_scores(cfg, params, *flat)
    vectors, scores = pair_vectors(cfg, params, pairs, "mean")
    # Another program than pair_scores, which has no last layer for the other positions.
    np.testing.assert_allclose(scores.reshape(-1), expected, rtol=1e-6)
    hidden = np.asarray(encoder.encode(cfg, params, *flat))
    for row in range(6):
        mean = hidden[row, : int(flat[1][row])].mean(0)
        np.testing.assert_allclose(vectors.reshape(6, -1)[row], mean, atol=1e-5)


@pytest.mark.parametrize("separators", [1, 2])
@pytest.mark.parametrize("most", [40, 20])
def test_pairs_with_what_was_chosen_are_those_put_together_by_hand(separators, most):
    rng = np.random.default_rng(1)
    n, pieces = 4, 3
    question = [10, 11, 12]
    passages = [list(rng.integers(20, 50, size)) for size in (1, 6, 2, 4)]
    sep = [2] * separators
    rows = [[1, *question, *sep, *p, 2] for p in passages]
    tokens, types = np.zeros((2, 1, n, 16), np.int32)
    for j, row in enumerate(rows):
        tokens[0, j, : len(row)] = row
        types[0, j, 4 + separators : len(row)] = 1
    pairs = PairBatch(
        *map(jnp.asarray, (tokens, np.array([[len(r) for r in rows]]), types)),
        jnp.full((1, n), 4 + separators),
    )
    steps = [[], [2], [3, 1], [2, 4]]
    chosen = jnp.asarray([[[*one, *[0] * (2 - len(one))] for one in steps]])
    made = jax.jit(pairs_with_chosen, static_argnums=(2, 3))(pairs, chosen, pieces, most)
    assert made.tokens.shape == (len(steps), n, min(16 + 2 * (pieces + 1), most))
    for m, one in enumerate(steps):
        for j, passage in enumerate(passages):
            before = [x for i in one for x in [2, *passages[i - 1][:pieces]]]
            row = [1, *question, *before, *sep, *passage, 2]
            kind = [0] * (len(row) - len(passage) - 1) + [1] * (len(passage) + 1)
            if len(row) > most:
                row, kind = [*row[: most - 1], 2], kind[:most]
            size = int(made.lengths[m, j])
            assert np.asarray(made.tokens[m, j, :size]).tolist() == row
            assert np.asarray(made.types[m, j, :size]).tolist() == kind
            assert not np.asarray(made.tokens[m, j, size:]).any()
            begin = min(len(row) - len(passage) - 1, most - 1) if len(row) < most else None
            assert begin is None or int(made.second[m, j]) == begin


# ---------------------------------------------------------------------------- what is trained


@FAMILIES
@pytest.mark.parametrize("part", ["frozen", "last", "lora", "full"])
def test_the_trained_part_and_the_rest_are_the_whole_model(cfg, part):
    trained = TrainedEncoder(part=part, layers=2, rank=2, alpha=4.0)
    params, pairs = params_of(cfg), pairs_of()
    own = begin_encoder(cfg, trained, params, jax.random.key(1))
    shapes = jax.tree.map(
        lambda p: p.shape, trained_encoder_table(cfg, trained), is_leaf=lambda x: hasattr(x, "axes")
    )
    assert shapes == jax.tree.map(lambda x: x.shape, own)
    run = jax.jit(pair_vectors, static_argnums=0)
    before = run(cfg, params, pairs)
    for joined in (True, False):
        whole = whole_encoder(cfg, trained, own, params, joined)
        after = run(cfg, whole, pairs)
        np.testing.assert_allclose(after[0], before[0], atol=1e-5)
    assert set(encoder_table(cfg)) == set(whole_encoder(cfg, trained, own, params, True))
    # Training moves what it says, and nothing else.
    moved = jax.tree.map(lambda x: x + 0.1, own)
    one, other = (whole_encoder(cfg, trained, moved, params, j) for j in (True, False))
    np.testing.assert_allclose(run(cfg, one, pairs)[0], run(cfg, other, pairs)[0], atol=1e-5)
    same = [
        bool((a == b).all())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(params), strict=True)
    ]
    assert {"frozen": all(same), "full": not any(same)}.get(part, any(same) and not all(same))
    if part == "last":
        np.testing.assert_array_equal(one["layers"]["qkv"][0], params["layers"]["qkv"][0])
        assert (one["layers"]["qkv"][1:] != params["layers"]["qkv"][1:]).any()
    if part == "lora":
        a, b = moved["adapters"]["up"]["a"], moved["adapters"]["up"]["b"]
        np.testing.assert_allclose(
            one["layers"]["up"][1], params["layers"]["up"][1] + 2.0 * a[1] @ b[1], atol=1e-5
        )


@FAMILIES
def test_adapters_learn_as_if_they_were_merged(cfg):
    trained = TrainedEncoder(part="lora", rank=2, alpha=4.0)
    params, pairs = params_of(cfg), pairs_of()
    own = begin_encoder(cfg, trained, params, jax.random.key(1))
    own = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), own)

    def gradients(joined):
        def loss(own):
            vectors, scores = pair_vectors(
                cfg, whole_encoder(cfg, trained, own, params, joined), pairs
            )
            weights = jax.random.normal(jax.random.key(2), vectors.shape)
            return (vectors * weights).sum() + scores.sum()

        return jax.jit(jax.grad(loss))(own)

    merged, beside = gradients(True), gradients(False)
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(beside), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-3 * float(jnp.abs(a).max()))
        assert jnp.abs(a).max() > 0


def test_no_gradient_of_whole_matrices_is_computed_for_adapters():
    trained = TrainedEncoder(part="lora", rank=2)
    params, pairs = params_of(BERT), pairs_of()
    own = begin_encoder(BERT, trained, params, jax.random.key(1))

    def matrices(joined):
        def loss(own):
            whole = whole_encoder(BERT, trained, own, params, joined)
            return pair_vectors(BERT, whole, pairs)[1].sum()

        program = jax.jit(jax.grad(loss)).lower(own).compile().as_text()
        return len(re.findall(r"f32\[(16,48|48,16)\]\S* dot\(", program))

    assert matrices(True) > 0
    assert matrices(False) == 0


def test_no_gradient_runs_through_frozen_layers():
    trained = TrainedEncoder(part="last", layers=1)
    params, pairs = params_of(BERT), pairs_of()
    own = begin_encoder(BERT, trained, params, jax.random.key(1))

    def loss(params):
        return pair_vectors(BERT, params, pairs)[1].sum()

    def loops(loss, of):
        return str(jax.make_jaxpr(jax.grad(loss))(of)).count("scan[")

    # The last layer stands by itself: the loops are those of the others, forward and backward.
    assert loops(loss, params) == 2
    assert loops(lambda own: loss(whole_encoder(BERT, trained, own, params)), own) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 9], ids=["one mask a text", "a mask a position"])
def test_texts_a_few_at_a_time_attend_as_all_together(monkeypatch, dtype, rows):
    """On a CPU: values and gradients, and nothing of all texts' scores is left in the program."""
    key = jax.random.split(jax.random.key(0), 5)
    q, k, v, g = (jax.random.normal(one, (6, 2, 9, 4), dtype) for one in key[:4])
    visible = jax.random.bernoulli(key[4], 0.6, (6, 1, rows, 9)) | jnp.eye(9, dtype=bool)[:rows]

    monkeypatch.setattr(encoder_parts, "SMALL", 0)
    monkeypatch.setattr(encoder_parts, "CACHED", 4 * 2 * rows * 9 * 2)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
        scores = jnp.where(visible, q @ k.swapaxes(-1, -2) / 2, -jnp.inf)
        return jax.nn.softmax(scores) @ v

    def both(attending: Any, *x: jax.Array) -> Any:
        values, back = jax.vjp(lambda *x: attending(*x, visible), *x)
        return values, *back(g.astype(values.dtype))

    assert "6,2,9,9" not in str(jax.make_jaxpr(functools.partial(both, attend))(q, k, v))
    expected = both(plain, *(x.astype(jnp.float32) for x in (q, k, v)))
    for ours, other in zip(both(attend, q, k, v), expected, strict=True):
        assert ours.dtype == dtype
        rounding = 1e-5 if dtype == "float32" else 0.03
        np.testing.assert_allclose(np.asarray(ours, np.float32), other, atol=rounding)
