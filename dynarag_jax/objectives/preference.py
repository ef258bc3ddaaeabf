"""Preference objectives: a chosen branch against a rejected one, relative to a reference."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Preference(NamedTuple):
    """A preference loss and the implicit rewards beta * log(pi / reference), each [...]."""

    loss: jax.Array
    chosen_reward: jax.Array
    rejected_reward: jax.Array


def dpo_sigmoid(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    chosen_reference: jax.Array,
    rejected_reference: jax.Array,
    beta: float,
) -> Preference:
    """Direct preference optimization (arXiv 2305.18290, equation 7).

    Args:
      chosen_logps, rejected_logps: [...] summed log-probabilities of the branches.
      chosen_reference, rejected_reference: [...] the same under the reference weights.
      beta: strength of the pull toward the reference.

    Returns:
      ``-log sigmoid(margin)`` of the rewards' margin in nats, and the rewards.
    """
    chosen = beta * (chosen_logps - chosen_reference)
    rejected = beta * (rejected_logps - rejected_reference)
    return Preference(-jax.nn.log_sigmoid(chosen - rejected), chosen, rejected)
