"""Attention over the trunk-and-branches layout.

Dimension letters, here and in the decoder:
  B questions, P trunk positions, N branches, R branch positions, T query positions,
  D model width, H query heads, G key/value heads, M = H / G, K head size.

All keys are right-padded and masked by explicit lengths. Scores and softmax are float32.

``window`` is how many tokens a query looks back over, its own included (a number, a scalar array,
or None for all); ``cap`` bounds the scores smoothly (None does not).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Queries per block of the plain implementation: bounds the score matrix at [B, H, BLOCK, P].
BLOCK = 128
# Parts of the queries that each take the keys up to their own end, not all of them: with four,
# five eighths of the products are computed, and half is the least. Each part is compiled by itself.
PARTS = 4
ATTENDED = "attended"
# Kept for the backward pass, since they are small; scores and weights are computed again. A flash
# kernel's are what was attended and the log-sum-exp of its scores.
KEPT = ("top", "total", "value", ATTENDED)

Window = jax.Array | int | None


def _group(q: jax.Array, groups: int) -> jax.Array:
    *lead, heads, size = q.shape
    return q.reshape(*lead, groups, heads // groups, size)


def soft_cap(scores: jax.Array, cap: float | None) -> jax.Array:
    """``cap * tanh(scores / cap)`` (Gemma 2, arXiv 2408.00118, section 2)."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def _causal_block(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    first: jax.Array | int,
    lengths: jax.Array,
    window: Window,
    cap: float | None,
) -> jax.Array:
    """One block of queries, starting at position ``first``, over the keys from position 0 on."""
    query = jnp.arange(q.shape[1]) + first
    key = jnp.arange(k.shape[1])
    mask = (key <= query[:, None])[None] & (key < lengths[:, None])[:, None]  # [B, T, P]
    if window is not None:
        # Queries of padding look from the last token, so that they too see at least one key.
        looking = jnp.minimum(query, lengths[:, None] - 1)
        mask &= key > looking[..., None] - window
    b, t, g, m, size = q.shape
    # One batched matrix product per key/value head, [M T, K] x [K, P]: plain enough for XLA on CPU.
    q = q.transpose(0, 2, 3, 1, 4).reshape(b, g, m * t, size)
    scores = jnp.matmul(q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    scores = soft_cap(scores.reshape(b, g, m, t, -1), cap)
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    # Dividing the values, not the weights, keeps that division's gradient off the [T, P] arrays.
    top = checkpoint_name(jax.lax.stop_gradient(scores.max(-1, keepdims=True)), "top")
    weights = jnp.exp(scores - top)
    total = checkpoint_name(weights.sum(-1)[..., None], "total")
    weights = weights.astype(v.dtype).reshape(b, g, m * t, -1)
    value = jnp.matmul(weights, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    value = checkpoint_name(value.reshape(b, g, m, t, size), "value")
    value = (value / total).astype(v.dtype)
    return value.transpose(0, 3, 1, 2, 4)


def trunk_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    window: Window = None,
    cap: float | None = None,
) -> jax.Array:
    """Causal attention of the trunk over itself.

    Args:
      q: [B, P, H, K], already scaled.
      k, v: [B, P, G, K].
      lengths: [B], tokens of each trunk.

    Returns:
      [B, P, H, K]; positions at or beyond ``lengths`` hold finite values of no meaning.
    """
    b, p, h, size = q.shape
    grouped = _group(q, k.shape[2])
    # At least one key stays visible, so that an empty row of padding gives no NaN.
    lengths = jnp.maximum(lengths, 1)
    attend = partial(_causal_block, lengths=lengths, window=window, cap=cap)
    if p <= BLOCK:
        return attend(grouped, k, v, 0).reshape(b, p, h, size)
    each = -(-p // (BLOCK * PARTS)) * BLOCK
    parts = [
        _over_blocks(attend, grouped[:, at : at + each], k[:, : at + each], v[:, : at + each], at)
        for at in range(0, p, each)
    ]
    return jnp.concatenate(parts, axis=1).reshape(b, p, h, size)


def _over_blocks(
    attend: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    first: jax.Array | int,
) -> jax.Array:
    """Queries [B, T, G, M, K] from position ``first`` on, in blocks that keep ``KEPT`` alone."""
    b, t, *rest = q.shape
    padded = jnp.pad(q, [(0, 0), (0, -t % BLOCK)] + [(0, 0)] * 3)
    blocks = padded.reshape(b, -1, BLOCK, *rest).swapaxes(0, 1)
    keep = jax.checkpoint_policies.save_only_these_names(*KEPT)

    def block(args: tuple) -> jax.Array:
        return attend(args[0], k, v, args[1])

    at = first + jnp.arange(len(blocks)) * BLOCK
    out = jax.lax.map(jax.checkpoint(block, policy=keep), (blocks, at))
    return out.swapaxes(0, 1).reshape(b, -1, *rest)[:, :t]


def stretch_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    first: jax.Array,
    window: Window = None,
    cap: float | None = None,
) -> jax.Array:
    """``trunk_attention`` of a stretch of the queries.

    Args:
      q: [B, T, H, K], already scaled; the first stands at position ``first``.
      k, v: [B, P, G, K], from position 0 on, at least up to the stretch's end.
      lengths: [B], tokens of each trunk.

    Returns:
      [B, T, H, K].
    """
    b, t, h, size = q.shape
    grouped = _group(q, k.shape[2])
    # Queries that only fill the last block see a key, too, where keys end before the prompt does.
    lengths = jnp.clip(lengths, 1, k.shape[1])
    attend = partial(_causal_block, lengths=lengths, window=window, cap=cap)
    if t <= BLOCK:
        return attend(grouped, k, v, first).reshape(b, t, h, size)
    return _over_blocks(attend, grouped, k, v, first).reshape(b, t, h, size)


def branch_attention(
    q: jax.Array,
    trunk_k: jax.Array,
    trunk_v: jax.Array,
    trunk_lengths: jax.Array,
    own_k: jax.Array,
    own_v: jax.Array,
    first: jax.Array | int = 0,
    window: Window = None,
    cap: float | None = None,
) -> jax.Array:
    """Attention of branch tokens over their whole trunk and the past of their own branch.

    Exact: the two parts share one softmax, joined by their maximum and sum, and a branch never
    sees a sibling, since own keys are batched per branch.

    Args:
      q: [B, N, T, H, K], already scaled; query t stands at branch position ``first + t``.
      trunk_k, trunk_v: [B, P, G, K], stored once however many branches there are.
      trunk_lengths: [B].
      own_k, own_v: [B, N, R, G, K]; positions later than the query are masked.
      first: branch position of the first query.

    Returns:
      [B, N, T, H, K].
    """
    value, total = branch_sums(q, trunk_k, trunk_v, trunk_lengths, own_k, own_v, first, window, cap)
    return (value / total).astype(own_v.dtype).reshape(q.shape)


def branch_sums(
    q: jax.Array,
    trunk_k: jax.Array,
    trunk_v: jax.Array,
    trunk_lengths: jax.Array,
    own_k: jax.Array,
    own_v: jax.Array,
    first: jax.Array | int,
    window: Window,
    cap: float | None,
    part: tuple[jax.Array, tuple[str, ...]] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The two numbers whose quotient is ``branch_attention``; of a part of the trunk, its share.

    Args:
      part: the positions [P] of the trunk's keys, where they are a device's part of them, and the
        mesh axes that these are cut over. Own keys count for the first part.

    Returns:
      the weighted values [B, N, T, G, M, K] and the sums of weights [B, N, T, G, M, 1], float32.
    """
    groups = trunk_k.shape[2]
    grouped = _group(q, groups)
    trunk = jnp.einsum("bntgmk,bpgk->bgntmp", grouped, trunk_k, preferred_element_type=jnp.float32)
    own = jnp.einsum("bntgmk,bnrgk->bgntmr", grouped, own_k, preferred_element_type=jnp.float32)
    trunk, own = soft_cap(trunk, cap), soft_cap(own, cap)
    query = jnp.arange(q.shape[2]) + first
    trunk_key = jnp.arange(trunk_k.shape[1]) if part is None else part[0]
    own_key = jnp.arange(own_k.shape[2])
    visible = (trunk_key < trunk_lengths[:, None])[:, None]  # [B, T or 1, P]
    past = own_key <= query[:, None]  # [T, R]
    if window is not None:
        oldest = query[:, None] - window
        visible &= trunk_key > trunk_lengths[:, None, None] + oldest
        past &= own_key > oldest
    if part is not None:
        past &= jax.lax.axis_index(part[1]) == 0
    trunk = jnp.where(visible[:, None, None, :, None], trunk, -jnp.inf)
    own = jnp.where(past[:, None], own, -jnp.inf)
    # Own keys always include the query itself, so the joint maximum is finite.
    top = jnp.maximum(
        trunk.max(-1, keepdims=True, initial=-jnp.inf),
        own.max(-1, keepdims=True, initial=-jnp.inf),
    )
    top = jax.lax.stop_gradient(top)
    if part is not None:
        top = jax.lax.pmax(top, part[1])
    trunk, own = jnp.exp(trunk - top), jnp.exp(own - top)
    total = trunk.sum(-1) + own.sum(-1)
    # Sums over thousands of keys: bfloat16 weights and values, but a float32 sum and division.
    wide = {"preferred_element_type": jnp.float32}
    value = jnp.einsum("bgntmp,bpgk->bntgmk", trunk.astype(trunk_v.dtype), trunk_v, **wide)
    value += jnp.einsum("bgntmr,bnrgk->bntgmk", own.astype(own_v.dtype), own_v, **wide)
    return value, total.transpose(0, 2, 3, 1, 4)[..., None]
