"""Attention where a mesh cuts the trunk's positions: each device computes a part of every prompt.

Positions stand in the order of ``sharding.position_order``, so that causal attention is as much
work on one device as on another. Dimension letters are those of ``attention``; also S parts.

- The trunk: each device gathers all keys and values, which are few numbers beside the activations,
  and computes its own queries. Splash attention takes the queries' positions; the plain attention
  takes a stretch from the front over the first half of the keys and one from the back over all.
  cuDNN's masks know of no queries that begin elsewhere than at the first key: ``kernels.choose``
  does not take it.
- The branches: their queries, which are few, are gathered, and the keys stay where they are. What
  the parts say of the joint softmax is added up, and each device takes its part of the sums.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dynarag_jax.models.attention import Window, branch_sums, stretch_attention
from dynarag_jax.models.config import Kernel
from dynarag_jax.models.kernels import splash_call, splash_tables
from dynarag_jax.sharding import axes_of, axis_size, context_mesh, position_order, spec

_QUERIES = ("batch", "positions", "heads", None)
_KEYS = ("batch", "positions", "kv_heads", None)


def trunk_in_parts(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    window: Window,
    cap: float | None,
    kernel: Kernel,
    reach: int | None = None,
) -> jax.Array:
    """As ``kernels.attend``, under a mesh that cuts the positions.

    Args:
      q: [B, P, H, K], already scaled; k, v: [B, P, G, K], in the order of ``position_order``.
      kernel: of ``choose``; not cudnn.

    Returns:
      [B, P, H, K], in the same order.
    """
    axis, parts, length = axes_of("positions"), axis_size("positions"), q.shape[1]
    if kernel == "cudnn":
        raise ValueError("cudnn computes no prompts in parts")
    natural = np.argsort(position_order(2 * parts, parts))
    static = window is None or isinstance(window, int | np.integer)
    # A kernel's window is part of its program: both are compiled, and the layer picks.
    reaches = [None if window is None else int(window)] if static else [None, reach]
    tables: list[Any] = []
    if kernel == "splash":
        heads = q.shape[2] // axis_size("heads")
        tables = [splash_tables(heads, length, one, cap, parts) for one in reaches]

    def whole(x: jax.Array) -> jax.Array:
        """All keys in the order of their positions; going back, each device's part of the sums."""
        x = jax.lax.all_gather(x, axis, axis=1, tiled=True)
        return x.reshape(len(x), 2 * parts, -1, *x.shape[2:])[:, natural].reshape(x.shape)

    def here(q: Any, k: Any, v: Any, lengths: Any, window: Any, *tables: Any) -> jax.Array:
        k, v = whole(k), whole(v)
        part, each = jax.lax.axis_index(axis), length // (2 * parts)
        firsts = part * each, (2 * parts - 1 - part) * each
        if kernel == "plain":
            window, half = reaches[0] if static else window, length // 2
            front, back = jnp.split(q, 2, axis=1)
            front = stretch_attention(
                front, k[:, :half], v[:, :half], lengths, firsts[0], window, cap
            )
            back = stretch_attention(back, k, v, lengths, firsts[1], window, cap)
            return jnp.concatenate([front, back], axis=1)
        at = jnp.concatenate([first + jnp.arange(each) for first in firsts])
        if static:
            return splash_call(tables[0], q, k, v, at, lengths)
        return jax.lax.cond(
            window > (reach or 0),
            lambda *x: splash_call(tables[0], *x),
            lambda *x: splash_call(tables[1], *x),
            q, k, v, at, lengths,
        )  # fmt: skip

    rows = NamedSharding(context_mesh(), spec((None, "positions")))
    call = jax.shard_map(
        here,
        in_specs=(
            spec(_QUERIES), spec(_KEYS), spec(_KEYS), spec(("batch",)), spec(()),
            *(one.manual_sharding_spec(rows) for one in tables),
        ),
        out_specs=spec(_QUERIES),
        check_vma=False,
    )  # fmt: skip
    return call(q, k, v, lengths, jnp.int32(0) if static else window, *tables)


def branches_in_parts(
    q: jax.Array,
    trunk_k: jax.Array,
    trunk_v: jax.Array,
    lengths: jax.Array,
    own_k: jax.Array,
    own_v: jax.Array,
    window: Window,
    cap: float | None,
    branches: int,
    count: int,
) -> jax.Array:
    """As ``attention.branch_attention``, of branches one behind the other and cut, too.

    Args:
      q: [B, 1, M, H, K], already scaled: ``branches`` of ``count`` tokens each, and padding.
      trunk_k, trunk_v: [B, P, G, K], in the order of ``position_order``; lengths: [B].
      own_k, own_v: [B, 1, M, G, K].

    Returns:
      [B, 1, M, H, K].
    """
    axis, parts = axes_of("positions"), axis_size("positions")
    padding = q.shape[2] - branches * count
    order = jnp.asarray(position_order(trunk_k.shape[1], parts))
    static = window is None or isinstance(window, int | np.integer)

    def whole(x: jax.Array) -> jax.Array:
        x = jax.lax.all_gather(x[:, 0], axis, axis=1, tiled=True)[:, : branches * count]
        return x.reshape(len(x), branches, count, *x.shape[2:])

    def own_sums(x: jax.Array) -> jax.Array:
        flat = x.reshape(len(x), branches * count, *x.shape[3:])
        flat = jnp.pad(flat, [(0, 0), (0, padding)] + [(0, 0)] * (flat.ndim - 2))
        return jax.lax.psum_scatter(flat, axis, scatter_dimension=1, tiled=True)

    def here(
        q: Any, k: Any, v: Any, lengths: Any, own_k: Any, own_v: Any, order: Any, held: Any
    ) -> jax.Array:
        shape, dtype, looks = q.shape, own_v.dtype, window if static else held
        every = (whole(q), k, v, lengths, whole(own_k), whole(own_v))
        value, total = branch_sums(*every, 0, looks, cap, (order, axis))
        value, total = own_sums(value), own_sums(total)
        total = jnp.where(total == 0, 1, total)  # of padding
        return (value / total).astype(dtype).reshape(shape)

    queries, keys = (spec((names[0], None, *names[1:])) for names in (_QUERIES, _KEYS))
    call = jax.shard_map(
        here,
        in_specs=(
            queries, spec(_KEYS), spec(_KEYS), spec(("batch",)), keys, keys, spec(("positions",)),
            spec(()),
        ),
        out_specs=queries,
        check_vma=False,
    )  # fmt: skip
    held = jnp.int32(0) if static else window
    return call(q, trunk_k, trunk_v, lengths, own_k, own_v, order, held)
