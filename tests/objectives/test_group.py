"""Group objectives on hand-made cases; test_trl holds them against TRL's trainers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.objectives.group import (
    clipped_surrogate,
    kl_estimate,
    leave_one_out,
    posterior,
    relative,
    step_advantages,
)


def test_leave_one_out_takes_the_mean_of_the_others():
    # Rewards 1, 0, 0.5: the others' means are 0.25, 0.75, 0.5.
    found = leave_one_out(jnp.array([[1.0, 0.0, 0.5]]), jnp.ones((1, 3)))
    np.testing.assert_allclose(found, [[0.75, -0.75, 0.0]], atol=1e-6)
    # The first was sampled three times: four samples of 1, 1, 1 and 0.
    found = leave_one_out(jnp.array([[1.0, 0.0, 9.0]]), jnp.array([[3.0, 1.0, 0.0]]))
    np.testing.assert_allclose(found, [[1 / 3, -1.0, 0.0]], atol=1e-6)
    for counts in ([[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]):
        assert not leave_one_out(jnp.array([[1.0, 0.0, 9.0]]), jnp.array(counts)).any()


def test_relative_advantages_are_standardized_within_the_group():
    # Samples 1, 1, 0, 0: mean 0.5, standard deviation sqrt(4 * 0.25 / 3).
    rewards, counts = jnp.array([[1.0, 0.0, 5.0]]), jnp.array([[2.0, 2.0, 0.0]])
    deviation = np.sqrt(1 / 3)
    found = relative(rewards, counts, epsilon=0.0)
    np.testing.assert_allclose(found, [[0.5 / deviation, -0.5 / deviation, 0]], rtol=1e-6)
    np.testing.assert_allclose(relative(rewards, counts, scale=False), [[0.5, -0.5, 0]], rtol=1e-6)
    # 0.7474619 three times has a float32 mean beside it, which epsilon would make an advantage.
    alike = relative(jnp.full((1, 3), 0.7474619), jnp.array([[1.0, 1.0, 4.0]]))
    assert not np.asarray(alike).any()


@pytest.mark.parametrize("advantages", [leave_one_out, relative])
@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(1, 4)), min_size=2, max_size=5),
    st.integers(0, 3),
)
def test_a_branch_with_a_count_is_that_many_samples(advantages, branches, padding):
    rewards = np.float32([[r for r, _ in branches] + [7] * padding])
    counts = np.float32([[c for _, c in branches] + [0] * padding])
    written_out = np.repeat(rewards, counts[0].astype(int), axis=1)
    found = np.asarray(advantages(jnp.asarray(rewards), jnp.asarray(counts)))
    expected = np.asarray(advantages(jnp.asarray(written_out), jnp.ones(written_out.shape)))
    repeated = np.repeat(found, counts[0].astype(int), axis=1)
    np.testing.assert_allclose(repeated, expected, rtol=1e-3, atol=1e-3)
    assert not found[counts == 0].any()
    assert abs(float(repeated.sum())) < 2e-2  # of a group they sum to 0


def test_the_surrogate_is_pessimistic_and_its_gradient_reinforces():
    log_ratio = jnp.log(jnp.array([1.0, 1.5, 0.5, 1.5, 0.5]))
    advantages = jnp.array([2.0, 2.0, 2.0, -2.0, -2.0])
    out = clipped_surrogate(log_ratio, advantages, 0.2, 0.3)
    # -min(r A, clip(r, 0.8, 1.3) A)
    np.testing.assert_allclose(out.loss, [-2.0, -2.6, -1.0, 3.0, 1.6], rtol=1e-6)
    assert out.clipped.tolist() == [False, True, False, False, True]
    gradient = jax.grad(lambda x: clipped_surrogate(x, advantages, 0.2, 0.3).loss.sum())(log_ratio)
    np.testing.assert_allclose(gradient, [-2.0, 0.0, -1.0, 3.0, 0.0], rtol=1e-6)


def test_the_kl_estimate_is_never_negative_and_unbiased():
    pi, ref = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    estimate = np.asarray(kl_estimate(jnp.log(pi), jnp.log(ref)))
    np.testing.assert_allclose(estimate, ref / pi - np.log(ref / pi) - 1, rtol=1e-5)
    assert (estimate >= 0).all()
    assert (pi * estimate).sum() == pytest.approx((pi * np.log(pi / ref)).sum(), rel=1e-5)
    assert (np.asarray(kl_estimate(jnp.log(pi), jnp.log(pi))) == 0).all()


def test_the_posterior_of_samples_estimates_the_exact_expectation():
    """Over all lists of a case small enough to write down: DRO's gradient on m samples of the
    policy against that of log sum of pi(list) p(answer | list), which it estimates."""
    rng = np.random.default_rng(0)
    logits, p = rng.normal(size=16), rng.uniform(0.01, 1, 16) ** 3  # a list each
    pi = np.exp(logits) / np.exp(logits).sum()
    exact = pi * p / (pi * p).sum() - pi  # by the logits: E under the posterior less that under pi
    assert np.allclose(
        exact, jax.grad(lambda x: jax.nn.logsumexp(jax.nn.log_softmax(x) + np.log(p)))(logits),
        atol=1e-6,
    )  # fmt: skip
    biases, deviations = [], []
    for m in (2, 8, 32, 128):
        counts = rng.multinomial(m, pi, size=20000).astype(np.float32)
        estimate = np.asarray(posterior(jnp.float32(np.tile(p, (20000, 1))), jnp.array(counts)))
        # The gradient of sum of w log pi is w - pi, since the weights sum to 1.
        assert np.allclose(estimate.sum(-1), 1, atol=1e-5)
        off = estimate - pi - exact
        biases.append(np.linalg.norm(off.mean(0)))
        deviations.append(np.sqrt((off**2).sum(-1).mean()))
    print("samples 2, 8, 32, 128: bias", np.round(biases, 4), "deviation", np.round(deviations, 3))
    # Bias of order 1/m and deviation of order 1/sqrt(m), from 8 samples on.
    assert biases[0] > biases[1] > biases[2]
    assert biases[1] / biases[2] > 2.5 and biases[3] < 0.01
    assert 1.6 < deviations[1] / deviations[2] < 2.4 and 1.6 < deviations[2] / deviations[3] < 2.4


def test_the_posterior_of_nothing_is_nothing():
    zero = posterior(jnp.zeros((1, 3)), jnp.ones((1, 3)))
    assert not np.asarray(zero).any()
    tiny = posterior(jnp.array([[1e-30, 3e-30, 9.0]]), jnp.array([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(tiny, [[0.25, 0.75, 0.0]], rtol=1e-4)


def by_loops(rewards, ends, counts, scale, leave_out):
    """Process supervision written out: every sample by itself, every step in a loop."""
    samples = [(i, c) for i, count in enumerate(counts) for c in range(int(count))]
    steps = {(i, c): [rewards[i][t] for t in np.flatnonzero(ends[i])] for i, c in samples}
    every = [x for own in steps.values() for x in own]
    out = np.zeros(rewards.shape)
    for i, c in samples:
        for t in range(rewards.shape[1]):
            for later in np.flatnonzero(ends[i]):
                if later < t or len(samples) < 2:
                    continue
                others = [x for key, own in steps.items() if key != (i, c) for x in own]
                if leave_out:
                    out[i, t] += rewards[i][later] - np.mean(others) if others else 0.0
                else:
                    away = rewards[i][later] - np.mean(every)
                    deviation = np.std(every, ddof=1) if len(every) > 1 else 0.0
                    out[i, t] += away / (deviation + 1e-4) if scale else away
    # Copies of a branch are alike, and stand once.
    return out / np.maximum(counts, 1)[:, None]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.sampled_from([(True, False), (False, False), (False, True)]),
)
def test_credit_of_steps_is_process_supervision_of_every_sample(seed, counts, how):
    rng = np.random.default_rng(seed)
    rewards = np.round(rng.uniform(-1, 1, (len(counts), 4)), 2)
    ends = rng.random(rewards.shape) < 0.6
    scale, leave_out = how
    found = step_advantages(
        jnp.asarray(rewards), jnp.asarray(ends), jnp.asarray(counts, jnp.float32),
        scale=scale, leave_out=leave_out,
    )  # fmt: skip
    expected = by_loops(rewards, ends, np.array(counts), scale, leave_out)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_credit_of_steps_by_hand():
    # Two lists: gains 0.6 and 0.2, then stop; gain 0.1, then stop. Their mean is 0.18.
    rewards = jnp.array([[[0.6, 0.2, 0.0], [0.1, 0.0, 9.0]]])
    ends = jnp.array([[[True, True, True], [True, True, False]]])
    found = step_advantages(rewards, ends, jnp.ones((1, 2)), scale=False)
    expected = [[0.26, -0.16, -0.18], [-0.26, -0.18, 0.0]]
    np.testing.assert_allclose(found, [expected], atol=1e-6)
