"""The decoder: a Llama-family language model over one trunk and its branches.

The parameters are one table, ``parameter_table``: shapes, logical axes and initial scales. Flax's
``init``, the sharding rules, the exchange with Hugging Face and every memory estimate read it.
The forward pass is plain functions on arrays; ``Decoder`` gives them Flax's ``init``/``apply``.

Dimension letters are those of ``attention``; also V vocabulary, F hidden width of the MLP,
L layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.models.attention import branch_attention, trunk_attention
from dynarag_jax.sharding import constrain

Params = Mapping[str, Any]


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3's stretching of the slow rotary frequencies (Llama 3 report, section 3.4)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder; sizes follow Hugging Face's ``config.json``."""

    vocab: int = 320
    """tokens in the vocabulary"""
    width: int = 64
    """model dimension (hidden_size)"""
    layers: int = 4
    heads: int = 2
    """query heads"""
    kv_heads: int = 2
    """key/value heads; fewer than heads is grouped-query attention"""
    head_size: int = 32
    mlp: int = 172
    """hidden width of the gated MLP (intermediate_size)"""
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = True
    """the output projection is the embedding's transpose"""
    positions: int = 4096
    """longest sequence the model is meant for"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of activations; norms, softmax and logits are float32 always"""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the stored weights"""
    remat: Literal["none", "full", "dots"] = "none"
    """what a training step recomputes: nothing, whole layers, or all but matrix products"""
    unroll: int = 1
    """layers per iteration of the layer scan; ``layers`` writes them all out: slower to compile,
    faster for small models on CPU"""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"head_size = {self.head_size} must be even for rotary positions")


class Parameter(NamedTuple):
    """One array of the model: shape, logical axes, and the standard deviation it starts with."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    scale: float | None
    """None starts at one (the norms)"""


def parameter_table(cfg: DecoderConfig) -> dict[str, Any]:
    """The model's parameters as a tree of ``Parameter``; per-layer arrays are stacked on axis 0."""
    d, f, h, g, k = cfg.width, cfg.mlp, cfg.heads, cfg.kv_heads, cfg.head_size
    std = d**-0.5
    # Residual outputs start smaller, so that the depth does not blow up the stream (GPT-2).
    out = 1.0 / math.sqrt(2 * cfg.layers)
    layer = {
        "attention_norm": Parameter((d,), ("width",), None),
        "query": Parameter((d, h, k), ("embed", "heads", None), std),
        "key": Parameter((d, g, k), ("embed", "kv_heads", None), std),
        "value": Parameter((d, g, k), ("embed", "kv_heads", None), std),
        "output": Parameter((h, k, d), ("heads", None, "embed"), out * (h * k) ** -0.5),
        "mlp_norm": Parameter((d,), ("width",), None),
        "gate": Parameter((d, f), ("embed", "mlp"), std),
        "up": Parameter((d, f), ("embed", "mlp"), std),
        "down": Parameter((f, d), ("mlp", "embed"), out * f**-0.5),
    }
    table: dict[str, Any] = {
        "embedding": Parameter((cfg.vocab, d), ("vocab", "embed"), std),
        "layers": {
            name: Parameter((cfg.layers, *p.shape), ("layers", *p.axes), p.scale)
            for name, p in layer.items()
        },
        "final_norm": Parameter((d,), ("width",), None),
    }
    if not cfg.tied:
        table["head"] = Parameter((cfg.vocab, d), ("vocab", "embed"), std)
    return table


def is_parameter(x: Any) -> bool:
    """Whether ``x`` is a leaf of a parameter table."""
    return isinstance(x, Parameter)


def count_parameters(cfg: DecoderConfig) -> int:
    """How many numbers the model holds."""
    leaves = jax.tree.leaves(parameter_table(cfg), is_leaf=is_parameter)
    return sum(math.prod(p.shape) for p in leaves)


# ---------------------------------------------------------------------------- pieces of a layer


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide.astype(x.dtype) * weight.astype(x.dtype)).astype(x.dtype)


def rope_frequencies(cfg: DecoderConfig) -> np.ndarray:
    """Rotary frequencies [K / 2] in radians per position, with Llama-3's scaling if configured."""
    half = np.arange(0, cfg.head_size, 2, dtype=np.float64) / cfg.head_size
    freq = 1.0 / cfg.rope_base**half
    if (s := cfg.rope_scaling) is not None:
        wavelength = 2 * np.pi / freq
        smooth = (s.original_positions / wavelength - s.low_freq_factor) / (
            s.high_freq_factor - s.low_freq_factor
        )
        smooth = np.clip(smooth, 0.0, 1.0)
        freq = freq * (smooth + (1 - smooth) / s.factor)
    return freq.astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, freq: np.ndarray) -> jax.Array:
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


def _cast(w: Params, dtype: str) -> Params:
    return {name: p.astype(dtype) for name, p in w.items()}


def _project(x: jax.Array, w: jax.Array, axes: int = 1) -> jax.Array:
    """Contract the last ``axes`` axes of x with the first of w, as one plain matrix product.

    XLA on CPU is twice as slow on the gradient of the same product with several leading axes.
    """
    lead, inner = x.shape[: x.ndim - axes], math.prod(w.shape[:axes])
    return (x.reshape(-1, inner) @ w.reshape(inner, -1)).reshape(*lead, *w.shape[axes:])


def _qkv(
    cfg: DecoderConfig, w: Params, x: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    freq = rope_frequencies(cfg)
    h = rms_norm(x, w["attention_norm"], cfg.norm_eps)
    q = rotate(_project(h, w["query"]), positions, freq)
    k = rotate(_project(h, w["key"]), positions, freq)
    v = _project(h, w["value"])
    return q * (cfg.head_size**-0.5), k, v


def _after_attention(cfg: DecoderConfig, w: Params, x: jax.Array, attended: jax.Array) -> jax.Array:
    x = x + _project(attended, w["output"], axes=2)
    h = rms_norm(x, w["mlp_norm"], cfg.norm_eps)
    return x + _project(jax.nn.silu(_project(h, w["gate"])) * _project(h, w["up"]), w["down"])


# ---------------------------------------------------------------------------- whole passes


class Cache(NamedTuple):
    """Keys and values of all layers: [L, B, P, G, K] of trunks, [L, B, N, R, G, K] of branches."""

    k: jax.Array
    v: jax.Array


def _remat(cfg: DecoderConfig, body: Any) -> Any:
    if cfg.remat == "none":
        return body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(body, policy=policy if cfg.remat == "dots" else None)


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
    return jnp.take(params["embedding"], tokens, axis=0).astype(cfg.dtype)


def prefill(
    cfg: DecoderConfig, params: Params, trunk: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, Cache]:
    """Run the trunks alone.

    Args:
      trunk: tokens [B, P], right-padded.
      lengths: [B].

    Returns:
      final hidden states [B, P, D] (normalized) and the trunk cache.
    """
    positions = jnp.arange(trunk.shape[1])

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, Cache]:
        w = _cast(w, cfg.dtype)
        q, k, v = _qkv(cfg, w, x, positions)
        x = _after_attention(cfg, w, x, trunk_attention(q, k, v, lengths))
        return constrain(x, "batch", None, None), Cache(k, v)

    x = constrain(embed(cfg, params, trunk), "batch", None, None)
    x, cache = _over_layers(cfg, _remat(cfg, layer), x, params["layers"])
    return rms_norm(x, params["final_norm"], cfg.norm_eps), cache


def extend(
    cfg: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    trunk_cache: Cache,
    lengths: jax.Array,
    own: Cache,
    first: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Run T more tokens of every branch, against the trunk cache and the branches' own.

    Args:
      tokens: [B, N, T]; token t stands at branch position ``first + t``.
      trunk_cache: of the trunks, [L, B, P, G, K].
      lengths: [B], the trunks' lengths.
      own: [L, B, N, R, G, K], filled up to ``first``.
      first: scalar.

    Returns:
      final hidden states [B, N, T, D] (normalized) and the own cache with the T tokens written.
    """
    positions = lengths[:, None, None] + first + jnp.arange(tokens.shape[2])

    def layer(x: jax.Array, inputs: tuple[Params, Cache, Cache]) -> tuple[jax.Array, Cache]:
        w, past, mine = inputs
        w = _cast(w, cfg.dtype)
        q, k, v = _qkv(cfg, w, x, positions)
        mine = Cache(
            jax.lax.dynamic_update_slice_in_dim(mine.k, k, first, axis=2),
            jax.lax.dynamic_update_slice_in_dim(mine.v, v, first, axis=2),
        )
        attended = branch_attention(q, past.k, past.v, lengths, mine.k, mine.v, first)
        x = _after_attention(cfg, w, x, attended)
        return constrain(x, "batch", None, None, None), mine

    x = constrain(embed(cfg, params, tokens), "batch", None, None, None)
    x, own = _over_layers(cfg, layer, x, (params["layers"], trunk_cache, own))
    return rms_norm(x, params["final_norm"], cfg.norm_eps), own


def empty_cache(cfg: DecoderConfig, batch: int, branches: int, length: int) -> Cache:
    """An own cache of zeros, [L, B, N, R, G, K]."""
    shape = (cfg.layers, batch, branches, length, cfg.kv_heads, cfg.head_size)
    return Cache(jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype))


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

    def layer(carry: tuple[jax.Array, jax.Array], w: Params) -> tuple[Any, None]:
        x, y = carry
        w = _cast(w, cfg.dtype)
        q, k, v = _qkv(cfg, w, x, trunk_positions)
        x = _after_attention(cfg, w, x, trunk_attention(q, k, v, lengths))
        q, own_k, own_v = _qkv(cfg, w, y, branch_positions)
        y = _after_attention(cfg, w, y, branch_attention(q, k, v, lengths, own_k, own_v))
        return (constrain(x, "batch", None, None), constrain(y, "batch", None, None, None)), None

    x = constrain(embed(cfg, params, trunk), "batch", None, None)
    y = constrain(embed(cfg, params, inputs), "batch", None, None, None)
    (x, y), _ = _over_layers(cfg, _remat(cfg, layer), (x, y), params["layers"])
    x = rms_norm(x, params["final_norm"], cfg.norm_eps)
    y = rms_norm(y, params["final_norm"], cfg.norm_eps)
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
    table = output_embedding(cfg, params).astype(cfg.dtype)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


class _Table(nn.Module):
    """Declares a (sub)tree of the parameter table under its own names."""

    table: Mapping[str, Any]
    dtype: str

    @nn.compact
    def __call__(self) -> Params:
        tree: dict[str, Any] = {}
        for name, p in self.table.items():
            if is_parameter(p):
                init = nn.initializers.ones if p.scale is None else nn.initializers.normal(p.scale)
                tree[name] = self.param(name, init, p.shape, jnp.dtype(self.dtype))
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
