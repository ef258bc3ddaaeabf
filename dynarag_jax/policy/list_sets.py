"""The probability of a list's passages in whatever order: the sum over all its orders, exactly.

Which passages a question needs is often known as a set. What comes next depends on the set that is
chosen, not on its order, so that the k! orders go through 2^k sets: a sum over paths, one round a
passage.

Dimension letters: B questions, L lists, R steps, K = R - 1 passages of a list at most, M = 2^K sets
(bit k of a set's number says that a list's passage k is in it), S candidates with stop first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError

MOST = 8
"""Passages of a list at most: 256 sets."""

_NEVER = -1e30  # finite, so that gradients are


def require_sets(k: int) -> None:
    """Refuse lists of more passages than their sets can be gone through.

    Raises:
      InputError: ``k`` is more than ``MOST``.
    """
    if k > MOST:
        raise InputError(
            f"objective 'set_nll' adds up all orders of a list, and these have up to {k} passages "
            f"where {MOST} are the most; lower prompts.max_list, or take 'nll', which has one order"
        )


def _bits(k: int) -> np.ndarray:
    """[M, K] bool: what is in each set."""
    return (np.arange(1 << k)[:, None] >> np.arange(k) & 1).astype(bool)


def sets_of(tokens: jax.Array, n: int) -> jax.Array:
    """All sets that a list's passages can be chosen in.

    Args:
      tokens: int32 [B, L, R], 1-based candidates, 0 at and behind a list's end.
      n: candidates.

    Returns:
      [B, L, M, S] bool, what is chosen; sets with a passage that the list does not have are alike
      to others, and ``set_logps`` reads none of them.
    """
    passages = tokens[..., :-1]
    member = (passages[..., None] == jnp.arange(n + 1)) & (passages[..., None] > 0)  # [B, L, K, S]
    inside = jnp.asarray(_bits(passages.shape[-1]))
    return (member[:, :, None] & inside[..., None]).any(-2)


def set_logps(logps: jax.Array, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """The log-probability that a list holds these passages, in any order, and stops.

    Args:
      logps: [B, L, M, S], of what comes next at each set of ``sets_of``; -inf of what cannot.
      tokens: as there.
      lengths: [B, L], steps with stop; 0 of a list that is none.

    Returns:
      [B, L] nats; 0 of a list that is none, -inf of one that is never written.
    """
    inside = _bits(tokens.shape[-1] - 1)
    sets, k = inside.shape
    passages = jnp.broadcast_to(tokens[:, :, None, :-1], (*logps.shape[:-1], k))
    finite = jnp.maximum(logps, _NEVER)
    following = jnp.take_along_axis(finite, passages, axis=-1)  # [B, L, M, K]
    # The set before passage k came: its number without bit k.
    before = np.arange(sets)[:, None] & ~(1 << np.arange(k))
    step = following[:, :, before, np.arange(k)]
    reached = jnp.where(jnp.arange(sets) == 0, 0.0, _NEVER)
    reached = jnp.broadcast_to(reached, logps.shape[:-1])
    for _ in range(k):
        paths = jnp.where(inside, reached[..., before] + step, _NEVER)
        reached = reached.at[..., 1:].set(jax.nn.logsumexp(paths[..., 1:, :], axis=-1))
    whole = (1 << jnp.maximum(lengths - 1, 0)) - 1
    total = jnp.take_along_axis(reached + finite[..., 0], whole[..., None], axis=-1)[..., 0]
    total = jnp.where(total < _NEVER / 2, -jnp.inf, jnp.minimum(total, 0.0))
    return jnp.where(lengths > 0, total, 0.0)
