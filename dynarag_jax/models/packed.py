"""Texts one behind the other, without padding between them, for CPUs.

What a layer computes position by position (products, norms, activations) it computes of real
positions alone: of texts of unequal length a third of the positions and more are padding. Attention
takes one text at a time out of what lies packed, in a window that holds it, and puts it back.

Accelerators pad: they work on many texts at once, and would compile for each number of positions.

Dimension letters: G groups of N texts each, P packed positions of a group, T padded positions of a
text, D model width, H heads, K head size, C any width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynarag_jax.sharding import context_mesh, spec


@jax.tree_util.register_static
@dataclass(frozen=True)
class Room:
    """Rows that lie in one group, and positions that all of them may have together.

    A row is a text, or a question with its texts (``pairs.PairBatch``). A part of the program, not
    of its data.

    Attributes:
      inserted: positions more for each passage that is put into the pairs of all rows
        (``pairs.pairs_with_chosen``); 0 where ``positions`` counts them.
    """

    rows: int
    positions: int
    inserted: int = 0


class Packed(NamedTuple):
    """Where texts lie.

    Attributes:
      starts: int32 [G, N], the first position of each within its group; ``lengths`` [G, N], how
        many it has, 0 of one that does not exist.
    """

    starts: jax.Array
    lengths: jax.Array


def pack(lengths: jax.Array) -> Packed:
    """Texts of these lengths [G, N], each behind the one before."""
    return Packed(jnp.cumsum(lengths, axis=1) - lengths, lengths)


def sources(packed: Packed, positions: int, t: int) -> tuple[jax.Array, jax.Array]:
    """What lies at so many packed positions.

    Returns:
      [G, P], places in a group's padded texts, laid out as [N T], and positions within the text.
      Behind the last text both are of its last positions.
    """
    at = jnp.arange(positions)
    ends = (packed.starts + packed.lengths)[:, None]
    which = jnp.minimum((at[:, None] >= ends).sum(-1), ends.shape[-1] - 1)
    start = jnp.take_along_axis(packed.starts, which, axis=1)
    position = jnp.clip(at - start, 0, t - 1)
    return which * t + position, position


def first_rows(x: jax.Array, packed: Packed) -> jax.Array:
    """The first position of every text: x [G P, C] to [G N, C]."""
    groups, n = packed.starts.shape
    rows = x.reshape(groups, -1, x.shape[-1])
    at = jnp.minimum(packed.starts, rows.shape[1] - 1)[..., None]
    return jnp.take_along_axis(rows, at, axis=1).reshape(groups * n, -1)


def attend_packed(qkv: jax.Array, packed: Packed, heads: int, t: int) -> jax.Array:
    """Attention of every text over its own positions.

    Args:
      qkv: [G P, 3 D].
      t: no text is longer.

    Returns:
      [G P, D]; 0 where no text lies.
    """
    t = min(t, len(qkv) // len(packed.starts))
    return _on_each_device(lambda *x: _attend(*x, heads, t), qkv, packed)


def unpacked(x: jax.Array, packed: Packed, t: int) -> jax.Array:
    """Texts as they lie padded: x [G P, C] to [G N T, C], 0 where a text has no position."""
    return _on_each_device(lambda *x: _unpacked(*x, t), x, packed)


def _on_each_device(run: Callable[..., jax.Array], x: jax.Array, packed: Packed) -> jax.Array:
    """``run`` over each device's own groups, whose positions are counted from its first."""

    def here(x: jax.Array, packed: Packed) -> jax.Array:
        groups = packed.starts.shape[0]
        before = jnp.arange(groups)[:, None] * (x.shape[0] // groups)
        return run(x, Packed((packed.starts + before).reshape(-1), packed.lengths.reshape(-1)))

    if context_mesh() is None:
        return here(x, packed)
    rows = spec(("batch", None))
    return jax.shard_map(here, in_specs=(rows, rows), out_specs=rows, check_vma=False)(x, packed)


# ---------------------------------------------------------------------------- one text at a time


def _windows(t: int) -> list[int]:
    """Sizes in which texts are attended; each in the least that holds it."""
    return sorted({min(t, -(-t * part // 64) * 16) for part in (1, 2, 3, 4)})


def _each(packed: Packed, windows: list[int], one: Callable[..., Any], made: Any) -> Any:
    """``one(window, text, made)`` of every text that exists, the shortest first."""
    order = jnp.argsort(packed.lengths)
    ends = jnp.searchsorted(packed.lengths[order], jnp.array([0, *windows]), side="right")
    for window, begin, end in zip(windows, ends, ends[1:], strict=False):
        # A loop, and no branches within it: what is written is written in place.
        made = jax.lax.fori_loop(
            begin, end, lambda i, made, window=window: one(window, order[i], made), made
        )
    return made


def _held(packed: Packed, text: Any, rows: int, window: int) -> tuple[Any, jax.Array]:
    """From where so many packed rows hold a text, and which of them are its own."""
    start = packed.starts[text]
    begin = jnp.minimum(start, rows - window)
    at = begin + jnp.arange(window)
    return begin, (at >= start) & (at < start + packed.lengths[text])


def _put(x: jax.Array, rows: jax.Array, own: jax.Array, begin: Any) -> jax.Array:
    """x with the own ones of these rows in their place."""
    old = jax.lax.dynamic_slice_in_dim(x, begin, len(rows))
    rows = jnp.where(own[:, None], rows.astype(x.dtype), old)
    return jax.lax.dynamic_update_slice_in_dim(x, rows, begin, axis=0)


def _by_heads(x: jax.Array, heads: int) -> jax.Array:
    """[T, D] to [H, T, K], in float32."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    return wide.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _queries_keys_values(x: jax.Array, heads: int) -> list[jax.Array]:
    d = x.shape[1] // 3
    q, k, v = (_by_heads(x[:, i * d : (i + 1) * d], heads) for i in range(3))
    return [q * q.shape[-1] ** -0.5, k, v]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(qkv: jax.Array, packed: Packed, heads: int, t: int) -> jax.Array:
    return _attend_forward(qkv, packed, heads, t)[0]


def _attend_forward(qkv: jax.Array, packed: Packed, heads: int, t: int) -> tuple[jax.Array, Any]:
    rows, width = qkv.shape

    def one(window: int, text: Any, made: tuple[jax.Array, jax.Array]) -> Any:
        out, sums = made
        begin, own = _held(packed, text, rows, window)
        q, k, v = _queries_keys_values(jax.lax.dynamic_slice_in_dim(qkv, begin, window), heads)
        scores = jnp.where(own, jnp.matmul(q, k.transpose(0, 2, 1)), -jnp.inf)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        values = (jnp.matmul(weights, v) / total).transpose(1, 0, 2).reshape(window, -1)
        sums = jax.lax.dynamic_update_slice(
            sums, (top + jnp.log(total))[None, ..., 0], (text, 0, 0)
        )
        return _put(out, values, own, begin), sums

    out = jnp.zeros((rows, width // 3), qkv.dtype)
    wide = jnp.promote_types(jnp.float32, qkv.dtype)
    sums = jnp.zeros((len(packed.starts), heads, t), wide)
    out, sums = _each(packed, _windows(t), one, (out, sums))
    return out, (qkv, packed, out, sums)


def _attend_backward(heads: int, t: int, kept: Any, g: jax.Array) -> tuple[jax.Array, None]:
    """Weights are computed anew from the log-sum-exp, keys before queries: what is turned over to
    be multiplied is one array of scores in place of two."""
    qkv, packed, out, sums = kept
    rows = len(qkv)

    def one(window: int, text: Any, made: jax.Array) -> jax.Array:
        begin, own = _held(packed, text, rows, window)
        q, k, v = _queries_keys_values(jax.lax.dynamic_slice_in_dim(qkv, begin, window), heads)
        pull = jnp.where(own[:, None], jax.lax.dynamic_slice_in_dim(g, begin, window), 0)
        values = jax.lax.dynamic_slice_in_dim(out, begin, window)
        pull, values = _by_heads(pull, heads), _by_heads(values, heads)
        # What the softmax takes off is the same for all keys of a query.
        off = (pull * values).sum(-1)[:, None]
        scores = jnp.matmul(k, q.transpose(0, 2, 1))
        weights = jnp.where(own[:, None], jnp.exp(scores - sums[text, :, None, :window]), 0)
        dv = jnp.matmul(weights, pull)
        ds = weights * (jnp.matmul(v, pull.transpose(0, 2, 1)) - off)
        dq = jnp.matmul(ds.transpose(0, 2, 1), k) * q.shape[-1] ** -0.5
        flat = [x.transpose(1, 0, 2).reshape(window, -1) for x in (dq, jnp.matmul(ds, q), dv)]
        return _put(made, jnp.concatenate(flat, axis=-1), own, begin)

    return _each(packed, _windows(t), one, jnp.zeros_like(qkv)), None


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unpacked(x: jax.Array, packed: Packed, t: int) -> jax.Array:
    def one(window: int, text: Any, made: jax.Array) -> jax.Array:
        # Behind the last position of x there is room for a whole window.
        begin = packed.starts[text]
        own = jnp.arange(window) < packed.lengths[text]
        rows = jax.lax.dynamic_slice_in_dim(longer, begin, window)
        return _put(made, rows, own, text * t)

    longer = jnp.pad(x, [(0, t), (0, 0)])
    return _each(packed, [t], one, jnp.zeros((len(packed.starts) * t, x.shape[1]), x.dtype))


def _unpacked_forward(x: jax.Array, packed: Packed, t: int) -> tuple[jax.Array, Any]:
    return _unpacked(x, packed, t), (packed, len(x))


def _unpacked_backward(t: int, kept: Any, g: jax.Array) -> tuple[jax.Array, None]:
    packed, rows = kept

    def one(window: int, text: Any, made: jax.Array) -> jax.Array:
        own = jnp.arange(window) < packed.lengths[text]
        pull = jax.lax.dynamic_slice_in_dim(g, text * t, window)
        return _put(made, pull, own, packed.starts[text])

    # As above: one window more than there are rows.
    return _each(packed, [t], one, jnp.zeros((rows + t, g.shape[1]), g.dtype))[:rows], None


_unpacked.defvjp(_unpacked_forward, _unpacked_backward)
