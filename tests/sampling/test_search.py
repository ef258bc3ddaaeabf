"""Lists without replacement and the most probable lists, beside exhaustive enumeration.

The probabilities are those of the training forward over every list there is, one by one.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dynarag_jax.models import decoder, decoding
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.grammar import Spelling, build_grammar, read_list
from dynarag_jax.policy.logprobs import token_logps
from dynarag_jax.sampling.distinct import importance_weights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.search import ListSearch, gumbel_children
from dynarag_jax.sharding import make_mesh

CFG = DecoderConfig(
    vocab=32, width=16, layers=1, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64
)
# The spelling of the second id begins with that of the first.
SPELLING = Spelling(
    opening=(10,), ids=((1,), (1, 2), (2,), (3, 1)), between=(20, 21), closing=(20,), none=(30,),
    end=31,
)  # fmt: skip
GRAMMAR = build_grammar(SPELLING)
R = SPELLING.longest(4)
TRUNK: Any = np.array([[5, 6, 7, 0]], np.int32)
LENGTH = np.array([3], np.int32)

Lists = list[tuple[int, ...]]


def lists(n: int) -> Lists:
    return [ids for k in range(n + 1) for ids in itertools.permutations(range(1, n + 1), k)]


@pytest.fixture(scope="module")
def params():
    # Larger weights than at the start of training: some lists are likely, most are not.
    return jax.tree.map(lambda x: 2.5 * x, decoder.init_params(CFG, jax.random.key(4)))


@jax.jit
def forward(params, trunk, lengths, tokens, n):
    _, hidden = decoder.trunk_and_branches(CFG, params, trunk, lengths, tokens)
    return token_logps(CFG, params, hidden, tokens, GRAMMAR, jnp.array([True]), n).constrained


def log_probabilities(params, n, temperature=1.0):
    """[lists(n)], by the forward pass; at a temperature by the tokens' own scores."""
    every = lists(n)
    tokens: Any = np.zeros((1, 65, R), np.int32)  # of one shape for every n, to compile once
    for row, ids in enumerate(every):
        word = SPELLING.spell(ids)
        tokens[0, row, : len(word)] = word
    if temperature == 1:
        logps = np.asarray(forward(params, TRUNK, LENGTH, tokens, jnp.array([n])), np.float64)[0]
        sizes = [len(SPELLING.spell(ids)) for ids in every]
        return np.array([row[:size].sum() for row, size in zip(logps, sizes, strict=False)])
    # Conditional probabilities of tokens come from sums over the lists that begin alike.
    plain = np.exp(log_probabilities(params, n))
    words = [tuple(SPELLING.spell(ids)) for ids in every]
    mass: dict[tuple[int, ...], float] = {}
    for word, p in zip(words, plain, strict=True):
        for size in range(len(word) + 1):
            mass[word[:size]] = mass.get(word[:size], 0.0) + p
    after: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for prefix in mass:
        after.setdefault(prefix[:-1], set()).add(prefix) if prefix else None
    out = []
    for word in words:
        total = 0.0
        for size in range(1, len(word) + 1):
            beside = [mass[p] ** (1 / temperature) for p in after[word[: size - 1]]]
            total += np.log(mass[word[:size]] ** (1 / temperature) / sum(beside))
        out.append(total)
    return np.array(out)


def one_device():
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


unstacked = jax.jit(partial(decoding.unstack, CFG))

_SEARCHES: dict[Any, Any] = {}


def run(params, n, branches, sampling, requests=1, seed=0, mesh=None, grammar=GRAMMAR):
    """Found of ``requests`` requests that differ in their keys alone; n may be one of each."""
    key = branches, sampling, mesh, grammar.max_ids
    if key not in _SEARCHES:
        _SEARCHES[key] = ListSearch(
            CFG, mesh or one_device(), branches=branches, max_tokens=R, end=31, sampling=sampling,
            grammar=grammar,
        )  # fmt: skip
    keys = jax.random.split(jax.random.key(seed), requests)
    shown: Any = np.broadcast_to(np.asarray(n, np.int32), requests)
    found = _SEARCHES[key](
        params,
        unstacked(params),
        np.repeat(TRUNK, requests, 0),
        np.repeat(LENGTH, requests),
        keys,
        shown,
    )
    return type(found)(*(np.asarray(x) for x in found))


def places(found, n):
    """[B, N] index into lists(n); -1 where there is none."""
    index = {tuple(SPELLING.spell(ids)): i for i, ids in enumerate(lists(n))}
    flat = found.tokens.reshape(-1, R)
    rows, back = np.unique(flat, axis=0, return_inverse=True)
    known = np.array(
        [index.get(tuple(row[: np.argmax(row == 31) + 1].tolist()), -1) for row in rows]
    )
    return known[back.reshape(-1)].reshape(found.valid.shape)


# ---------------------------------------------------------------------------- without replacement


def ordered_draws(p, k):
    """Probability of each ordered sample of size k without replacement (Plackett-Luce)."""
    for order in itertools.permutations(range(len(p)), k):
        value, left = 1.0, 1.0
        for i in order:
            value *= p[i] / left
            left -= p[i]
        yield order, value


DRAWS = 12_000


@pytest.mark.parametrize(
    ("k", "temperature"),
    [pytest.param(2, 1.0, id="plain"), pytest.param(2, 0.6, id="cool", marks=pytest.mark.slow)],
)
def test_ordered_samples_follow_the_enumerated_probabilities(params, k, temperature):
    """N = 3: 16 lists, 240 ordered pairs of them; fixed seeds."""
    logps = log_probabilities(params, 3, temperature)
    p = np.exp(logps)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    p /= p.sum()
    found = run(params, 3, k, Sampling(temperature, method="distinct"), DRAWS)
    drawn = places(found, 3)
    assert (drawn >= 0).all()
    np.testing.assert_allclose(found.drawn, logps[drawn], atol=1e-4)
    np.testing.assert_allclose(found.logps, log_probabilities(params, 3)[drawn], atol=1e-4)
    code = drawn @ (16 ** np.arange(k))
    expected: Any = np.zeros(16**k)
    for order, value in ordered_draws(p, k):
        expected[np.array(order) @ (16 ** np.arange(k))] = value * DRAWS
    counts = np.bincount(code, minlength=16**k)
    # The rare outcomes together, so that every cell is expected often enough for the test.
    rare = expected < 8
    pooled = [*counts[~rare], counts[rare].sum()], [*expected[~rare], expected[rare].sum()]
    kept = np.array(pooled[1]) > 1e-9
    counts, expected = np.array(pooled[0])[kept], np.array(pooled[1])[kept]
    assert scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.01


@pytest.mark.slow  # many draws
def test_inclusion_in_eight_lists_is_as_enumerated_and_estimates_are_unbiased(params):
    """Of 65 lists over four passages, eight: inclusion given the threshold, weights, estimates."""
    n, k, requests = 4, 8, 4_000
    logps = log_probabilities(params, n)
    p = np.exp(logps)
    assert len(p) == 65
    found = run(params, n, k, Sampling(method="distinct"), requests, seed=3)
    drawn = places(found, n)
    assert (drawn >= 0).all()
    assert (np.sort(drawn)[:, 1:] != np.sort(drawn)[:, :-1]).all(), "a list was drawn twice"
    assert (np.diff(found.scores) <= 0).all()
    assert (found.threshold <= found.scores[:, -1]).all()
    # Inclusion by an independent simulation: the Gumbel trick over all lists at once, in numpy.
    rng = np.random.default_rng(0)
    order = np.argsort(-(logps + rng.gumbel(size=(requests, 65))), axis=-1)[:, :k]
    ours, theirs = (np.bincount(x.ravel(), minlength=65) for x in (drawn, order))
    share = (ours + theirs) / (2 * requests)
    error = np.sqrt(share * (1 - share) * 2 * requests)
    assert (np.abs(ours - theirs) <= 4.5 * error + 1e-9).all()
    # The largest perturbed log-probability of all lists is a standard Gumbel variable.
    assert scipy.stats.kstest(found.scores[:, 0], "gumbel_r").pvalue > 0.01
    # Estimates: of the whole (1), and of the mean length of a list.
    weights = importance_weights(found.logps, found.drawn, found.threshold)
    sizes = np.array([len(ids) for ids in lists(n)], float)
    for f, truth in ((np.ones(65), 1.0), (sizes, float(p @ sizes))):
        estimates = (weights * f[drawn]).sum(-1)
        error = estimates.std() / np.sqrt(requests)
        assert abs(estimates.mean() - truth) < 4 * error + 1e-4


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_all_lists_are_returned_where_fewer_exist_than_asked_for(params, n):
    exist = len(lists(n))
    found = run(params, n, 18, Sampling(method="distinct"), 4)
    assert (found.valid.sum(-1) == exist).all()
    for row in range(4):
        assert set(places(found, n)[row][found.valid[row]]) == set(range(exist))
        assert not found.tokens[row][~found.valid[row]].any()
    assert (found.threshold == -np.inf).all()
    # Then the weights are the probabilities themselves, and sum to one.
    weights = importance_weights(found.logps[:, :exist], found.drawn[:, :exist], found.threshold)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


@pytest.mark.slow  # many draws
def test_eight_lists_are_distinct_whenever_eight_exist(params):
    n: Any = np.tile([3, 4], 500)
    for sharp in (1.0, 3.0):
        scaled = jax.tree.map(lambda x, s=sharp: s * x, params)
        found = run(scaled, n, 8, Sampling(method="distinct"), 1000, seed=9)
        assert found.valid.all()
        drawn = np.sort(places(found, 4))
        assert (drawn >= 0).all()
        assert (drawn[:, 1:] != drawn[:, :-1]).all()


def test_a_nucleus_leaves_lists_out_of_the_draw(params):
    found = run(params, 3, 16, Sampling(top_p=0.5, method="distinct"), 50)
    assert (found.valid.sum(-1) < 16).all()
    everything = np.where(found.valid, np.exp(found.drawn), 0).sum(-1)
    np.testing.assert_allclose(everything, 1, atol=1e-5)


def test_children_have_their_parents_score_as_maximum():
    rng = np.random.default_rng(0)
    parent: Any = rng.gumbel(size=200).astype(np.float32)
    logps: Any = np.log(rng.dirichlet(np.ones(6), 200)).astype(np.float32)
    logps[:, 2] = -np.inf
    noise: Any = rng.gumbel(size=(200, 6)).astype(np.float32)
    children = np.asarray(gumbel_children(parent, logps, noise))
    np.testing.assert_allclose(children.max(-1), parent, atol=1e-5)
    assert (children[:, 2] == -np.inf).all()
    assert np.isfinite(np.delete(children, 2, axis=-1)).all()


# ---------------------------------------------------------------------------- beam search


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_a_wide_beam_finds_all_lists_in_order_of_probability(params, n):
    logps = log_probabilities(params, n)
    found = run(params, n, 65, Sampling(method="beam"))
    order = places(found, n)[0][found.valid[0]]
    assert len(order) == len(logps)
    np.testing.assert_allclose(found.logps[0][found.valid[0]], np.sort(logps)[::-1], atol=1e-4)
    np.testing.assert_allclose(logps[order], np.sort(logps)[::-1], atol=1e-4)
    assert found.threshold[0] == -np.inf


@pytest.mark.slow  # many examples
def test_a_narrow_beam_is_right_wherever_it_says_so():
    """Over random models: proven results are the enumerated best; wider beams prove more."""
    proven = {1: 0, 8: 0}
    for seed in range(8):
        params = jax.tree.map(lambda x: 1.4 * x, decoder.init_params(CFG, jax.random.key(seed)))
        logps = log_probabilities(params, 4)
        for width in proven:
            found = run(params, 4, 1, Sampling(method="beam", width=width))
            best = places(found, 4)[0, 0]
            assert found.valid.all()
            assert found.logps[0, 0] == pytest.approx(logps[best], abs=1e-4)
            if found.scores[0, 0] >= found.threshold[0]:
                proven[width] += 1
                assert logps[best] == pytest.approx(logps.max(), abs=1e-4)
            elif width == 8:
                # Every list left out is at most the bound.
                assert np.delete(logps, best).max() <= found.threshold[0] + 1e-4
    assert proven[1] < proven[8]
    assert proven[8] > 4


def test_a_shorter_grammar_bounds_what_is_found(params):
    found = run(params, 4, 8, Sampling(method="beam"), grammar=build_grammar(SPELLING, max_ids=1))
    written = {read_list(SPELLING, row.tolist()) for row in found.tokens[0][found.valid[0]]}
    assert written == {(), (1,), (2,), (3,), (4,)}


# ---------------------------------------------------------------------------- batches and devices


@pytest.mark.parametrize("method", ["distinct", pytest.param("beam", marks=pytest.mark.slow)])
def test_results_depend_neither_on_the_batch_nor_on_the_devices(params, method):
    rng = np.random.default_rng(0)
    trunk: Any = rng.integers(0, 32, (8, 12)).astype(np.int32)
    lengths = np.array([12, 1, 7, 3, 9, 5, 11, 2], np.int32)
    n = np.array([4, 0, 3, 1, 4, 2, 4, 4], np.int32)
    keys = jax.random.split(jax.random.key(1), 8)
    sampling = Sampling(method=method)
    options: Any = {
        "branches": 4, "max_tokens": R, "end": 31, "sampling": sampling, "grammar": GRAMMAR
    }  # fmt: skip
    search = ListSearch(CFG, one_device(), **options)
    one = search(params, unstacked(params), trunk, lengths, keys, n)
    turned = search(params, unstacked(params), trunk[::-1], lengths[::-1], keys[::-1], n[::-1])
    np.testing.assert_array_equal(one.tokens, turned.tokens[::-1])
    if method == "beam":
        return
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    spread = jax.device_put(params, param_shardings(CFG, mesh))
    eight = ListSearch(CFG, mesh, **options)(spread, unstacked(spread), trunk, lengths, keys, n)
    np.testing.assert_array_equal(one.tokens, eight.tokens)
    np.testing.assert_allclose(one.logps, eight.logps, atol=1e-4)
    np.testing.assert_allclose(one.threshold, eight.threshold, atol=1e-3)


def test_prompts_computed_whole_by_a_flash_kernel_are_searched_alike(params):
    """Splash attention, interpreted here, over two data shards."""
    trunk: Any = np.random.default_rng(0).integers(0, 32, (4, 128)).astype(np.int32)
    asked: Any = (
        trunk, np.array([128, 1, 70, 9], np.int32), jax.random.split(jax.random.key(1), 4),
        np.array([4, 2, 3, 1], np.int32),
    )  # fmt: skip
    options: Any = {
        "branches": 4, "max_tokens": R, "end": 31, "sampling": Sampling(method="distinct"),
        "grammar": GRAMMAR,
    }  # fmt: skip
    plain = ListSearch(CFG, one_device(), **options)(params, unstacked(params), *asked)
    mesh = make_mesh(2, 1, 1, devices=jax.devices()[:2])
    spread = jax.device_put(params, param_shardings(CFG, mesh))
    flash = dataclasses.replace(CFG, attention="splash")
    whole = ListSearch(flash, mesh, **options)(spread, unstacked(spread), *asked)
    np.testing.assert_array_equal(plain.tokens, whole.tokens)
    np.testing.assert_allclose(plain.logps, whole.logps, atol=1e-4)


def test_settings_without_sense_are_refused():
    with pytest.raises(ValueError, match="distinct lists must be drawn"):
        Sampling(temperature=0.0, method="distinct")
    with pytest.raises(ValueError, match="width = 0 must be positive"):
        Sampling(method="beam", width=0)
