"""Group objectives: sampled branches of a prompt judged against each other by their rewards.

A branch that was sampled several times stands once, with its count: every function here gives what
it would give if each sample stood by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


def leave_one_out(rewards: jax.Array, counts: jax.Array) -> jax.Array:
    """Advantage of a sample over the mean of the others (REINFORCE leave-one-out).

    arXiv 2402.14740: ``r_i - mean of r_j over j != i``.

    Args:
      rewards: [..., N].
      counts: [..., N], how many samples each branch is; 0 where there is none.

    Returns:
      [..., N]; 0 where the group is a single sample or none.
    """
    size = counts.sum(-1, keepdims=True)
    others = (jnp.where(counts > 0, rewards * counts, 0.0)).sum(-1, keepdims=True) - rewards
    advantages = rewards - others / jnp.maximum(size - 1, 1)
    return jnp.where((counts > 0) & (size > 1), advantages, 0.0)


def relative(
    rewards: jax.Array, counts: jax.Array, *, scale: bool = True, epsilon: float = 1e-4
) -> jax.Array:
    """Advantage of a sample within its group, as GRPO has it (arXiv 2402.03300).

    Args:
      rewards: [..., N].
      counts: [..., N], how many samples each branch is; 0 where there is none.
      scale: divide by the group's standard deviation (of a sample, n - 1); Dr. GRPO
        (arXiv 2503.20783) does not, since it weighs easy and hard prompts more than others.
      epsilon: added to the standard deviation.

    Returns:
      [..., N]; 0 where the group is a single sample or none.
    """
    size = counts.sum(-1, keepdims=True)
    # From the lowest on, so that of equal rewards no rounding is left to be divided by epsilon.
    lowest = jnp.where(counts > 0, rewards, jnp.inf).min(-1, keepdims=True)
    kept = jnp.where(counts > 0, rewards - lowest, 0.0)
    mean = (kept * counts).sum(-1, keepdims=True) / jnp.maximum(size, 1)
    away = kept - mean
    if scale:
        variance = (counts * jnp.square(away)).sum(-1, keepdims=True) / jnp.maximum(size - 1, 1)
        away = away / (jnp.sqrt(variance) + epsilon)
    return jnp.where((counts > 0) & (size > 1), away, 0.0)


def step_advantages(
    step_rewards: jax.Array,
    ends: jax.Array,
    counts: jax.Array,
    *,
    scale: bool = True,
    leave_out: bool = False,
    epsilon: float = 1e-4,
) -> jax.Array:
    """Advantage of every token by the steps that end at it or later (process supervision).

    arXiv 2402.03300, section 4.1.3: the rewards of all steps of all samples of a group, centered
    and scaled together; a token's advantage is their sum over its own step and those behind it.

    Args:
      step_rewards: [..., N, R], where a step ends.
      ends: [..., N, R] bool, the last token of each step.
      counts: [..., N], how many samples each branch is; 0 where there is none.
      scale: divide by the standard deviation of the steps (of a sample, n - 1).
      leave_out: center by the mean over the other samples' steps alone, as ``leave_one_out``.
      epsilon: added to the standard deviation.

    Returns:
      [..., N, R]; 0 where the group is a single sample or none.
    """
    ends = ends & (counts > 0)[..., None]
    # From the lowest on, so that of equal rewards no rounding is left.
    lowest = jnp.where(ends, step_rewards, jnp.inf).min((-2, -1), keepdims=True)
    kept = jnp.where(ends, step_rewards - lowest, 0.0)
    many = counts[..., None]
    number, total = (
        (x * many).sum((-2, -1), keepdims=True) for x in (ends.astype(kept.dtype), kept)
    )
    mean = total / jnp.maximum(number, 1)
    away = jnp.where(ends, kept - mean, 0.0)
    if scale:
        variance = (jnp.square(away) * many).sum((-2, -1), keepdims=True)
        deviation = jnp.sqrt(variance / jnp.maximum(number - 1, 1))
        away = away / (deviation + epsilon)
    if leave_out:
        others = number - ends.sum(-1, keepdims=True)
        mean = (total - kept.sum(-1, keepdims=True)) / jnp.maximum(others, 1)
        away = jnp.where(ends & (others > 0), kept - mean, 0.0)
    later = jnp.flip(jnp.cumsum(jnp.flip(away, -1), -1), -1)
    several = counts.sum(-1)[..., None, None] > 1
    return jnp.where(several & (counts > 0)[..., None], later, 0.0)


def posterior(likelihoods: jax.Array, counts: jax.Array) -> jax.Array:
    """How much of what was drawn is behind the observed outcome: the E-step over latent choices.

    ``w_i = c_i p_i / sum of c_j p_j``. Drawn from a policy, the branches are its prior, so that a
    sum weighted by ``w`` estimates the expectation under ``pi(i | outcome)``, which is proportional
    to ``pi(i) p(outcome | i)``: self-normalized importance sampling, its bias of order 1/samples.

    Args:
      likelihoods: [..., N], ``p`` of the outcome given each branch; not negative.
      counts: [..., N], how many samples each branch is; 0 where there is none.

    Returns:
      [..., N] summing to 1; 0 where no branch makes the outcome possible.
    """
    share = jnp.where(counts > 0, counts * likelihoods, 0.0)
    # By the largest first, so that small likelihoods do not vanish beside nothing.
    share = share / jnp.maximum(share.max(-1, keepdims=True), jnp.finfo(share.dtype).tiny)
    return share / jnp.maximum(share.sum(-1, keepdims=True), 1e-30)


class Surrogate(NamedTuple):
    """A clipped policy-gradient loss, and where clipping stopped the gradient, each [...]."""

    loss: jax.Array
    clipped: jax.Array


def clipped_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, low: float, high: float
) -> Surrogate:
    """PPO's pessimistic bound on the policy gradient (arXiv 1707.06347, equation 7).

    Args:
      log_ratio: [...] ``log(pi / sampling policy)`` of a token or a branch.
      advantages: [...].
      low, high: the ratio counts within ``[1 - low, 1 + high]`` (arXiv 2503.14476 sets high apart).

    Returns:
      ``-min(ratio * A, clip(ratio) * A)``. Where the policy still is the one that sampled, its
      gradient is that of ``-A log pi``, REINFORCE's.
    """
    ratio = jnp.exp(log_ratio)
    free, bounded = ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages
    return Surrogate(-jnp.minimum(free, bounded), bounded < free)


def kl_estimate(logps: jax.Array, reference: jax.Array) -> jax.Array:
    """Unbiased, never negative estimate of KL(pi | reference) from samples of pi (GRPO's k3).

    ``exp(d) - d - 1`` with ``d = log reference - log pi`` (J. Schulman, "Approximating KL
    divergence", 2020; arXiv 2402.03300, equation 4).
    """
    away = reference - logps
    return jnp.expm1(away) - away
