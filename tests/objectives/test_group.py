"""Group objectives on hand-made cases; test_trl holds them against TRL's trainers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.objectives.group import clipped_surrogate, kl_estimate, leave_one_out, relative


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
