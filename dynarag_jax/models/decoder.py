"""The decoder: a language model of the Llama family over one trunk and its branches.

``config`` says what families there are and what their parameters are. The forward pass is plain
functions on arrays; ``Decoder`` gives them Flax's ``init``/``apply``. A feature that a
configuration leaves off costs nothing: it is decided while tracing, never in the program.

Dimension letters are those of ``attention``; also V vocabulary, F hidden width of the MLP,
L layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dynarag_jax.models import kernels
from dynarag_jax.models.attention import KEPT, branch_attention, soft_cap
from dynarag_jax.models.config import (
    DecoderConfig,
    Family,
    Parameter,
    Params,
    RopeScaling,
    Sight,
    count_parameters,
    initializer,
    is_parameter,
    parameter_table,
    rope_frequencies,
    sights,
)
from dynarag_jax.models.lora import MATRICES, LowRank
from dynarag_jax.models.products import matmul
from dynarag_jax.sharding import constrain

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


# ---------------------------------------------------------------------------- pieces of a layer


_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, offset: bool = False) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467).

    ``offset``: the factor is one plus the weight, and is applied before rounding, as Gemma does.
    """
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if offset:
        return (wide * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
    return (wide.astype(x.dtype) * weight.astype(x.dtype)).astype(x.dtype)


def rotate(x: jax.Array, positions: jax.Array, freq: np.ndarray | jax.Array) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864), halves layout.

    Args:
      x: [..., T, heads, K].
      positions: [..., T], broadcastable to x's leading axes.
      freq: [K / 2].
    """
    angle = positions[..., None].astype(jnp.float32) * freq
    # bfloat16 would round positions above 256: angles stay float32.
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Layer(NamedTuple):
    """One layer's part of the model; with a leading axis of layers, all of them."""

    weights: Params
    adapters: Mapping[str, LowRank]
    sight: Sight


def _layers(cfg: DecoderConfig, params: Params) -> Layer:
    return Layer(params["layers"], params.get("adapters", {}), sights(cfg)[1])


def _ready(cfg: DecoderConfig, layer: Layer) -> Layer:
    """The layer in the type of the activations, its sight completed by what all layers share."""
    # Matrices stay as they are stored: their products cast them, and keep gradients in float32.
    weights = {
        name: p if name in MATRICES else p.astype(cfg.dtype) for name, p in layer.weights.items()
    }
    shared = sights(cfg)[0]
    sight = Sight(
        *(mine if all_ is None else all_ for all_, mine in zip(shared, layer.sight, strict=True))
    )
    return Layer(weights, layer.adapters, sight)


def _norm(cfg: DecoderConfig, x: jax.Array, weight: jax.Array) -> jax.Array:
    return rms_norm(x, weight, cfg.norm_eps, cfg.norm_offset)


def _project(layer: Layer, name: str, x: jax.Array, axes: int = 1) -> jax.Array:
    """Contract the last ``axes`` axes of x with the first of a matrix, as one plain matrix product.

    XLA on CPU is twice as slow on the gradient of the same product with several leading axes.
    """
    w = layer.weights[name]
    lead, inner = x.shape[: x.ndim - axes], math.prod(w.shape[:axes])
    flat = x.reshape(-1, inner)
    y = matmul(flat, w.reshape(inner, -1))
    if name in layer.adapters:
        y += layer.adapters[name].apply(flat, stream=x.ndim)
    # By name, since a policy that looks for products does not see into a product of two types.
    y = checkpoint_name(y, PRODUCT).reshape(*lead, *w.shape[axes:])
    bias = layer.weights.get(f"{name}_bias")
    return y if bias is None else y + bias


def _qkv(
    cfg: DecoderConfig, layer: Layer, x: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    w, freq = layer.weights, layer.sight.freq
    h = _norm(cfg, x, w["attention_norm"])
    q, k, v = (_project(layer, name, h) for name in ("query", "key", "value"))
    if cfg.qk_norm:
        q, k = _norm(cfg, q, w["query_norm"]), _norm(cfg, k, w["key_norm"])
    scale = (cfg.query_scale or cfg.head_size) ** -0.5
    return rotate(q, positions, freq) * scale, rotate(k, positions, freq), v


def _trunk_attention(
    cfg: DecoderConfig, layer: Layer, q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array
) -> jax.Array:
    kernel = kernels.choose(cfg).kernel
    return kernels.attend(
        q, k, v, lengths, layer.sight.window, cfg.score_cap, kernel, cfg.window
    )  # fmt: skip


def _after_attention(
    cfg: DecoderConfig, layer: Layer, x: jax.Array, attended: jax.Array
) -> jax.Array:
    w = layer.weights
    h = _project(layer, "output", attended, axes=2)
    x = x + (_norm(cfg, h, w["attention_post_norm"]) if cfg.post_norms else h)
    h = _norm(cfg, x, w["mlp_norm"])
    h = _ACTIVATIONS[cfg.activation](_project(layer, "gate", h)) * _project(layer, "up", h)
    h = _project(layer, "down", h)
    return x + (_norm(cfg, h, w["mlp_post_norm"]) if cfg.post_norms else h)


# ---------------------------------------------------------------------------- whole passes


LAYER_INPUT, PRODUCT = "layer_input", "product"
"""The names under which rematerialization knows what enters a layer, and its matrix products."""


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


def _remat(cfg: DecoderConfig, body: Any) -> Any:
    """A layer's body under the rematerialization that the configuration names."""
    if cfg.remat == "none":
        return body
    policies = jax.checkpoint_policies
    policy = {
        "full": None,
        "dots": policies.save_only_these_names(PRODUCT, *KEPT),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
        "dots_offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=KEPT,
            names_which_can_be_offloaded=[PRODUCT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[cfg.remat]
    return jax.checkpoint(body, policy=policy)


def _over_layers(cfg: DecoderConfig, body: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """Scan ``body`` over the layers, or write them out where the configuration unrolls them all."""
    if cfg.unroll < cfg.layers:
        return jax.lax.scan(body, carry, xs, unroll=cfg.unroll)
    outs = []
    for i in range(cfg.layers):
        carry, out = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        outs.append(out)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *outs)


def embed(cfg: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Token embeddings [..., D] of tokens [...]."""
    x = jnp.take(params["embedding"], tokens, axis=0).astype(cfg.dtype)
    return x * jnp.asarray(math.sqrt(cfg.width), cfg.dtype) if cfg.scaled_embedding else x


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
        w = _ready(cfg, w)
        q, k, v = _qkv(cfg, w, x, positions)
        x = _after_attention(cfg, w, x, _trunk_attention(cfg, w, q, k, v, lengths))
        return constrain(x, "batch", None, None), TrunkCache(k, v)

    x = constrain(embed(cfg, params, trunk), "batch", None, None)
    x, cache = _over_layers(cfg, _remat(cfg, layer), x, _layers(cfg, params))
    return _norm(cfg, x, params["final_norm"]), cache


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
        w = _ready(cfg, w)
        q, k, v = _qkv(cfg, w, x, positions)
        mine = BranchCache(
            jax.lax.dynamic_update_slice_in_dim(mine.k, k, first, axis=2),
            jax.lax.dynamic_update_slice_in_dim(mine.v, v, first, axis=2),
        )
        attended = branch_attention(
            q, past.k, past.v, lengths, mine.k, mine.v, first, w.sight.window, cfg.score_cap
        )
        x = _after_attention(cfg, w, x, attended)
        return constrain(x, "batch", None, None, None), mine

    x = constrain(embed(cfg, params, tokens), "batch", None, None, None)
    x, cache = _over_layers(cfg, layer, x, (_layers(cfg, params), trunk_cache, branch_cache))
    return _norm(cfg, x, params["final_norm"]), cache


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
      Both are normalized, ready for ``logits``.
    """
    trunk_positions = jnp.arange(trunk.shape[1])
    inputs = branches[:, :, :-1]
    branch_positions = lengths[:, None, None] + jnp.arange(inputs.shape[2])

    def layer(carry: tuple[jax.Array, jax.Array], w: Layer) -> tuple[Any, None]:
        x, y = checkpoint_name(carry, LAYER_INPUT)
        w = _ready(cfg, w)
        window, cap = w.sight.window, cfg.score_cap
        q, k, v = _qkv(cfg, w, x, trunk_positions)
        x = _after_attention(cfg, w, x, _trunk_attention(cfg, w, q, k, v, lengths))
        q, own_k, own_v = _qkv(cfg, w, y, branch_positions)
        attended = branch_attention(q, k, v, lengths, own_k, own_v, 0, window, cap)
        y = _after_attention(cfg, w, y, attended)
        return (constrain(x, "batch", None, None), constrain(y, "batch", None, None, None)), None

    x = constrain(embed(cfg, params, trunk), "batch", None, None)
    y = constrain(embed(cfg, params, inputs), "batch", None, None, None)
    (x, y), _ = _over_layers(cfg, _remat(cfg, layer), (x, y), _layers(cfg, params))
    x = _norm(cfg, x, params["final_norm"])
    y = _norm(cfg, y, params["final_norm"])
    first = last_hidden(x, lengths)[:, None, None]
    first = jnp.broadcast_to(first, (*branches.shape[:2], 1, x.shape[-1]))
    return x, jnp.concatenate([first, y], axis=2)


def last_hidden(hidden: jax.Array, lengths: jax.Array) -> jax.Array:
    """The hidden state of each trunk's last token: [B, P, D], [B] -> [B, D]."""
    index = jnp.maximum(lengths - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, index, axis=1)[:, 0]


def output_embedding(cfg: DecoderConfig, params: Params) -> jax.Array:
    """The matrix [V, D] whose rows are scored against hidden states."""
    return params["embedding"] if cfg.tied else params["head"]


def logits(cfg: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Scores over the vocabulary in float32: [..., D] -> [..., V]."""
    return score_rows(cfg, hidden, output_embedding(cfg, params))


def score_rows(cfg: DecoderConfig, hidden: jax.Array, rows: jax.Array) -> jax.Array:
    """Scores in float32 of some rows of the output embedding: [..., D], [V, D] -> [..., V]."""
    *lead, width = hidden.shape
    scores = matmul(hidden.reshape(-1, width), rows.T, jnp.float32).reshape(*lead, -1)
    return soft_cap(scores, cfg.logit_cap)


class _Table(nn.Module):
    """Declares a (sub)tree of the parameter table under its own names."""

    table: Mapping[str, Any]
    dtype: str

    @nn.compact
    def __call__(self) -> Params:
        tree: dict[str, Any] = {}
        for name, p in self.table.items():
            if is_parameter(p):
                tree[name] = self.param(name, initializer(p), p.shape, jnp.dtype(self.dtype))
            else:
                tree[name] = _Table(p, self.dtype, name=name)()
        return tree


class Decoder(nn.Module):
    """The decoder as a Flax module: it declares the parameters and holds no other state."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(
        self, trunk: jax.Array, lengths: jax.Array, branches: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """``trunk_and_branches`` with this module's parameters."""
        table = _Table(parameter_table(self.cfg), self.cfg.param_dtype, name="decoder")
        return trunk_and_branches(self.cfg, table(), trunk, lengths, branches)


def init_params(cfg: DecoderConfig, key: jax.Array) -> Params:
    """Random parameters as the nested tree that every function here takes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(Decoder(cfg).init)
    return init(key, tokens, jnp.ones((1,), jnp.int32), tokens[:, None])["params"]["decoder"]


def with_dtype(cfg: DecoderConfig, dtype: Literal["float32", "bfloat16"]) -> DecoderConfig:
    """The same model computing in another type."""
    return dataclasses.replace(cfg, dtype=dtype)
