"""The decoder at inference: prompts, whole or in chunks, then one token of every branch at a time.

The caches lie as the matrix products of one token read them, keys [K, P] and values [P, K] of each
head, and apart for each layer: a decoding step reads each byte once and moves none. (Read through
the layout of training, a step over trunks of 6k tokens takes seven times as long on a CPU.)

Dimension letters are those of ``attention``; also S slots: trunks that decode beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynarag_jax.models.attention import soft_cap
from dynarag_jax.models.config import DecoderConfig, Params, attention_specs
from dynarag_jax.models.decoder import BranchCache, TrunkCache
from dynarag_jax.models.kernels import Platform
from dynarag_jax.models.layers import (
    Layer,
    after_attention,
    attend_trunk,
    embed,
    last_hidden,
    logits,
    norm,
    output_embedding,
    over_layers,
    project_qkv,
    ready,
    score_rows,
    stacked_layers,
)
from dynarag_jax.models.lora import LowRank
from dynarag_jax.sharding import constrain, context_mesh

LOWEST = -1e30
"""Below every score, and finite: rows that see no key stay free of NaN."""


def empty_trunk_cache(cfg: DecoderConfig, batch: int, length: int) -> TrunkCache:
    """A trunk cache of zeros, stacked: k [L, B, G, K, P], v [L, B, G, P, K]."""
    lead, k = (cfg.layers, batch, cfg.kv_heads), cfg.head_size
    return _pin(
        TrunkCache(
            jnp.zeros((*lead, k, length), cfg.dtype),
            jnp.zeros((*lead, length, k), cfg.dtype),
        )
    )


def empty_branch_cache(cfg: DecoderConfig, slots: int, branches: int, length: int) -> BranchCache:
    """A branch cache of zeros: per layer in a tuple, k and v [S, N, G, R, K]."""
    shape = (slots, branches, cfg.kv_heads, length, cfg.head_size)

    def zeros() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.layers))

    return BranchCache(zeros(), zeros())


def _bits(x: jax.Array) -> jax.Array:
    """An array as a loop carries it that writes parts of it.

    On CPUs XLA makes float32 of all of a bfloat16 array to write a part of it, and back again; the
    same numbers as integers are written where they lie.
    """
    if x.dtype == jnp.bfloat16 and Platform.here().name == "cpu":
        return jax.lax.bitcast_convert_type(x, jnp.uint16)
    return x


def _numbers(x: jax.Array, dtype: Any) -> jax.Array:
    """The numbers whose ``_bits`` these are."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def _pin(cache: TrunkCache) -> TrunkCache:
    return TrunkCache(*(constrain(x, "layers", "batch", "kv_heads", None, None) for x in cache))


# ---------------------------------------------------------------------------- prompts


def _attend(
    cfg: DecoderConfig,
    q: jax.Array,
    cache: TrunkCache,
    layer: jax.Array,
    positions: jax.Array,
    lengths: jax.Array,
    window: Any,
) -> jax.Array:
    """Causal attention of queries [B, C, H, K] at ``positions`` [B, C] over the cache of a layer.

    Keys are taken C at a time, as far as the furthest query sees, under a running maximum and sum
    (arXiv 2205.14135), so that no array of [queries, all keys] exists.
    """
    b, c, h, size = q.shape
    g = cache.k.shape[2]
    m = h // g
    q = q.reshape(b, c, g, m, size).transpose(0, 2, 3, 1, 4).reshape(b, g, m * c, size)

    def block(j: jax.Array, carry: Any) -> Any:
        top, total, value = carry
        first = j * c
        k = jax.lax.dynamic_slice(cache.k, (layer, 0, 0, 0, first), (1, b, g, size, c))[0]
        v = jax.lax.dynamic_slice(cache.v, (layer, 0, 0, first, 0), (1, b, g, c, size))[0]
        k, v = _numbers(k, q.dtype), _numbers(v, q.dtype)
        scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
        scores = soft_cap(scores.reshape(b, g, m, c, c), cfg.score_cap)
        key, query = first + jnp.arange(c), positions[..., None]
        mask = (key <= query) & (key < lengths[:, None, None])
        if window is not None:
            mask &= key > query - window
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
        higher = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights, fade = jnp.exp(scores - higher), jnp.exp(top - higher)
        added = jnp.matmul(
            weights.astype(v.dtype).reshape(b, g, m * c, c), v, preferred_element_type=jnp.float32
        )
        value = value * fade + added.reshape(b, g, m, c, size)
        return higher, total * fade + weights.sum(-1, keepdims=True), value

    zeros = jnp.zeros((b, g, m, c, 1), jnp.float32)
    value = jnp.zeros((b, g, m, c, size), jnp.float32)
    blocks = positions.max() // c + 1
    _, total, value = jax.lax.fori_loop(0, blocks, block, (zeros + LOWEST, zeros, value))
    value = (value / jnp.maximum(total, 1e-30)).astype(q.dtype)
    return value.transpose(0, 3, 1, 2, 4).reshape(b, c, h, size)


def prefill(
    cfg: DecoderConfig,
    params: Params,
    trunk: jax.Array,
    lengths: jax.Array,
    chunk: int,
    cache: TrunkCache | None = None,
    start: jax.Array | None = None,
) -> tuple[jax.Array, TrunkCache]:
    """Run trunks, ``chunk`` tokens at a time, as far as the longest of them reaches.

    Args:
      trunk: tokens [B, P], right-padded.
      lengths: [B], at least 1.
      cache: stacked, of length P; None begins with an empty one.
      start: [B], how many tokens of each trunk the cache holds already, less than its length; None
        is none of any.

    Returns:
      the normalized hidden state of each trunk's last token [B, D], and the stacked cache.
    """
    b, p = trunk.shape
    # A chunk may begin anywhere where there is a start, so that the last may reach beyond the end.
    room = -(-p // chunk) * chunk + (chunk if start is not None else 0)
    trunk = jnp.pad(trunk, ((0, 0), (0, room - p)))
    if cache is None:
        cache = empty_trunk_cache(cfg, b, room)
    else:
        cache = _pin(
            TrunkCache(
                jnp.pad(cache.k, ((0, 0),) * 4 + ((0, room - p),)),
                jnp.pad(cache.v, ((0, 0),) * 3 + ((0, room - p), (0, 0))),
            )
        )

    def write(cache: jax.Array, new: jax.Array, layer: jax.Array, at: Any, axis: int) -> jax.Array:
        def one(cache: jax.Array, new: jax.Array, row: Any, at: Any) -> jax.Array:
            index: list[Any] = [layer, row, 0, 0, 0]
            index[axis] = at
            return jax.lax.dynamic_update_slice(cache, _bits(new[None]), index)

        if start is None:
            return one(cache, new, 0, at)
        return jax.lax.fori_loop(
            0,
            b,
            lambda i, cache: one(cache, jax.lax.dynamic_slice_in_dim(new, i, 1, axis=0), i, at[i]),
            cache,
        )

    def run_chunk(
        carry: tuple[jax.Array, TrunkCache, jax.Array],
    ) -> tuple[Any, TrunkCache, jax.Array]:
        i, cache, last = carry
        if start is None:
            at = i * chunk
            tokens = jax.lax.dynamic_slice_in_dim(trunk, at, chunk, axis=1)
            positions = jnp.broadcast_to(at + jnp.arange(chunk), (b, chunk))
        else:
            at = jnp.minimum(start + i * chunk, room - chunk)
            positions = at[:, None] + jnp.arange(chunk)
            tokens = jnp.take_along_axis(trunk, positions, axis=1)

        def layer(
            carry: tuple[jax.Array, TrunkCache], inputs: tuple[Any, Layer]
        ) -> tuple[Any, None]:
            (x, cache), (place, w) = carry, inputs
            w = ready(cfg, jax.tree.map(_numbers, w, kinds))
            q, k, v = project_qkv(cfg, w, x, positions)
            cache = TrunkCache(
                write(cache.k, k.transpose(0, 2, 3, 1), place, at, axis=4),
                write(cache.v, v.transpose(0, 2, 1, 3), place, at, axis=3),
            )
            attended = _attend(cfg, q, cache, place, positions, lengths, w.attention.window)
            x = after_attention(cfg, w, x, attended)
            return (constrain(x, "batch", None, None), cache), None

        x = constrain(embed(cfg, params, tokens), "batch", None, None)
        numbered = (jnp.arange(cfg.layers), jax.tree.map(_bits, layers))
        (x, cache), _ = jax.lax.scan(layer, (x, cache), numbered)
        here = (positions == lengths[:, None] - 1)[..., None]
        return i + 1, cache, jnp.where(here.any(1), jnp.where(here, x, 0).sum(1), last)

    layers = stacked_layers(cfg, params)
    kinds = jax.tree.map(lambda x: x.dtype, layers)
    todo = (lengths if start is None else lengths - start).max()
    nothing = jnp.zeros((b, cfg.width), cfg.dtype)
    cache = TrunkCache(*map(_bits, cache))
    _, cache, last = jax.lax.while_loop(
        lambda carry: carry[0] * chunk < todo, run_chunk, (jnp.int32(0), cache, nothing)
    )
    cache = TrunkCache(*(_numbers(x, cfg.dtype) for x in cache))
    kept = TrunkCache(cache.k[..., :p], cache.v[..., :p, :])
    return norm(cfg, last, params["final_norm"]), kept


def prefill_whole(
    cfg: DecoderConfig, params: Params, trunk: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, TrunkCache]:
    """``prefill`` of whole trunks at once, by the platform's flash kernel, from nothing.

    Each weight is read, and on a mesh gathered, once for all tokens. Takes and returns what
    ``prefill`` does.
    """
    positions = jnp.arange(trunk.shape[1])

    def layer(x: jax.Array, w: Layer) -> tuple[jax.Array, TrunkCache]:
        w = ready(cfg, w)
        q, k, v = project_qkv(cfg, w, x, positions)
        x = after_attention(cfg, w, x, attend_trunk(cfg, w, q, k, v, lengths))
        kept = TrunkCache(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))
        return constrain(x, "batch", None, None), kept

    x = constrain(embed(cfg, params, trunk), "batch", None, None)
    x, cache = over_layers(cfg, layer, x, stacked_layers(cfg, params))
    return norm(cfg, last_hidden(x, lengths), params["final_norm"]), _pin(cache)


# ---------------------------------------------------------------------------- tokens


LayerArrays = tuple[tuple[Params, Mapping[str, LowRank]], ...]
"""Weights and adapters of each layer by itself, as ``unstack`` makes them."""


def unstack(cfg: DecoderConfig, params: Params) -> LayerArrays:
    """Each layer's arrays by themselves, where they lie, for a loop over tokens to read.

    A slice of stacked weights inside a program is a copy of its own: made once before all turns of
    decoding, it is one copy of the layers, and none a turn.
    """
    stacked = (params["layers"], params.get("adapters", {}))
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(cfg.layers))


def layers_of(cfg: DecoderConfig, arrays: LayerArrays) -> list[Layer]:
    """The layers that ``decode_token`` runs."""
    differing = attention_specs(cfg)[1]
    each = [jax.tree.map(lambda x, i=i: x[i], differing) for i in range(cfg.layers)]
    stays = _weights_stay()
    return [Layer(*both, attention, stays) for both, attention in zip(arrays, each, strict=True)]


def _weights_stay() -> bool | None:
    """Whether weights are cut over fsdp: brought together, the whole model would wait for tokens.

    The few tokens of a step travel to the weights instead, each device adds up its part of the
    products, and the sums travel back.
    """
    mesh = context_mesh()
    return True if mesh is not None and mesh.shape["fsdp"] > 1 else None


def _embed_tokens(cfg: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Embeddings [S, N, D] of tokens [S, N]."""
    if not _weights_stay():
        return embed(cfg, params, tokens)
    x = embed(cfg, params, constrain(tokens, "rows", None))
    return constrain(x, "rows", None, "embed")


def token_logits(cfg: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Scores [S, N, V] in float32 of the tokens that follow, from hidden states [S, N, D]."""
    if not _weights_stay():
        return logits(cfg, params, hidden)
    hidden = constrain(hidden, "rows", None, "embed")
    scores = score_rows(cfg, hidden, output_embedding(cfg, params))
    return constrain(scores, "batch", None, "vocab")


def decode_token(
    cfg: DecoderConfig,
    params: Params,
    layers: Sequence[Layer],
    tokens: jax.Array,
    trunk_cache: TrunkCache,
    lengths: jax.Array,
    branch_cache: BranchCache,
    place: jax.Array,
) -> tuple[jax.Array, BranchCache]:
    """Run one more token of every branch.

    Slots are at different places. A branch's keys lie in its cache by their position, so that sums
    run in the same order whenever the slot's request came.

    Args:
      layers: of ``layers_of``.
      tokens: [S, N].
      trunk_cache: per layer in a tuple, k [S, G, K, P] and v [S, G, P, K].
      lengths: [S], of the trunks.
      branch_cache: per layer in a tuple, [S, N, G, R, K].
      place: [S], branch position of the tokens, less than R.

    Returns:
      normalized hidden states [S, N, D], and the branch cache with the tokens written.
    """
    s, n = tokens.shape
    g, m, size = cfg.kv_heads, cfg.heads // cfg.kv_heads, cfg.head_size
    p, r = trunk_cache.k[0].shape[-1], branch_cache.k[0].shape[3]
    positions = (lengths + place)[:, None]
    key, own_key = jnp.arange(p), jnp.arange(r)
    old, now = own_key < place[:, None], own_key == place[:, None]
    x = constrain(_embed_tokens(cfg, params, tokens), "batch", None, None)
    new_k, new_v = [], []
    for i, w in enumerate(layers):
        w = ready(cfg, w)
        q, k, v = project_qkv(cfg, w, x, positions)
        q = q.reshape(s, n, g, m, size)
        seen, past = key < lengths[:, None], old
        if w.attention.window is not None:
            seen &= key > positions - w.attention.window
            past &= own_key > place[:, None] - w.attention.window
        together = q.transpose(0, 2, 1, 3, 4).reshape(s, g, n * m, size)
        wide = {"preferred_element_type": jnp.float32}
        trunk = jnp.matmul(together, trunk_cache.k[i], **wide)
        mine = jnp.matmul(q, branch_cache.k[i].swapaxes(-1, -2), **wide)
        self = jnp.einsum("sngmk,sngk->sngm", q, k, **wide)[..., None]
        trunk, mine, self = (soft_cap(a, cfg.score_cap) for a in (trunk, mine, self))
        trunk = jnp.where(seen[:, None, None], trunk, -jnp.inf)
        mine = jnp.where(past[:, None, None, None], mine, -jnp.inf)

        def branches(a: jax.Array) -> jax.Array:
            return a.reshape(s, g, n, m, -1).transpose(0, 2, 1, 3, 4)

        top = jnp.maximum(branches(trunk.max(-1)), mine.max(-1, keepdims=True, initial=-jnp.inf))
        top = jnp.maximum(top, self)
        trunk = jnp.exp(trunk - top.transpose(0, 2, 1, 3, 4).reshape(s, g, n * m, 1))
        mine, self = jnp.exp(mine - top), jnp.exp(self - top)
        total = branches(trunk.sum(-1)) + mine.sum(-1, keepdims=True) + self
        value = branches(jnp.matmul(trunk.astype(v.dtype), trunk_cache.v[i], **wide))
        value += jnp.matmul(mine.astype(v.dtype), branch_cache.v[i], **wide)
        value += self * v[:, :, :, None]
        value = (value / total).astype(v.dtype).reshape(s, n, g * m, size)
        x = constrain(after_attention(cfg, w, x, value), "batch", None, None)
        new_k.append(k)
        new_v.append(v)

    def written(caches: Any, new: list[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(
            jnp.where(now[:, None, None, :, None], x[:, :, :, None], cache)
            for cache, x in zip(caches, new, strict=True)
        )

    cache = BranchCache(written(branch_cache.k, new_k), written(branch_cache.v, new_v))
    return norm(cfg, x, params["final_norm"]), cache
