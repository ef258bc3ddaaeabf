"""Preference objectives: a chosen branch against a rejected one, most relative to a reference.

All take log-probabilities of whole branches, [...], in nats. Where a paper averages over tokens
(SimPO, IPO as its authors run it), the caller hands in averages.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Preference(NamedTuple):
    """A preference loss and the implicit rewards of both branches, each [...]."""

    loss: jax.Array
    chosen_reward: jax.Array
    rejected_reward: jax.Array


def implicit_rewards(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    chosen_reference: jax.Array,
    rejected_reference: jax.Array,
    beta: float,
) -> tuple[jax.Array, jax.Array]:
    """``beta * log(pi / reference)`` of both branches (arXiv 2305.18290)."""
    return beta * (chosen_logps - chosen_reference), beta * (rejected_logps - rejected_reference)


def dpo_sigmoid(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    chosen_reference: jax.Array,
    rejected_reference: jax.Array,
    beta: float,
    label_smoothing: float = 0.0,
) -> Preference:
    """Direct preference optimization (arXiv 2305.18290, equation 7).

    Args:
      chosen_logps, rejected_logps: [...] summed log-probabilities of the branches.
      chosen_reference, rejected_reference: [...] the same under the reference weights.
      beta: strength of the pull toward the reference.
      label_smoothing: share of preferences taken to be the wrong way round; above 0 this is
        conservative DPO (E. Mitchell, "A note on DPO with noisy preferences", 2023).

    Returns:
      ``-(1 - s) log sigmoid(margin) - s log sigmoid(-margin)`` of the rewards' margin, and the
      rewards.
    """
    rewards = implicit_rewards(
        chosen_logps, rejected_logps, chosen_reference, rejected_reference, beta
    )
    margin = rewards[0] - rewards[1]
    loss = -jax.nn.log_sigmoid(margin)
    if label_smoothing:
        flipped = -jax.nn.log_sigmoid(-margin)
        loss = (1 - label_smoothing) * loss + label_smoothing * flipped
    return Preference(loss, *rewards)


def dpo_robust(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    chosen_reference: jax.Array,
    rejected_reference: jax.Array,
    beta: float,
    flipped: float,
) -> Preference:
    """Robust DPO: unbiased where a share of the preferences is flipped (arXiv 2403.00409).

    Args:
      flipped: share of preferences that are the wrong way round, in [0, 0.5).

    Returns:
      ``((1 - e) l(margin) - e l(-margin)) / (1 - 2 e)`` with ``l = -log sigmoid``.
    """
    rewards = implicit_rewards(
        chosen_logps, rejected_logps, chosen_reference, rejected_reference, beta
    )
    margin = rewards[0] - rewards[1]
    right, wrong = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    return Preference(((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped), *rewards)


def hinge(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    chosen_reference: jax.Array,
    rejected_reference: jax.Array,
    beta: float,
) -> Preference:
    """Hinge on the rewards' margin: SLiC's loss on DPO's rewards (arXiv 2309.06657).

    Returns:
      ``max(0, 1 - margin)``.
    """
    rewards = implicit_rewards(
        chosen_logps, rejected_logps, chosen_reference, rejected_reference, beta
    )
    return Preference(jax.nn.relu(1 - (rewards[0] - rewards[1])), *rewards)


def ipo(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    chosen_reference: jax.Array,
    rejected_reference: jax.Array,
    beta: float,
) -> Preference:
    """Identity preference optimization (arXiv 2310.12036, equation 17).

    Args:
      beta: the paper's tau, regularization toward the reference.

    Returns:
      ``(log-ratio margin - 1 / (2 beta))^2``: the margin is pulled to a finite place, so that sure
      preferences do not drive it to infinity.
    """
    chosen, rejected = chosen_logps - chosen_reference, rejected_logps - rejected_reference
    loss = jnp.square(chosen - rejected - 1 / (2 * beta))
    return Preference(loss, beta * chosen, beta * rejected)


def simpo(
    chosen_averages: jax.Array, rejected_averages: jax.Array, beta: float, gamma: float
) -> Preference:
    """SimPO: average log-probability as reward, no reference (arXiv 2405.14734, equation 6).

    Args:
      chosen_averages, rejected_averages: [...] log-probability per token.
      beta: scale of the rewards.
      gamma: the margin that the rewards should have, in units of the rewards.

    Returns:
      ``-log sigmoid(beta * (chosen - rejected) - gamma)``.
    """
    chosen, rejected = beta * chosen_averages, beta * rejected_averages
    return Preference(-jax.nn.log_sigmoid(chosen - rejected - gamma), chosen, rejected)
