"""Supervised objectives: the likelihood of given tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_nll(logps: jax.Array, *, where: jax.Array) -> jax.Array:
    """Negative log-likelihood of every branch.

    Args:
      logps: [..., R] token log-probabilities.
      where: [..., R] bool, real tokens.

    Returns:
      [...] nats, summed over a branch's tokens.
    """
    return -jnp.where(where, logps, 0.0).sum(-1)
