"""Lists of an encoder policy against the enumeration of all of them."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.encoder_parts import EncoderConfig
from dynarag_jax.models.list_head import ListHeadConfig
from dynarag_jax.policy.encoder_policy import (
    CandidateBatch,
    EncoderPolicyConfig,
    list_logps,
    policy_table,
)
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.distinct import importance_weights
from dynarag_jax.sampling.encoder_lists import draw_lists, find_lists, make_list_writer
from dynarag_jax.sharding import make_mesh

N = 4
CFG = EncoderPolicyConfig(
    encoder=EncoderConfig(vocab=40, width=12, layers=1, heads=3, mlp=16, positions=48),
    head=ListHeadConfig(width=8, layers=1, steps=1, heads=2, mlp=12, vectors=12),
    pieces=16,
    max_list=2,
)
LISTS = [p for k in range(3) for p in itertools.permutations(range(1, N + 1), k)]


@functools.cache
def params():
    rng = np.random.default_rng(0)

    def one(p):
        start = 1.0 if p.scale is None else 0.0
        return np.float32(start + rng.normal(size=p.shape) * ((p.scale or 0) + 0.2))

    return jax.tree.map(one, policy_table(CFG), is_leaf=is_parameter)


def candidates_of(n=N, rows=1, padding=0, order=None):
    """The same question in every row."""
    rng = np.random.default_rng(1)
    vectors, scores = rng.normal(size=(1, n, 12)), rng.normal(size=(1, n))
    if order is not None:
        vectors, scores = vectors[:, order], scores[:, order]
    vectors = np.pad(vectors, [(0, 0), (0, padding), (0, 0)], constant_values=9)
    scores = np.pad(scores, [(0, 0), (0, padding)], constant_values=9)
    where = np.arange(n + padding)[None] < n
    each = (np.repeat(x, rows, 0) for x in (vectors, scores, where))
    vectors, scores, where = each
    return CandidateBatch(
        None, jnp.asarray(vectors, jnp.float32), jnp.asarray(scores, jnp.float32),
        jnp.asarray(where), None,
    )  # fmt: skip


def keys_of(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


@functools.cache
def probabilities():
    tokens = np.zeros((1, len(LISTS), 3), np.int32)
    for i, one in enumerate(LISTS):
        tokens[0, i, : len(one)] = one
    lengths = jnp.array([[len(one) + 1 for one in LISTS]])
    steps = jax.jit(list_logps, static_argnums=0)(
        CFG, params(), candidates_of(), jnp.asarray(tokens), lengths
    ).steps
    return dict(zip(LISTS, np.exp(np.asarray(steps, np.float64).sum(-1))[0], strict=True))


jitted_draw = jax.jit(draw_lists, static_argnums=0, static_argnames=("lists", "sampling"))
jitted_find = jax.jit(find_lists, static_argnums=0, static_argnames=("lists", "sampling"))


def draw(candidates, keys, lists, sampling):
    return jitted_draw(CFG, params(), candidates, keys, lists=lists, sampling=sampling)


def find(candidates, keys, lists, sampling):
    return jitted_find(CFG, params(), candidates, keys, lists=lists, sampling=sampling)


def read(tokens, lengths):
    """Lists [B, L] as tuples."""
    return [
        [tuple(int(i) for i in row[: n - 1]) for row, n in zip(rows, own, strict=True)]
        for rows, own in zip(np.asarray(tokens), np.asarray(lengths), strict=True)
    ]


def agrees(lists):
    """The p-value of the frequencies of lists against the enumeration."""
    counts = dict.fromkeys(LISTS, 0)
    for one in lists:
        counts[one] += 1
    expected = np.array([probabilities()[one] for one in LISTS]) * len(lists)
    seen = np.array(list(counts.values()))
    rare = expected < 5
    if rare.any():
        seen = np.append(seen[~rare], seen[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return chisquare(seen, expected * seen.sum() / expected.sum()).pvalue


def test_draws_have_the_enumerated_frequencies_and_log_probabilities():
    drawn = draw(candidates_of(), keys_of(1), 4000, Sampling())
    lists = read(drawn.tokens, drawn.lengths)[0]
    assert agrees(lists) > 1e-3
    assert agrees([lists[i // 4 * 4] for i in range(4000)]) < 1e-3  # what is no sample is seen
    known = np.array([probabilities()[one] for one in lists])
    np.testing.assert_allclose(np.exp(np.asarray(drawn.logps[0]).sum(-1)), known, rtol=1e-4)


def test_the_first_of_distinct_lists_is_a_draw_and_all_of_them_are_every_list():
    found = find(candidates_of(rows=3000), keys_of(3000), 3, Sampling(method="distinct"))
    lists = read(found.tokens, found.lengths)
    assert all(len(set(own)) == 3 for own in lists)
    assert agrees([own[0] for own in lists]) > 1e-3
    # Priority sampling's estimate of an expectation is unbiased.
    value = {one: float(i % 5) for i, one in enumerate(LISTS)}
    truth = sum(p * value[one] for one, p in probabilities().items())
    weights = importance_weights(found.logps, found.drawn, found.threshold)
    estimates = [
        sum(w * value[one] for w, one in zip(row, own, strict=True))
        for row, own in zip(weights, lists, strict=True)
    ]
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - truth) < 4 * error
    every = find(candidates_of(), keys_of(1), 20, Sampling(method="distinct"))
    kept = np.asarray(every.valid[0])
    assert kept.sum() == len(LISTS)
    assert set(read(every.tokens[:, kept], every.lengths[:, kept])[0]) == set(LISTS)
    assert every.threshold[0] == -np.inf


def test_beam_search_finds_the_most_probable_list_and_greedy_takes_each_best_step():
    ranked = sorted(LISTS, key=lambda one: -probabilities()[one])
    found = find(candidates_of(), keys_of(1), 3, Sampling(method="beam", width=17))
    assert read(found.tokens, found.lengths)[0] == ranked[:3]
    greedy = draw(candidates_of(), keys_of(1), 1, Sampling(temperature=0.0))
    one = read(greedy.tokens, greedy.lengths)[0][0]

    def mass(prefix):
        return sum(p for other, p in probabilities().items() if other[: len(prefix)] == prefix)

    steps: tuple[int, ...] = ()
    while len(steps) < 2:
        nexts = {(*steps, i): mass((*steps, i)) for i in range(1, N + 1) if i not in steps}
        best = max(nexts, key=lambda p: nexts[p])
        if probabilities()[steps] >= nexts[best]:
            break
        steps = best
    assert one == steps


@pytest.mark.parametrize("method", ["independent", "distinct", "beam"])
def test_padding_and_company_change_nothing(method):
    write = draw if method == "independent" else find
    sampling = Sampling(method=method, width=5)
    alone = write(candidates_of(), keys_of(1), 4, sampling)
    keys = jnp.concatenate([keys_of(1), keys_of(2, seed=5)])
    wide = write(candidates_of(rows=3, padding=7), keys, 4, sampling)
    assert read(wide.tokens, wide.lengths)[0] == read(alone.tokens, alone.lengths)[0]


def test_permuted_candidates_give_the_same_passages():
    order = np.array([2, 0, 3, 1])
    for sampling in (Sampling(temperature=0.0), Sampling(method="beam", width=8)):
        write = draw if sampling.method == "independent" else find
        one, other = (write(candidates_of(order=o), keys_of(1), 1, sampling) for o in (None, order))
        (own,), (moved,) = read(one.tokens, one.lengths)[0], read(other.tokens, other.lengths)[0]
        assert own == tuple(int(order[i - 1]) + 1 for i in moved)


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
@pytest.mark.parametrize("n", [1, 500])
def test_one_candidate_and_five_hundred_on_a_mesh(n):
    mesh = make_mesh(devices=jax.devices()[:2])
    for sampling in (Sampling(), Sampling(method="distinct"), Sampling(method="beam")):
        writer = make_list_writer(CFG, mesh, 2, sampling)
        out = writer(params(), candidates_of(n, rows=2), keys_of(2))
        for own in read(out.tokens, np.maximum(np.asarray(out.lengths), 1)):
            assert all(1 <= i <= n for one in own for i in one)
            assert all(len(set(one)) == len(one) <= 2 for one in own)
