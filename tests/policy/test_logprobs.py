"""Log-probabilities under the grammar: normalized over all lists, and what the sampler follows."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.policy import logprobs
from dynarag_jax.policy.grammar import Spelling, build_grammar, read_list
from dynarag_jax.policy.logprobs import first_id_scores, prompt_logps, said_again, token_logps
from dynarag_jax.sampling.sampler import Sampling, sample

CFG = DecoderConfig(
    vocab=32, width=16, layers=2, heads=2, kv_heads=1, head_size=8, mlp=24, positions=64
)
# Ids 1, 2, 3 spelled so that the first is the beginning of the second.
SPELLING = Spelling(
    opening=(10,), ids=((1,), (1, 2), (2,)), between=(20, 21), closing=(20,), none=(30,), end=31
)
LISTS: list[tuple[int, ...]] = [
    ids for k in range(4) for ids in itertools.permutations((1, 2, 3), k)
]
R = SPELLING.longest(3)


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(CFG, jax.random.key(4))


def spelled(lists):
    tokens: Any = np.zeros((1, len(lists), R), np.int32)
    for row, ids in enumerate(lists):
        word = SPELLING.spell(ids)
        tokens[0, row, : len(word)] = word
    real = np.arange(R) < np.array([len(SPELLING.spell(ids)) for ids in lists])[:, None]
    return tokens, real


@pytest.fixture(scope="module")
def probabilities(params):
    """Of all 16 lists over three passages, by the forward pass."""
    trunk, lengths = jnp.array([[5, 6, 7, 0]]), jnp.array([3])
    tokens, real = spelled(LISTS)

    @jax.jit
    def run(params, tokens):
        _, hidden = decoder.trunk_and_branches(CFG, params, trunk, lengths, tokens)
        grammar = build_grammar(SPELLING)
        return token_logps(
            CFG, params, hidden, tokens, grammar, jnp.array([True]), jnp.array([3])
        ).constrained

    return np.exp(np.where(real, np.asarray(run(params, tokens), np.float64)[0], 0.0).sum(-1))


def test_probabilities_of_all_lists_sum_to_one(probabilities):
    assert len(probabilities) == 16
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert probabilities.min() > 1e-4


def test_samples_follow_the_enumerated_probabilities(params, probabilities):
    trunk, lengths = jnp.array([[5, 6, 7, 0]]), jnp.array([3])
    draws = 20_000
    out = jax.jit(
        lambda params: sample(
            CFG, params, trunk, lengths, jax.random.split(jax.random.key(0), 1),
            branches=draws, max_tokens=R, end=31, sampling=Sampling(),
            grammar=build_grammar(SPELLING), n_passages=jnp.array([3]),
        )
    )(params)  # fmt: skip
    place: dict[tuple[int, ...], int] = {ids: i for i, ids in enumerate(LISTS)}
    rows, numbers = np.unique(np.asarray(out.tokens[0]), axis=0, return_counts=True)
    counts = np.zeros(len(LISTS))
    for row, number in zip(rows, numbers, strict=True):
        counts[place[read_list(SPELLING, row.tolist())]] += number
    assert counts.sum() == draws
    expected = probabilities / probabilities.sum() * draws
    # Fixed seed: the statistic is a fixed number, not one that fails once in a hundred runs.
    assert scipy.stats.chisquare(counts, expected).pvalue > 0.01
    # Each sample carries the log-probability that the forward pass gives its list.
    logps = np.asarray(out.logps[0])
    for tokens, logp in zip(np.asarray(out.tokens[0])[:200], logps[:200], strict=True):
        expected_logp = np.log(probabilities[place[read_list(SPELLING, tokens.tolist())]])
        assert logp == pytest.approx(expected_logp, abs=1e-4)


# ---------------------------------------------------------------------------- free and policy


def random_hidden(b, n, r, seed=0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(b, n, r, CFG.width)).astype(np.float32)


def log_softmax(scores):
    scores = scores.astype(np.float64)
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_free_is_over_the_vocabulary_and_policy_over_what_is_allowed(params):
    tokens: Any = np.zeros((2, 1, 8), np.int32)
    tokens[:, 0] = [*SPELLING.spell([3, 1]), 0]
    hidden = random_hidden(2, 1, 8)
    out = jax.jit(
        lambda params: token_logps(
            CFG, params, hidden, tokens, build_grammar(SPELLING),
            jnp.array([True, False]), jnp.array([3, 3]),
        )
    )(params)  # fmt: skip
    scores = hidden @ np.asarray(params["embedding"]).T
    rows = np.arange(8)
    np.testing.assert_allclose(
        out.unconstrained[:, 0], log_softmax(scores)[:, 0, rows, tokens[0, 0]], atol=1e-5
    )
    # The second row is an answer: nothing constrains it.
    np.testing.assert_array_equal(out.constrained[1], out.unconstrained[1])
    # [3], [1] is 10, 2, 20, 21, 1, 20, 31: what stands beside each token by hand.
    beside = [[10, 30], [1, 2], [20], [21, 31], [1], [2, 20], [21, 31]]
    for place, choices in enumerate(beside):
        among = log_softmax(scores[0, 0, place, choices])
        expected = among[choices.index(tokens[0, 0, place])]
        assert out.constrained[0, 0, place] == pytest.approx(expected, abs=1e-5)


def test_a_forbidden_token_has_probability_zero_and_leaves_gradients_finite(params):
    # [1], [1] repeats; [3] is not shown to the second row; the third branch is empty.
    tokens: Any = np.zeros((2, 2, 8), np.int32)
    tokens[0, 0, :7] = [10, 1, 20, 21, 1, 20, 31]
    tokens[1, 0, :4] = SPELLING.spell([3])
    tokens[1, 1, :4] = SPELLING.spell([1])
    real = tokens > 0

    def total(params):
        out = token_logps(
            CFG, params, random_hidden(2, 2, 8), tokens, build_grammar(SPELLING),
            jnp.array([True, True]), jnp.array([3, 2]),
        )  # fmt: skip
        logps = jnp.where(real, out.constrained, 0.0).sum(-1)
        return jnp.where(jnp.isfinite(logps), logps, 0.0).sum(), logps

    (_, logps), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert logps[0].tolist() == [-np.inf, 0.0]
    assert logps[1, 0] == -np.inf
    assert -20 < logps[1, 1] < 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert np.abs(gradient["embedding"]).max() > 0


def test_projection_in_chunks_equals_the_whole_with_gradients(params, monkeypatch):
    tokens, real = spelled(LISTS)
    hidden = random_hidden(1, len(LISTS), R)

    def total(hidden):
        out = token_logps(
            CFG, params, hidden, tokens, build_grammar(SPELLING), jnp.array([True]), jnp.array([3])
        )
        return jnp.where(real, out.unconstrained + 2 * out.constrained, 0.0).sum(), out

    whole = jax.jit(jax.value_and_grad(lambda h: total(h), has_aux=True))(hidden)
    monkeypatch.setattr(logprobs, "WHOLE", 0)
    monkeypatch.setattr(logprobs, "CHUNK", 50 * CFG.vocab)  # 176 tokens: three chunks and a rest
    chunks = jax.jit(jax.value_and_grad(lambda h: total(h), has_aux=True))(hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, chunks)


def test_prompt_logps_are_those_of_the_next_token(params):
    rng = np.random.default_rng(0)
    hidden = random_hidden(2, 1, 6)[:, 0]
    trunk: Any = rng.integers(0, CFG.vocab, (2, 6)).astype(np.int32)
    expected = log_softmax(hidden @ np.asarray(params["embedding"]).T)
    expected = np.take_along_axis(expected[:, :-1], trunk[:, 1:, None], axis=-1)[..., 0]
    logps = jax.jit(lambda params: prompt_logps(CFG, params, hidden, trunk))(params)
    np.testing.assert_allclose(logps, expected, atol=1e-5)


def test_first_id_scores_are_the_logits_of_the_ids_after_the_opening(params):
    hidden = random_hidden(2, 3, 5)
    scores = jax.jit(lambda p: first_id_scores(CFG, p, hidden, build_grammar(SPELLING)))(params)
    logits = hidden @ np.asarray(params["embedding"]).T
    # Position 1 predicts what follows the opening; ids 1 and 2 both begin with token 1.
    np.testing.assert_allclose(scores, logits[:, 0, 1, [1, 1, 2]], rtol=1e-5, atol=1e-5)


def test_said_again_is_a_pair_that_stands_earlier_in_its_row():
    trunk = np.random.default_rng(0).integers(0, 3, (5, 12))
    expected = [
        [(row[i], row[i + 1]) in [(row[j], row[j + 1]) for j in range(i)] for i in range(11)]
        for row in trunk
    ]
    found = np.asarray(jax.jit(said_again)(jnp.asarray(trunk)))
    assert found.tolist() == expected
    assert 0 < found.sum() < found.size
