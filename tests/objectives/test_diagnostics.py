"""Figures of sampled lists, against loops over lists and against all lists enumerated."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.objectives.diagnostics import binary_entropy, decisions, list_figures
from dynarag_jax.objectives.scores import LossInputs


def inputs(seed, counts=((2, 1, 0), (1, 1, 3))):
    """Groups of lists of random lengths, a token a step, decisions at all but the first group's."""
    rng = np.random.default_rng(seed)
    shape = (2, 3, 4)
    lengths = rng.integers(1, 5, shape[:2])
    where = np.arange(4) < lengths[..., None]
    zeros = jnp.zeros(shape)
    return LossInputs(
        unconstrained_logps=zeros,
        constrained_logps=jnp.asarray(-rng.uniform(0.1, 2, shape)),
        token_mask=jnp.asarray(where),
        supervised=zeros[..., 0],
        preferred=jnp.zeros(2, bool),
        reference=zeros,
        behavior=jnp.asarray(-rng.uniform(0.1, 2, shape)),
        rewards=jnp.asarray(rng.uniform(0, 1, shape[:2])),
        counts=jnp.asarray(counts, jnp.float32),
        prompt_logps=None,
        prompt_mask=jnp.zeros((2, 0), bool),
        id_scores=None,
        relevance=jnp.zeros((2, 0)),
        shown=jnp.zeros((2, 0), bool),
        step_rewards=zeros,
        step_ends=jnp.asarray(where),
        decisions=jnp.asarray(-rng.uniform(0.01, 3, shape)),
        decided=jnp.asarray(where & (rng.random(shape) < 0.8)),
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_figures_are_what_loops_over_samples_say(seed):
    scores = inputs(seed)
    found = {name: float(a / b) for name, (a, b) in list_figures(scores).items()}
    ends, mask = np.asarray(scores.step_ends), np.asarray(scores.token_mask)
    policy, behavior = np.asarray(scores.constrained_logps), np.asarray(scores.behavior)
    k, reward, entropy = [], [], []
    moved = {step: [] for step in range(5)}
    for row in range(2):
        weights, sizes, rewards = [], [], []
        for i, count in enumerate(np.asarray(scores.counts)[row]):
            for _ in range(int(count)):
                own = mask[row, i]
                weights.append(math.exp((policy[row, i] - behavior[row, i])[own].sum()))
                sizes.append(ends[row, i].sum() - 1)
                rewards.append(float(scores.rewards[row, i]))
                for t in np.flatnonzero(own):
                    moved[min(t, 4)].append(behavior[row, i, t] - policy[row, i, t])
                    if scores.decided[row, i, t]:
                        p = math.exp(scores.decisions[row, i, t])
                        entropy.append(-p * math.log(p) - (1 - p) * math.log(1 - p))
        k.append(np.average(sizes, weights=weights))
        reward.append(np.average(rewards, weights=weights))
    assert found["k"] == pytest.approx(np.mean(k), rel=1e-4)
    assert found["expected_reward"] == pytest.approx(np.mean(reward), rel=1e-4)
    assert found["stop_entropy"] == pytest.approx(np.mean(entropy), rel=1e-4)
    for step in range(4):
        if moved[step]:
            expected = np.mean(moved[step])
            name = f"kl_to_sampler/step_{step + 1}"
            assert found[name] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    # Parts of a batch add up.
    halves = [list_figures(jax.tree.map(lambda x, s=s: x[s : s + 1], scores)) for s in (0, 1)]
    for name, (total, count) in list_figures(scores).items():
        assert sum(float(h[name][0]) for h in halves) == pytest.approx(float(total), abs=1e-4)
        assert sum(float(h[name][1]) for h in halves) == pytest.approx(float(count))
    assert list_figures(scores._replace(step_ends=None)) == {}


def test_decisions_are_summed_within_their_steps():
    logps = jnp.log(jnp.array([0.5, 0.25, 0.1, 0.9, 0.8, 0.5]))
    deciding = jnp.array([True, False, True, True, False, True])
    ends = jnp.array([False, True, False, False, True, True])
    found = jnp.exp(decisions(logps, deciding, ends))
    np.testing.assert_allclose(found, [1, 0.5, 1, 1, 0.09, 0.5], rtol=1e-5)


def test_the_entropy_of_a_coin():
    p = np.array([0.5, 0.9, 0.1, 1.0, 1e-12])
    expected = [math.log(2), 0.325083, 0.325083, 0.0, 0.0]
    np.testing.assert_allclose(binary_entropy(jnp.log(jnp.asarray(p))), expected, atol=3e-6)


def test_samples_give_the_policy_s_own_length_and_reward():
    """Lists of another policy, weighted, against the sum over all lists of this one."""
    rng = np.random.default_rng(0)
    lists = [p for n in range(4) for p in itertools.permutations(range(3), n)]
    drawn, policy = (rng.dirichlet(np.ones(len(lists))) for _ in range(2))
    rewards = rng.uniform(size=len(lists))
    samples = 400_000
    counts = rng.multinomial(samples, drawn)
    sizes = np.array([len(one) for one in lists])
    shape = (1, len(lists), 4)
    token = np.arange(4) == 0  # a list's whole probability at its first token
    scores = inputs(0)._replace(
        token_mask=jnp.asarray(np.arange(4) <= sizes[:, None])[None],
        constrained_logps=jnp.asarray(np.log(policy)[:, None] * token).reshape(shape),
        behavior=jnp.asarray(np.log(drawn)[:, None] * token).reshape(shape),
        rewards=jnp.asarray(rewards)[None],
        counts=jnp.asarray(counts, jnp.float32)[None],
        step_ends=jnp.asarray(np.arange(4) <= sizes[:, None])[None],
        decisions=None,
        decided=None,
    )
    found = {name: float(a / b) for name, (a, b) in list_figures(scores).items()}
    assert found["k"] == pytest.approx(policy @ sizes, rel=0.01)
    assert found["expected_reward"] == pytest.approx(policy @ rewards, rel=0.01)
    assert "stop_entropy" not in found
