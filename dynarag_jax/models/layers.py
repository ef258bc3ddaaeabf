"""The pieces that a pass over the decoder's layers is made of, and how layers are looped over.

A feature that a configuration leaves off costs nothing: it is decided while tracing, never in the
program. Dimension letters are those of ``attention``; also V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dynarag_jax.models import kernels, parts
from dynarag_jax.models.attention import KEPT, soft_cap
from dynarag_jax.models.config import AttentionSpec, DecoderConfig, Params, attention_specs
from dynarag_jax.models.lora import MATRICES, LowRank
from dynarag_jax.models.products import matmul, vocabulary_scores
from dynarag_jax.sharding import axis_size, constrain

LAYER_INPUT, PRODUCT = "layer_input", "product"
"""The names under which rematerialization knows what enters a layer, and its matrix products."""

_AXES = {
    "query": ("embed", "heads"),
    "key": ("embed", "kv_heads"),
    "value": ("embed", "kv_heads"),
    "output": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
"""Logical axes of each matrix's input and output."""

_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


def rms_norm(
    x: jax.Array,
    weight: jax.Array,
    eps: float,
    offset: bool = False,
    axes: tuple[int, ...] = (-1,),
) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467).

    Args:
      weight: of the shape of ``axes``, the axes of x that the norm is over.
      offset: the factor is one plus the weight, and is applied before rounding, as Gemma does.
    """
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + eps)
    if offset:
        return (wide * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
    return (wide.astype(x.dtype) * weight.astype(x.dtype)).astype(x.dtype)


def rotate(
    x: jax.Array, positions: jax.Array, freq: np.ndarray | jax.Array, scale: float = 1.0
) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864), halves layout.

    Args:
      x: [..., T, heads, K].
      positions: [..., T], broadcastable to x's leading axes.
      freq: [K / 2], or fewer: the numbers of a head beyond stay as they are.
      scale: what is turned is multiplied by it.
    """
    if (turned := 2 * freq.shape[-1]) < x.shape[-1]:
        first = rotate(x[..., :turned], positions, freq, scale)
        return jnp.concatenate([first, x[..., turned:]], axis=-1)
    angle = positions[..., None].astype(jnp.float32) * freq
    # bfloat16 would round positions above 256: angles stay float32.
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    if scale != 1:
        cos, sin = cos * scale, sin * scale
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Layer(NamedTuple):
    """One layer's part of the model; with a leading axis of layers, all of them."""

    weights: Params
    adapters: Mapping[str, LowRank]
    attention: AttentionSpec
    stays: bool | None = None
    """whether weights stay on their devices and the few tokens travel to them, when decoding"""


def stacked_layers(cfg: DecoderConfig, params: Params) -> Layer:
    """All layers of the model, for a scan over their leading axis."""
    return Layer(params["layers"], params.get("adapters", {}), attention_specs(cfg)[1])


def ready(cfg: DecoderConfig, layer: Layer) -> Layer:
    """The layer in the type of the activations, its attention completed by what all share."""
    # Matrices stay as they are stored: their products cast them, and keep gradients in float32.
    weights = {
        name: p if name in MATRICES else p.astype(cfg.dtype) for name, p in layer.weights.items()
    }
    shared = attention_specs(cfg)[0]
    attention = AttentionSpec(
        *(
            own if common is None else common
            for common, own in zip(shared, layer.attention, strict=True)
        )
    )
    return Layer(weights, layer.adapters, attention, layer.stays)


def norm(
    cfg: DecoderConfig, x: jax.Array, weight: jax.Array, axes: tuple[int, ...] = (-1,)
) -> jax.Array:
    """``rms_norm`` as the model has it."""
    return rms_norm(x, weight, cfg.norm_eps, cfg.norm_offset, axes)


def _project(layer: Layer, name: str, x: jax.Array, axes: int = 1) -> jax.Array:
    """Contract the last ``axes`` axes of x with the first of a matrix, as one plain matrix product.

    XLA on CPU is twice as slow on the gradient of the same product with several leading axes. Where
    positions are cut these stay apart: no layout has rows and positions in parts as one axis.
    """
    w = layer.weights[name]
    lead, inner = x.shape[: x.ndim - axes], math.prod(w.shape[:axes])
    flat = x.reshape(*(lead if axis_size("positions") > 1 else (-1,)), inner)
    inside, outside = _AXES[name]
    if layer.stays:
        flat = constrain(flat, "rows", inside)
    y = matmul(flat, w.reshape(inner, -1), axes=None if layer.stays else _AXES[name])
    if name in layer.adapters:
        y += layer.adapters[name].apply(flat, stream=x.ndim)
    if layer.stays and outside == "embed":
        y = constrain(constrain(y, "rows", "embed"), "batch", None)
    elif layer.stays:
        y = constrain(y, "batch", outside)
    # By name, since a policy that looks for products does not see into a product of two types.
    y = checkpoint_name(y, PRODUCT).reshape(*lead, *w.shape[axes:])
    bias = layer.weights.get(f"{name}_bias")
    return y if bias is None else y + bias


def project_qkv(
    cfg: DecoderConfig, layer: Layer, x: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first half of a layer up to its attention.

    Args:
      x: [..., T, D]; positions: [..., T], broadcastable to its leading axes.

    Returns:
      queries [..., T, H, K], rotated and scaled; keys, rotated, and values [..., T, G, K].
    """
    w, freq = layer.weights, layer.attention.freq
    h = norm(cfg, x, w["attention_norm"]) if cfg.pre_norms else x
    q, k, v = (_project(layer, name, h) for name in ("query", "key", "value"))
    if cfg.qk_norm:
        axes = (-2, -1) if cfg.qk_norm_joint else (-1,)
        q, k = norm(cfg, q, w["query_norm"], axes), norm(cfg, k, w["key_norm"], axes)
    scale = (cfg.query_scale or cfg.head_size) ** -0.5
    turn = cfg.rope_scaling.attention_factor if cfg.rope_scaling else 1.0
    return rotate(q, positions, freq, turn) * scale, rotate(k, positions, freq, turn), v


def attend_trunk(
    cfg: DecoderConfig,
    layer: Layer,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    cut: bool = False,
) -> jax.Array:
    """Causal attention of trunks over themselves, by the kernel of the platform: ``kernels``.

    ``cut``: the positions are cut over the mesh's sequence axis (``parts``).
    """
    kernel = kernels.choose(cfg, parts=axis_size("positions") if cut else 1).kernel
    attend = parts.trunk_in_parts if cut else kernels.attend
    return attend(q, k, v, lengths, layer.attention.window, cfg.score_cap, kernel, cfg.window)


def after_attention(
    cfg: DecoderConfig, layer: Layer, x: jax.Array, attended: jax.Array
) -> jax.Array:
    """The rest of a layer: its output projection, both residual sums and the MLP.

    Args:
      x: [..., T, D], what entered the layer; attended: [..., T, H, K].
    """
    w = layer.weights
    h = _project(layer, "output", attended, axes=2)
    x = x + _added(cfg, h, w.get("attention_post_norm"))
    h = norm(cfg, x, w["mlp_norm"]) if cfg.pre_norms else x
    h = _ACTIVATIONS[cfg.activation](_project(layer, "gate", h)) * _project(layer, "up", h)
    return x + _added(cfg, _project(layer, "down", h), w.get("mlp_post_norm"))


def _added(cfg: DecoderConfig, h: jax.Array, weight: jax.Array | None) -> jax.Array:
    """What attention or MLP adds to the residual stream, after its norm where there is one."""
    h = h if weight is None else norm(cfg, h, weight)
    return h if cfg.residual_scale == 1 else h * jnp.asarray(cfg.residual_scale, h.dtype)


def rematerialized(cfg: DecoderConfig, body: Any) -> Any:
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
    # A scan keeps the passes apart by itself.
    return jax.checkpoint(body, policy=policy, prevent_cse=not _scanned(cfg))


def _scanned(cfg: DecoderConfig) -> bool:
    return cfg.unroll < cfg.layers


def over_layers(cfg: DecoderConfig, body: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """Scan ``body`` over the layers, or write them out where the configuration unrolls them all."""
    if _scanned(cfg):
        return jax.lax.scan(body, carry, xs, unroll=cfg.unroll)
    outs = []
    for i in range(cfg.layers):
        carry, out = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        outs.append(out)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *outs)


def embed(cfg: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Token embeddings [..., D] of tokens [...]."""
    return scaled(cfg, jnp.take(params["embedding"], tokens, axis=0).astype(cfg.dtype))


def scaled(cfg: DecoderConfig, x: jax.Array) -> jax.Array:
    """Rows of the embedding [..., D] as the first layer reads them."""
    scale = cfg.embedding_scale * (math.sqrt(cfg.width) if cfg.scaled_embedding else 1.0)
    return x if scale == 1 else x * jnp.asarray(scale, cfg.dtype)


def last_hidden(
    hidden: jax.Array, lengths: jax.Array, positions: np.ndarray | None = None
) -> jax.Array:
    """The hidden state of each trunk's last token: [B, P, D], [B] -> [B, D].

    ``positions``: [P], where they lie in another order, cut over a mesh.
    """
    if positions is not None:
        # One term of each sum is there: exact, and no device needs another's positions.
        last = positions == jnp.maximum(lengths - 1, 0)[:, None]
        return jnp.where(last[..., None], hidden, 0).sum(1)
    index = jnp.maximum(lengths - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, index, axis=1)[:, 0]


def output_embedding(cfg: DecoderConfig, params: Params) -> jax.Array:
    """The matrix [V, D] whose rows are scored against hidden states."""
    return params["embedding"] if cfg.tied else params["head"]


def logits(cfg: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Scores over the vocabulary in float32: [..., D] -> [..., V]."""
    return score_rows(cfg, hidden, output_embedding(cfg, params), whole=True)


def score_rows(
    cfg: DecoderConfig, hidden: jax.Array, rows: jax.Array, whole: bool = False
) -> jax.Array:
    """Scores in float32 of some rows of the output embedding: [..., D], [V, D] -> [..., V].

    ``whole``: the rows are the embedding itself, as it lies on the mesh.
    """
    *lead, width = hidden.shape
    cut = axis_size("positions")
    flat = hidden if cut > 1 else hidden.reshape(-1, width)
    divides = cut == 1 or (hidden.ndim == 3 and hidden.shape[1] % cut == 0)
    if whole and axis_size("embed") > 1 and divides:
        scores = vocabulary_scores(flat, rows)
    else:
        scores = matmul(flat, rows.T, jnp.float32)
    scores = scores.reshape(*lead, -1)
    if cfg.logit_scale != 1:
        scores = scores / cfg.logit_scale
    return soft_cap(scores, cfg.logit_cap)
