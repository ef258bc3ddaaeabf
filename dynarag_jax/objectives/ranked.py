"""Listwise preference: all sampled branches of a prompt, ranked by reward, relative to a reference.

Scores are implicit rewards ``beta * log(pi / reference)`` [..., N]; rewards [..., N] say how good
the branches turned out. Branches are distinct; those of equal reward have no order among them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def plackett_luce(scores: jax.Array, rewards: jax.Array, *, where: jax.Array) -> jax.Array:
    """DPO over a ranking of N branches (arXiv 2305.18290, appendix A.3).

    Minus the log-likelihood, under Plackett-Luce, that branches are drawn best first. A branch is
    drawn from all that are no better than itself; those of equal reward stand beside each other in
    that choice (Breslow's treatment of ties), and the worst reward, which only loses, adds nothing
    where it is one branch. Two branches of unequal reward give DPO's loss.

    Args:
      scores: [..., N] implicit rewards.
      rewards: [..., N], higher is better.
      where: [..., N] bool, the branches that exist.

    Returns:
      [...] nats; 0 where no two branches differ in reward.
    """
    # Column j competes with row i if it exists and is no better than i.
    left = where[..., None, :] & (rewards[..., None, :] <= rewards[..., :, None])
    # Rows that are masked take part in nothing, and must not put NaN into the gradient.
    left = left | ~where[..., :, None]
    competing = jnp.where(left, jnp.where(where, scores, 0.0)[..., None, :], -jnp.inf)
    nll = jax.nn.logsumexp(competing, axis=-1) - jnp.where(where, scores, 0.0)
    lowest = jnp.where(where, rewards, jnp.inf).min(-1, keepdims=True)
    # Ties at the bottom were never preferred to anything.
    return jnp.where(where & (rewards > lowest), nll, 0.0).sum(-1)


def lipo_lambda(scores: jax.Array, rewards: jax.Array, *, where: jax.Array) -> jax.Array:
    """LiPO-lambda: pairwise logistic loss weighted by reward gap and rank (arXiv 2402.01878).

    A pair weighs ``|G_i - G_j| * |1/D(rank_i) - 1/D(rank_j)|`` with gain ``G = 2^reward - 1`` and
    discount ``D = log(1 + rank)``, the ranks being those of the present scores: confusing a good
    branch with a bad one near the top costs most.

    Args:
      scores: [..., N] implicit rewards.
      rewards: [..., N], higher is better; the paper's are in [0, 1].
      where: [..., N] bool, the branches that exist.

    Returns:
      [...] weighted sum over pairs of unequal reward.
    """
    scores = jnp.where(where, scores, 0.0)
    fixed = jax.lax.stop_gradient(scores)
    place = jnp.arange(scores.shape[-1])
    higher = (fixed[..., None, :] > fixed[..., :, None]) | (
        (fixed[..., None, :] == fixed[..., :, None]) & (place[None, :] < place[:, None])
    )
    rank = 1 + (higher & where[..., None, :]).sum(-1)
    discount = 1 / jnp.log1p(rank.astype(scores.dtype))
    gain = jnp.exp2(rewards) - 1

    def gap(x: jax.Array) -> jax.Array:
        return jnp.abs(x[..., :, None] - x[..., None, :])

    pair = (
        where[..., :, None] & where[..., None, :] & (rewards[..., :, None] > rewards[..., None, :])
    )
    loss = -jax.nn.log_sigmoid(scores[..., :, None] - scores[..., None, :])
    return jnp.where(pair, gap(gain) * gap(discount) * loss, 0.0).sum((-2, -1))
