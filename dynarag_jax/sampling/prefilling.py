"""How prompts enter caches: whole by a flash kernel, or in chunks, each device its own.

Trunk caches are apart for each layer here, as decoding reads them. Dimension letters are those of
``decoding``; also F prompts that enter together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models import decoding
from dynarag_jax.models.decoder import DecoderConfig, Params, TrunkCache
from dynarag_jax.models.kernels import Platform, choose
from dynarag_jax.sharding import batch_shards, constrain, spec

CHUNK = 256
"""Tokens of a prompt computed at a time where no flash kernel computes it whole."""

AT_ONCE = 8192
"""Tokens of whole prompts that a device computes at a time, or one prompt that is longer."""

Kind = Literal["trunk", "stacked", "rows"]
"""Caches of one layer [S, G, ...], of all layers [L, S, G, ...], or rows [S, ...]."""

AXES: dict[Kind, tuple[str | None, ...]] = {
    "trunk": ("batch", "kv_heads", None, None),
    "stacked": ("layers", "batch", "kv_heads", None, None),
    "rows": ("batch",),
}


def computes_whole(cfg: DecoderConfig, chunk: int, platform: Platform | None = None) -> bool:
    """Whether prompts are computed whole, by a flash kernel; None is the platform here."""
    return not chunk and choose(cfg, platform).kernel != "plain"


def prompts_at_a_time(mesh: Mesh, entering: int, length: int) -> int:
    """Of prompts [F, P] that enter whole, how many a device computes at a time."""
    own = entering // batch_shards(mesh)
    most = max(1, AT_ONCE // length)
    return max(n for n in range(1, min(own, most) + 1) if own % n == 0)


def on_own_slots(
    mesh: Mesh, function: Callable[..., Any], first: Kind, second: Kind, out: Kind
) -> Callable[..., Any]:
    """``function(first, second, rows)`` on each device's own slots."""
    kinds = (first, second, "rows")
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(spec(AXES[kind]) for kind in kinds),
        out_specs=spec(AXES[out]),
    )


def read_whole(
    cfg: DecoderConfig,
    mesh: Mesh,
    params: Params,
    trunks: TrunkCache,
    trunk: jax.Array,
    lengths: jax.Array,
    into: jax.Array,
) -> tuple[jax.Array, TrunkCache]:
    """Compute prompts by the platform's flash kernel, and put them into their slots.

    Each device computes some of its prompts at a time (``prompts_at_a_time``).

    Args:
      trunks: caches of all slots, a layer each.
      trunk: [F, P], right-padded; lengths: [F].
      into: [F], the slot, counted within its shard; -1 is none.

    Returns:
      normalized hidden states [F, D] of the prompts' last tokens, and the caches.
    """
    shards = batch_shards(mesh)
    own, each = len(into) // shards, prompts_at_a_time(mesh, *trunk.shape)

    def turns(x: jax.Array) -> jax.Array:
        x = x.reshape(shards, own // each, each, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(own // each, shards * each, *x.shape[3:])
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    put = on_own_slots(mesh, put_trunks, "trunk", "stacked", "trunk")

    def turn(trunks: TrunkCache, rows: Any) -> tuple[TrunkCache, jax.Array]:
        trunk, lengths, into = rows
        hidden, made = decoding.prefill_whole(cfg, params, trunk, lengths)
        kept = TrunkCache(put(trunks.k, made.k, into), put(trunks.v, made.v, into))
        return kept, hidden

    trunks, hidden = jax.lax.scan(turn, trunks, jax.tree.map(turns, (trunk, lengths, into)))
    hidden = hidden.reshape(-1, shards, each, hidden.shape[-1]).swapaxes(0, 1)
    return constrain(hidden.reshape(shards * own, -1), "batch", None), trunks


def read_prompts(
    cfg: DecoderConfig,
    mesh: Mesh,
    params: Params,
    trunk: jax.Array,
    lengths: jax.Array,
    chunk: int,
) -> tuple[jax.Array, TrunkCache]:
    """Compute prompts [F, P] for caches of their own: hidden states [F, D] and a layer's each.

    Args:
      lengths: [F], at least 1.
      chunk: tokens of a prompt computed at a time; 0 computes prompts whole where the platform has
        a flash kernel for the model, and elsewhere ``CHUNK`` tokens at a time.
    """
    f, p = trunk.shape
    if not computes_whole(cfg, chunk):
        hidden, made = decoding.prefill(cfg, params, trunk, lengths, min(chunk or CHUNK, p))
        return hidden, TrunkCache(*map(apart, made))
    empty = empty_trunks(cfg, f, p)
    pinned = TrunkCache(*(tuple(constrain(x, *AXES["trunk"]) for x in part) for part in empty))
    shards = batch_shards(mesh)
    into = constrain(jnp.tile(jnp.arange(f // shards), shards), "batch")
    return read_whole(cfg, mesh, params, pinned, trunk, lengths, into)


def empty_trunks(cfg: DecoderConfig, slots: int, length: int) -> TrunkCache:
    """Trunk caches of zeros: per layer in a tuple, k [S, G, K, P] and v [S, G, P, K]."""
    k = (slots, cfg.kv_heads, cfg.head_size, length)
    v = (*k[:2], k[3], k[2])
    return TrunkCache(*(tuple(jnp.zeros(x, cfg.dtype) for _ in range(cfg.layers)) for x in (k, v)))


def apart(stacked: jax.Array) -> tuple[jax.Array, ...]:
    """The layers of a stacked cache, each by itself."""
    return tuple(stacked[i] for i in range(len(stacked)))


# ---------------------------------------------------------------------------- rows of one device


def take_trunks(k: Sequence[jax.Array], v: Sequence[jax.Array], source: jax.Array) -> Any:
    """Stacked trunks of the slots ``source`` [F]."""
    return tuple(jnp.stack([jnp.take(x, source, axis=0) for x in part]) for part in (k, v))


def put_rows(old: Any, new: Any, into: jax.Array) -> Any:
    """Trees whose rows ``into`` [F], unless they are negative, are those of ``new``."""

    def put_row(old: jax.Array, new: jax.Array, row: Any) -> jax.Array:
        at = jnp.maximum(into[row], 0)
        kept = jax.lax.dynamic_index_in_dim(old, at, axis=0)
        return jax.lax.dynamic_update_index_in_dim(
            old, jnp.where(into[row] >= 0, new[row][None], kept), at, axis=0
        )

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, into.shape[0], lambda row, x: put_row(x, new, row), old)

    return jax.tree.map(put, old, new)


def put_trunks(old: tuple[jax.Array, ...], stacked: jax.Array, into: jax.Array) -> Any:
    """``put_rows`` of stacked trunks into caches of a layer each."""
    return put_rows(old, apart(stacked), into)
