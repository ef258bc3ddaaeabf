"""Figures that show what training on sampled lists does to the policy, step by step of a list.

Rewards are hacked where lists grow longer, or shorter, while what was meant does not rise; a policy
that no longer doubts when to stop has nothing left to sample. Lists were drawn by the sampling
policy; under the one that is trained now their mean is weighted by the ratio of the two.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynarag_jax.objectives.scores import LossInputs, summed

STEPS = 4
"""steps of a list that are told apart; later ones are one"""

Figure = tuple[jax.Array, jax.Array]
"""A sum, and what to divide it by: of a part of the batch, and of the whole one."""


def decisions(logps: jax.Array, deciding: jax.Array, ends: jax.Array) -> jax.Array:
    """Log-probability of each decision to stop or to go on, at the end of its step.

    Args:
      logps: [..., R] of tokens under the grammar.
      deciding: [..., R] bool, the tokens that say whether a list goes on.
      ends: [..., R] bool, the last token of each step.

    Returns:
      [..., R]; 0 where no step ends or nothing was to be decided.
    """
    so_far = jnp.cumsum(jnp.where(deciding, logps, 0.0), axis=-1)
    # It only falls, so that the least of the ends before is the last one's.
    at_ends = jnp.where(ends, so_far, 0.0)
    before = jax.lax.cummin(at_ends, axis=at_ends.ndim - 1)
    before = jnp.concatenate([jnp.zeros_like(before[..., :1]), before[..., :-1]], axis=-1)
    return jnp.where(ends, so_far - before, 0.0)


def binary_entropy(logp: jax.Array) -> jax.Array:
    """Entropy in nats of a choice between two, one of which has probability ``exp(logp)``."""
    logp = jnp.minimum(logp, -1e-7)
    other = jnp.log(-jnp.expm1(logp))
    return -(jnp.exp(logp) * logp + jnp.exp(other) * other)


def list_figures(scores: LossInputs) -> dict[str, Figure]:
    """Figures of sampled lists whose steps are known, from what objectives read.

    Returns:
      ``k`` and ``expected_reward``, estimates under the policy that is trained (self-normalized
      importance weights within each group); ``stop_entropy``, the mean over decisions, in nats;
      ``kl_to_sampler/step_1`` and so on, what each step adds to the divergence from the sampling
      policy, ``step_5`` all behind the fourth.
    """
    ends = scores.step_ends
    if ends is None:
        return {}
    where = scores.token_mask & (scores.counts > 0)[..., None]
    ends = ends & where
    rows = (scores.counts * ends.any(-1)).sum(-1) > 0
    ratio = summed(scores.constrained_logps, where) - summed(scores.behavior, where)
    real = jnp.where(ends.any(-1), scores.counts, 0.0)
    ratio = jax.lax.stop_gradient(jnp.where(real > 0, ratio, -jnp.inf))
    weights = real * jnp.exp(ratio - jnp.maximum(ratio.max(-1, keepdims=True), -1e30))
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    passages = jnp.maximum(ends.sum(-1) - 1, 0)
    rewards = jnp.where(real > 0, scores.rewards, 0.0)
    found = {
        "k": ((weights * passages).sum(), rows.sum()),
        "expected_reward": ((weights * rewards).sum(), rows.sum()),
    }
    moved = jnp.where(where, scores.behavior - scores.constrained_logps, 0.0)
    number = jnp.cumsum(ends, axis=-1) - ends
    for step in range(STEPS + 1):
        here = where & ((number == step) if step < STEPS else (number >= step))
        samples = scores.counts * (ends & here).any(-1)
        total = (jnp.where(here, moved, 0.0).sum(-1) * (samples > 0) * scores.counts).sum()
        found[f"kl_to_sampler/step_{step + 1}"] = (total, samples.sum())
    if scores.decisions is not None and scores.decided is not None:
        asked = ends & scores.decided
        entropy = jnp.where(asked, binary_entropy(scores.decisions), 0.0)
        many = scores.counts[..., None]
        found["stop_entropy"] = ((entropy * many).sum(), (asked * many).sum())
    return found
