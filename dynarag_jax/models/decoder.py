"""The decoder: a language model of the Llama family over one trunk and its branches.

``config`` says what families there are and what their parameters are, ``layers`` what a layer
computes. The forward pass is plain functions on arrays; ``Decoder`` is their Flax module.

Dimension letters are those of ``attention``; also V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dynarag_jax.models.attention import branch_attention
from dynarag_jax.models.config import (
    DecoderConfig,
    Family,
    Parameter,
    Params,
    RopeScaling,
    count_parameters,
    is_parameter,
    parameter_table,
    rope_frequencies,
)
from dynarag_jax.models.kernels import Platform
from dynarag_jax.models.layers import (
    LAYER_INPUT,
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
    rematerialized,
    rms_norm,
    rotate,
    scaled,
    score_rows,
    stacked_layers,
)
from dynarag_jax.models.modules import TableModule
from dynarag_jax.models.parts import branches_in_parts
from dynarag_jax.models.products import vocabulary_rows
from dynarag_jax.rings import has_rings
from dynarag_jax.sharding import axes_of, axis_size, constrain, context_mesh, position_order

__all__ = [
    "BranchCache",
    "Decoder",
    "DecoderConfig",
    "Family",
    "Parameter",
    "Params",
    "RopeScaling",
    "TrunkCache",
    "count_parameters",
    "embed",
    "empty_branch_cache",
    "extend",
    "init_params",
    "is_parameter",
    "last_hidden",
    "logits",
    "output_embedding",
    "parameter_table",
    "prefill",
    "rms_norm",
    "rope_frequencies",
    "rotate",
    "score_rows",
    "trunk_and_branches",
    "with_dtype",
]


class TrunkCache(NamedTuple):
    """Keys and values of trunks, computed once and read by all of their branches.

    Here both are [L, B, P, G, K]; ``decoding`` lays them out as one token reads them.
    """

    k: Any
    v: Any


class BranchCache(NamedTuple):
    """Keys and values of branches, each its own; here both are [L, B, N, R, G, K]."""

    k: Any
    v: Any


def prefill(
    cfg: DecoderConfig, params: Params, trunk: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, TrunkCache]:
    """Run the trunks alone.

    Args:
      trunk: tokens [B, P], right-padded.
      lengths: [B].

    Returns:
      final hidden states [B, P, D] (normalized) and the trunk cache.
    """
    positions = jnp.arange(trunk.shape[1])

    def layer(x: jax.Array, w: Layer) -> tuple[jax.Array, TrunkCache]:
        x = checkpoint_name(x, LAYER_INPUT)
        w = ready(cfg, w)
        q, k, v = project_qkv(cfg, w, x, positions)
        x = after_attention(cfg, w, x, attend_trunk(cfg, w, q, k, v, lengths))
        return constrain(x, "batch", None, None), TrunkCache(k, v)

    x = constrain(embed(cfg, params, trunk), "batch", None, None)
    x, cache = over_layers(cfg, rematerialized(cfg, layer), x, stacked_layers(cfg, params))
    return norm(cfg, x, params["final_norm"]), cache


def extend(
    cfg: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    trunk_cache: TrunkCache,
    lengths: jax.Array,
    branch_cache: BranchCache,
    first: jax.Array,
) -> tuple[jax.Array, BranchCache]:
    """Run T more tokens of every branch, against the trunk cache and the branch cache.

    Args:
      tokens: [B, N, T]; token t stands at branch position ``first + t``.
      trunk_cache: of the trunks, [L, B, P, G, K].
      lengths: [B], the trunks' lengths.
      branch_cache: [L, B, N, R, G, K], filled up to ``first``.
      first: scalar.

    Returns:
      final hidden states [B, N, T, D] (normalized) and the branch cache with the T tokens written.
    """
    positions = lengths[:, None, None] + first + jnp.arange(tokens.shape[2])

    def layer(
        x: jax.Array, inputs: tuple[Layer, TrunkCache, BranchCache]
    ) -> tuple[jax.Array, BranchCache]:
        w, past, mine = inputs
        w = ready(cfg, w)
        q, k, v = project_qkv(cfg, w, x, positions)
        mine = BranchCache(
            jax.lax.dynamic_update_slice_in_dim(mine.k, k, first, axis=2),
            jax.lax.dynamic_update_slice_in_dim(mine.v, v, first, axis=2),
        )
        attended = branch_attention(
            q, past.k, past.v, lengths, mine.k, mine.v, first, w.attention.window, cfg.score_cap
        )
        x = after_attention(cfg, w, x, attended)
        return constrain(x, "batch", None, None, None), mine

    x = constrain(embed(cfg, params, tokens), "batch", None, None, None)
    x, cache = over_layers(cfg, layer, x, (stacked_layers(cfg, params), trunk_cache, branch_cache))
    return norm(cfg, x, params["final_norm"]), cache


def empty_branch_cache(cfg: DecoderConfig, batch: int, branches: int, length: int) -> BranchCache:
    """A branch cache of zeros, [L, B, N, R, G, K]."""
    shape = (cfg.layers, batch, branches, length, cfg.kv_heads, cfg.head_size)
    return BranchCache(jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype))


def trunk_and_branches(
    cfg: DecoderConfig,
    params: Params,
    trunk: jax.Array,
    lengths: jax.Array,
    branches: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The training pass: each trunk once, all its branches beside it.

    Args:
      trunk: tokens [B, P], right-padded; lengths: [B], at least 1.
      branches: tokens [B, N, R], right-padded.

    Returns:
      trunk hidden states [B, P, D], and for every branch token the hidden state that *predicts*
      it, [B, N, R, D]: that of the last trunk token first, then of each branch token but the last.
      Both are normalized, ready for ``logits``. Under a mesh with a sequence axis the trunk's
      positions are cut over it, and stand in the order of ``sharding.position_order``.

    Raises:
      InputError: P does not divide over the sequence axis.
    """
    inputs = branches[:, :, :-1]
    p, (n, t) = trunk.shape[1], inputs.shape[1:]
    positions = (jnp.arange(p), lengths[:, None, None] + jnp.arange(t))
    parts, order = axis_size("positions"), None
    if parts > 1:
        order = position_order(p, parts)
        own = jnp.broadcast_to(positions[1], inputs.shape)
        trunk, inputs = trunk[:, order], _end_to_end(inputs, parts)
        positions = (jnp.asarray(order), _end_to_end(own, parts))
    streams = (_embedded(cfg, params, trunk), _embedded(cfg, params, inputs))
    # Where weights are gathered for their products, they are gathered once for both streams, and
    # their gradients are sent once. Not on TPUs in a single ring, whose compiler sends and computes
    # more for adapters so (docs/benchmarks.md).
    mesh = context_mesh()
    cut = mesh is not None and (mesh.shape["fsdp"] > 1 or parts > 1)
    joined = cut and (Platform.here().name != "tpu" or has_rings(axes_of("embed")))
    if joined:
        each = zip(positions, (trunk, inputs), strict=True)
        positions = (_join(*(jnp.broadcast_to(at, x.shape) for at, x in each), parts=parts),)
        streams = (_join(*streams, parts=parts),)

    def layer(streams: tuple[jax.Array, ...], w: Layer) -> tuple[tuple[jax.Array, ...], None]:
        streams = checkpoint_name(streams, LAYER_INPUT)
        w = ready(cfg, w)
        each = [project_qkv(cfg, w, x, at) for x, at in zip(streams, positions, strict=True)]
        if joined:
            each = list(zip(*(_part(x, p, n, parts) for x in each[0]), strict=True))
        (q, k, v), (own_q, own_k, own_v) = each
        window, cap = w.attention.window, cfg.score_cap
        if parts > 1:
            own = branches_in_parts(own_q, k, v, lengths, own_k, own_v, window, cap, n, t)
        else:
            own = branch_attention(own_q, k, v, lengths, own_k, own_v, 0, window, cap)
        attended = (attend_trunk(cfg, w, q, k, v, lengths, parts > 1), own)
        if joined:
            attended = (_join(*attended, parts=parts),)
        after = (after_attention(cfg, w, *both) for both in zip(streams, attended, strict=True))
        return _laid_out(*after), None

    streams, _ = over_layers(
        cfg, rematerialized(cfg, layer), _laid_out(*streams), stacked_layers(cfg, params)
    )
    streams = tuple(norm(cfg, x, params["final_norm"]) for x in streams)
    x, y = _part(streams[0], p, n, parts) if joined else streams
    if parts > 1:
        whole = constrain(y, "batch", None, None, None)
        y = whole[:, 0, : n * t].reshape(len(y), n, t, y.shape[-1])
    first = last_hidden(x, lengths, order)[:, None, None]
    first = jnp.broadcast_to(first, (*branches.shape[:2], 1, x.shape[-1]))
    return x, jnp.concatenate([first, y], axis=2)


def _embedded(cfg: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """``embed``; tokens travel to a matrix that is cut by its width (``vocabulary_rows``)."""
    if axis_size("embed") == 1:
        return embed(cfg, params, tokens)
    flat = vocabulary_rows(tokens.reshape(len(tokens), -1), params["embedding"], cfg.dtype)
    return scaled(cfg, flat.reshape(*tokens.shape, flat.shape[-1]))


def _end_to_end(x: jax.Array, parts: int) -> jax.Array:
    """Branches [B, N, T, ...] as [B, 1, M, ...], one behind the other, where M divides into parts.

    So their tokens divide over the sequence axis, however few branches there are and however long.
    """
    b, n, t, *rest = x.shape
    padding = max(1, -(-n * t // parts)) * parts - n * t
    flat = x.reshape(b, 1, n * t, *rest)
    return jnp.pad(flat, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * len(rest))


def _join(trunk: jax.Array, branches: jax.Array, parts: int) -> jax.Array:
    """[B, P, ...] and [B, N, T, ...] as one stream [B, P + N T, ...].

    Where positions are cut it is [B, parts, (P + N T) / parts, ...]: every device joins its own.
    """
    flat = branches.reshape(branches.shape[0], -1, *branches.shape[3:])
    if parts == 1:
        return jnp.concatenate([trunk, flat], axis=1)
    own = [x.reshape(x.shape[0], parts, -1, *x.shape[2:]) for x in (trunk, flat)]
    return jnp.concatenate(own, axis=2)


def _part(x: jax.Array, p: int, n: int, parts: int) -> tuple[jax.Array, jax.Array]:
    """The trunk [B, P, ...] and the branches [B, N, T, ...] of one stream; or [B, 1, M, ...]."""
    if parts == 1:
        b, length, *rest = x.shape
        return x[:, :p], x[:, p:].reshape(b, n, (length - p) // n, *rest)
    b, _, _, *rest = x.shape
    own = p // parts
    return x[:, :, :own].reshape(b, p, *rest), x[:, :, own:].reshape(b, 1, -1, *rest)


def _laid_out(first: jax.Array, *branches: jax.Array) -> tuple[jax.Array, ...]:
    """Streams whose rows lie over the batch axes, and their positions over theirs."""
    first = constrain(first, "batch", "positions", *(None,) * (first.ndim - 2))
    return first, *(constrain(x, "batch", None, "positions", None) for x in branches)


class Decoder(TableModule):
    """The decoder as a Flax module, in front of this file's functions: it holds no other state.

    ``Decoder(cfg).init(key, method="parameters")`` makes the parameters that training starts from,
    boxed with their partitioning; ``nn.unbox`` takes it off. Every method applies to these, boxed
    or not, and to parameters with LoRA's adapters attached (``lora.attach``).
    """

    cfg: DecoderConfig

    def table(self) -> Mapping[str, Any]:
        """``parameter_table``."""
        return parameter_table(self.cfg)

    def __call__(
        self, trunk: jax.Array, lengths: jax.Array, branches: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """``trunk_and_branches``: hidden states [B, P, D] and [B, N, R, D]."""
        return trunk_and_branches(self.cfg, self.parameters(), trunk, lengths, branches)

    def prefill(self, trunk: jax.Array, lengths: jax.Array) -> tuple[jax.Array, TrunkCache]:
        """``prefill``: hidden states [B, P, D] and the trunk cache."""
        return prefill(self.cfg, self.parameters(), trunk, lengths)

    def extend(
        self,
        tokens: jax.Array,
        trunk_cache: TrunkCache,
        lengths: jax.Array,
        branch_cache: BranchCache,
        first: jax.Array | int,
    ) -> tuple[jax.Array, BranchCache]:
        """``extend``: a decoding step of every branch, tokens [B, N, 1], or several, [B, N, T]."""
        params = self.parameters()
        return extend(
            self.cfg, params, tokens, trunk_cache, lengths, branch_cache, jnp.asarray(first)
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores over the vocabulary in float32: [..., D] -> [..., V]."""
        return logits(self.cfg, self.parameters(), hidden)


def init_params(cfg: DecoderConfig, key: jax.Array) -> Params:
    """Random parameters as the nested tree that every function here takes."""
    init = jax.jit(partial(Decoder(cfg).init, method="parameters"))
    return nn.unbox(init(key))["params"]


def with_dtype(cfg: DecoderConfig, dtype: Literal["float32", "bfloat16"]) -> DecoderConfig:
    """The same model computing in another type."""
    return dataclasses.replace(cfg, dtype=dtype)
