"""The sampler: its log-probabilities, its independence of the batch, its choices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.grammar import Spelling, build_grammar, read_list
from dynarag_jax.policy.logprobs import token_logps
from dynarag_jax.sampling.choice import Settings, best, choose, keep_top_p
from dynarag_jax.sampling.sampler import Sampling, make_sampler
from dynarag_jax.sharding import make_mesh

CFG = DecoderConfig(
    vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64
)
SPELLING = Spelling(
    opening=(10,), ids=tuple((i,) for i in range(1, 7)), between=(20, 10), closing=(20,),
    none=(30,), end=31,
)  # fmt: skip
GRAMMAR = build_grammar(SPELLING)
B, P, N = 8, 12, 3
R = SPELLING.longest(6)


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(CFG, jax.random.key(2))


def requests(seed=0):
    """Prompts of 1 to 12 tokens with junk behind them, a key each, and ids shown."""
    rng = np.random.default_rng(seed)
    trunk = rng.integers(0, 32, (B, P)).astype(np.int32)
    lengths = np.array([12, 1, 7, 3, 9, 5, 11, 2], np.int32)
    keys = jax.random.split(jax.random.key(seed), B)
    return trunk, lengths, keys, np.array([6, 0, 3, 1, 6, 2, 5, 4], np.int32)


def one_device():
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


_SAMPLERS = {}


def sampler(sampling, lists=True, mesh=None):
    key = sampling, lists, mesh
    if key not in _SAMPLERS:
        _SAMPLERS[key] = make_sampler(
            CFG, mesh or one_device(), branches=N, max_tokens=R, end=SPELLING.end,
            sampling=sampling, grammar=GRAMMAR if lists else None,
        )  # fmt: skip
    return _SAMPLERS[key]


@jax.jit
def forward(params, trunk, lengths, tokens, n, is_list):
    _, hidden = decoder.trunk_and_branches(CFG, params, trunk, lengths, tokens)
    return token_logps(CFG, params, hidden, tokens, GRAMMAR, is_list, n).constrained


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "free"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5, 0.8)], ids=["plain", "cool-top-p"])
def test_log_probabilities_are_the_training_forwards_at_temperature_one(params, sampling, lists):
    trunk, lengths, keys, n = requests()
    out = sampler(sampling, lists)(params, trunk, lengths, keys, n if lists else None)
    logps = forward(params, trunk, lengths, out.tokens, n, np.full(B, lists))
    real = np.arange(R) < np.asarray(out.lengths)[..., None]
    np.testing.assert_allclose(out.logps, np.where(real, logps, 0.0).sum(-1), atol=1e-4)
    tokens = np.asarray(out.tokens)
    assert not tokens[~real].any()
    ends = tokens == SPELLING.end
    np.testing.assert_array_equal(ends.any(-1), out.finished)
    # The end is the last token counted; without an end all R are.
    last = np.where(ends.any(-1), ends.argmax(-1) + 1, R)
    np.testing.assert_array_equal(out.lengths, last)
    if lists:
        assert out.finished.all()
    else:
        assert not out.finished.all()
    assert (np.asarray(out.logps) < 0).any()


def test_branches_differ_and_the_key_decides(params):
    trunk, lengths, keys, n = requests()
    draw = sampler(Sampling())
    out = draw(params, trunk, lengths, keys, n)
    again = draw(params, trunk, lengths, keys, n)
    other = draw(params, trunk, lengths, jax.random.split(jax.random.key(5), B), n)
    np.testing.assert_array_equal(out.tokens, again.tokens)
    assert (np.asarray(out.tokens) != np.asarray(other.tokens)).any()
    assert (np.asarray(out.tokens[:, 0]) != np.asarray(out.tokens[:, 1])).any()


def test_result_does_not_depend_on_the_batch(params):
    """The same request among other neighbors, in another row, and behind more padding."""
    trunk, lengths, keys, n = requests()
    draw = sampler(Sampling(0.9, 0.95))
    alone = draw(params, trunk, lengths, keys, n)
    others, _, other_keys, other_n = requests(seed=1)
    others[3], other_n[3] = trunk[0], n[0]
    other_lengths = lengths[::-1].copy()
    other_lengths[3] = lengths[0]
    amid = draw(params, others, other_lengths, other_keys.at[3].set(keys[0]), other_n)
    np.testing.assert_array_equal(alone.tokens[0], amid.tokens[3])
    np.testing.assert_allclose(alone.logps[0], amid.logps[3], atol=1e-5)
    wider = np.concatenate([trunk, np.full((B, 4), 9, np.int32)], axis=1)
    padded = draw(params, wider, lengths, keys, n)
    np.testing.assert_array_equal(alone.tokens, padded.tokens)
    np.testing.assert_allclose(alone.logps, padded.logps, atol=1e-5)


@pytest.mark.slow
def test_eight_devices_sample_what_one_does(params):
    trunk, lengths, keys, n = requests()
    one = sampler(Sampling())(params, trunk, lengths, keys, n)
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    spread = jax.device_put(params, param_shardings(CFG, mesh))
    eight = sampler(Sampling(), mesh=mesh)(spread, trunk, lengths, keys, n)
    np.testing.assert_array_equal(one.tokens, eight.tokens)
    np.testing.assert_allclose(one.logps, eight.logps, atol=1e-4)


def test_greedy_lists_take_the_best_allowed_token(params):
    trunk, lengths, keys, n = requests()
    out = sampler(Sampling(temperature=0.0))(params, trunk, lengths, keys, n)
    # All branches agree, and no other next token, put in its place, is more probable.
    np.testing.assert_array_equal(out.tokens[:, :1].repeat(N, 1), out.tokens)
    written = read_list(SPELLING, out.tokens[0, 0].tolist())
    assert len(written) <= 6
    first = np.asarray(out.tokens[:, :1, :1])
    best = forward(params, trunk, lengths, first, n, np.full(B, True))
    for token in (10, 30):
        tried = forward(params, trunk, lengths, np.full_like(first, token), n, np.full(B, True))
        assert (np.asarray(tried) <= np.asarray(best) + 1e-6).all()


# ---------------------------------------------------------------------------- the choice of a token


def test_the_best_is_argmaxs_also_among_equals_and_where_nothing_is_left():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (50, 3, 9)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    scores[0] = -np.inf
    np.testing.assert_array_equal(best(jnp.asarray(scores)), scores.argmax(-1))
    # Broken scores give an index all the same; the engine refuses them by their log-probability.
    assert 0 <= int(best(jnp.full(9, jnp.nan))) < 9


def test_draws_are_jaxs_categorical_and_rows_without_temperature_greedy():
    scores = 3 * jax.random.normal(jax.random.key(0), (4, 8, 50))
    keys = jax.random.split(jax.random.key(1), (4, 8))
    zeros = jnp.zeros(4)
    temperature = jnp.array([0.0, 0.5, 1.0, 2.0])
    settings = Settings(temperature, zeros + 1, zeros.astype(jnp.int32), zeros)
    chosen = choose(scores, keys, settings, random=True, filters=False)
    np.testing.assert_array_equal(chosen[0], scores[0].argmax(-1))
    for row in range(1, 4):
        expected = jax.vmap(jax.random.categorical)(keys[row], scores[row] / temperature[row])
        np.testing.assert_array_equal(chosen[row], expected)
    assert len({tuple(row) for row in chosen.tolist()}) > 1


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.75, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_the_sum(top_p):
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=2, size=(20, 9)).astype(np.float32)
    scores[::2, 4:7] = -np.inf  # what the grammar forbids
    kept = np.isfinite(jax.jit(lambda s: keep_top_p(s, top_p))(scores))
    p = np.exp(scores.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    for row in range(20):
        order = np.argsort(-p[row])
        size = int(np.searchsorted(np.cumsum(p[row][order]), top_p)) + 1
        assert set(np.flatnonzero(kept[row])) == set(order[:size])


def test_top_p_always_keeps_the_best_and_changes_no_score():
    scores = jnp.array([[0.0, 30.0, -jnp.inf, 1.0], [2.0, 2.0, 2.0, 2.0]])
    out = np.asarray(keep_top_p(scores, 1e-6))
    assert out[0].tolist() == [-np.inf, 30.0, -np.inf, -np.inf]
    # Equal candidates stay together: which of them is dropped would be an accident of their order.
    assert out[1].tolist() == [2.0] * 4


def test_temperature_and_top_p_shape_the_draws(params):
    """First tokens of free samples: only those of the nucleus, at its tempered frequencies."""
    lengths, n = jnp.full(B, P), None
    trunk: Any = np.broadcast_to(requests()[0][:1], (B, P)).copy()
    sampling = Sampling(temperature=0.7, top_p=0.6)
    draw = make_sampler(CFG, one_device(), branches=500, max_tokens=1, end=31, sampling=sampling)
    keys = jax.random.split(jax.random.key(7), B)
    tokens = np.asarray(draw(params, trunk, lengths, keys, n).tokens).ravel()
    hidden, _ = jax.jit(lambda p: decoder.prefill(CFG, p, trunk[:1], lengths[:1]))(params)
    scores = np.asarray(hidden[0, -1] @ params["embedding"].T, np.float64) / 0.7
    p = np.exp(scores - scores.max())
    p /= p.sum()
    order = np.argsort(-p)
    nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), 0.6)) + 1]
    expected = np.zeros(32)
    expected[nucleus] = p[nucleus] / p[nucleus].sum()
    found = np.bincount(tokens, minlength=32) / len(tokens)
    assert len(nucleus) > 1
    # 4,000 draws: a standard error below 0.008.
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert not found[expected == 0].any()


@pytest.mark.parametrize("setting", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_without_sense_are_refused(setting):
    with pytest.raises(ValueError, match="must"):
        Sampling(**setting)
