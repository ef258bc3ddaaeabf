"""T5 1.0 and 1.1 (arXiv 1910.10683), and MonoT5's scoring with it (arXiv 2003.06713).

Dimension letters: B texts, S source positions, T target positions, D width, H heads, K head size,
F hidden width of the MLP, V vocabulary. Sources are right-padded and masked by their lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynarag_jax.models.config import Parameter, Params, stacked
from dynarag_jax.models.layers import rms_norm
from dynarag_jax.models.modules import TableModule


@dataclass(frozen=True)
class T5Config:
    """Shape and numerics of a T5."""

    vocab: int = 32128
    width: int = 512
    """model dimension (d_model)"""
    layers: int = 6
    decoder_layers: int = 6
    heads: int = 8
    head_size: int = 64
    mlp: int = 2048
    gated: bool = False
    """gated gelu (1.1) in place of relu (1.0)"""
    buckets: int = 32
    """of relative positions"""
    max_distance: int = 128
    """relative positions from here on share one bucket"""
    norm_eps: float = 1e-6
    tied: bool = True
    """the output projection is the embedding's transpose (1.0)"""
    scaled_output: bool = True
    """hidden states are divided by the root of the width before the projection (1.0)"""
    start: int = 0
    """token that decoding begins with"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"


def parameter_table(cfg: T5Config) -> dict[str, Any]:
    """The model's parameters as a tree of ``Parameter``; per-layer arrays are stacked on axis 0."""
    d, f, h, k = cfg.width, cfg.mlp, cfg.heads, cfg.head_size
    norm = Parameter((d,), ("width",), None)

    def attention(prefix: str) -> dict[str, Parameter]:
        # The scores are not divided by the root of the head size: the queries start smaller.
        return {
            f"{prefix}norm": norm,
            f"{prefix}query": Parameter((d, h, k), ("embed", "heads", None), (d * k) ** -0.5),
            f"{prefix}key": Parameter((d, h, k), ("embed", "heads", None), d**-0.5),
            f"{prefix}value": Parameter((d, h, k), ("embed", "heads", None), d**-0.5),
            f"{prefix}output": Parameter((h, k, d), ("heads", None, "embed"), (h * k) ** -0.5),
        }

    mlp = {
        "mlp_norm": norm,
        "up": Parameter((d, f), ("embed", "mlp"), d**-0.5),
        "down": Parameter((f, d), ("mlp", "embed"), f**-0.5),
    }
    if cfg.gated:
        mlp["gate"] = mlp["up"]
    position_bias = Parameter((cfg.buckets, h), (None, "heads"), d**-0.5)
    table: dict[str, Any] = {
        "embedding": Parameter((cfg.vocab, d), ("vocab", "embed"), 1.0),
        "encoder": {
            "position_bias": position_bias,
            "layers": stacked({**attention("self_"), **mlp}, cfg.layers),
            "final_norm": norm,
        },
        "decoder": {
            "position_bias": position_bias,
            "layers": stacked(
                {**attention("self_"), **attention("cross_"), **mlp}, cfg.decoder_layers
            ),
            "final_norm": norm,
        },
    }
    if not cfg.tied:
        table["head"] = Parameter((cfg.vocab, d), ("vocab", "embed"), 1.0)
    return table


def position_buckets(cfg: T5Config, queries: int, keys: int, both_ways: bool) -> jax.Array:
    """Bucket [queries, keys] of each relative position: exact when near, logarithmic when far."""
    offset = jnp.arange(keys) - jnp.arange(queries)[:, None]
    buckets, start = cfg.buckets, jnp.zeros_like(offset)
    if both_ways:
        buckets //= 2
        start = jnp.where(offset > 0, buckets, 0)
        distance = jnp.abs(offset)
    else:
        distance = jnp.maximum(-offset, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(cfg.max_distance / exact)
    far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return start + jnp.where(distance < exact, distance, far)


def _attend(w: Params, prefix: str, x: jax.Array, source: jax.Array, bias: jax.Array) -> jax.Array:
    """Attention of x [B, T, D] over source [B, S, D], with bias [B or 1, H or 1, T, S]."""
    q = jnp.einsum("btd,dhk->bthk", x, w[f"{prefix}query"])
    k = jnp.einsum("bsd,dhk->bshk", source, w[f"{prefix}key"])
    v = jnp.einsum("bsd,dhk->bshk", source, w[f"{prefix}value"])
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores + bias, axis=-1).astype(v.dtype)
    attended = jnp.einsum("bhts,bshk->bthk", weights, v)
    return jnp.einsum("bthk,hkd->btd", attended, w[f"{prefix}output"])


def _mlp(cfg: T5Config, w: Params, x: jax.Array) -> jax.Array:
    h = rms_norm(x, w["mlp_norm"], cfg.norm_eps)
    up = h @ w["up"]
    up = jax.nn.gelu(h @ w["gate"], approximate=True) * up if cfg.gated else jax.nn.relu(up)
    return x + up @ w["down"]


def _cast(cfg: T5Config, w: Params) -> Params:
    return {name: p.astype(cfg.dtype) for name, p in w.items()}


def _position_bias(
    cfg: T5Config, table: jax.Array, queries: int, keys: int, both_ways: bool
) -> jax.Array:
    buckets = position_buckets(cfg, queries, keys, both_ways)
    return jnp.transpose(table.astype(jnp.float32)[buckets], (2, 0, 1))[None]  # [1, H, T, S]


def _hidden_beyond(lengths: jax.Array, positions: int) -> jax.Array:
    """Bias [B, 1, 1, S] that hides source positions at or beyond each length."""
    seen = jnp.arange(positions) < jnp.maximum(lengths, 1)[:, None]
    return jnp.where(seen, 0.0, -jnp.inf)[:, None, None]


def encode(cfg: T5Config, params: Params, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Hidden states [B, S, D] of sources [B, S] of these lengths [B]."""
    side, s = params["encoder"], tokens.shape[1]
    bias = _position_bias(cfg, side["position_bias"], s, s, both_ways=True)
    bias = bias + _hidden_beyond(lengths, s)

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, None]:
        w = _cast(cfg, w)
        h = rms_norm(x, w["self_norm"], cfg.norm_eps)
        return _mlp(cfg, w, x + _attend(w, "self_", h, h, bias)), None

    x, _ = jax.lax.scan(layer, _embed(cfg, params, tokens), side["layers"])
    return rms_norm(x, side["final_norm"], cfg.norm_eps)


def decode(
    cfg: T5Config, params: Params, encoded: jax.Array, lengths: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Hidden states [B, T, D] of given targets [B, T], each seeing its past and its source.

    Args:
      encoded: [B, S, D] of ``encode``; lengths: [B], of the sources.
      tokens: targets, the start token first.
    """
    side, t = params["decoder"], tokens.shape[1]
    bias = _position_bias(cfg, side["position_bias"], t, t, both_ways=False)
    bias = bias + jnp.where(jnp.arange(t) <= jnp.arange(t)[:, None], 0.0, -jnp.inf)
    across = _hidden_beyond(lengths, encoded.shape[1])

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, None]:
        w = _cast(cfg, w)
        h = rms_norm(x, w["self_norm"], cfg.norm_eps)
        x = x + _attend(w, "self_", h, h, bias)
        h = rms_norm(x, w["cross_norm"], cfg.norm_eps)
        return _mlp(cfg, w, x + _attend(w, "cross_", h, encoded, across)), None

    x, _ = jax.lax.scan(layer, _embed(cfg, params, tokens), side["layers"])
    x = rms_norm(x, side["final_norm"], cfg.norm_eps)
    return x * (cfg.width**-0.5) if cfg.scaled_output else x


def _embed(cfg: T5Config, params: Params, tokens: jax.Array) -> jax.Array:
    return jnp.take(params["embedding"], tokens, axis=0).astype(cfg.dtype)


def logits(
    cfg: T5Config, params: Params, hidden: jax.Array, rows: jax.Array | None = None
) -> jax.Array:
    """Scores in float32 over the vocabulary, or over some of its tokens: [..., D] -> [..., V]."""
    table = params["embedding" if cfg.tied else "head"]
    table = (table if rows is None else table[rows]).astype(cfg.dtype)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def monot5_scores(
    cfg: T5Config, params: Params, tokens: jax.Array, lengths: jax.Array, true: int, false: int
) -> jax.Array:
    """Relevance of each text, as MonoT5 gives it: one decoding step, two tokens.

    Args:
      tokens: texts [B, S] of ``exchange.t5.monot5_text``, right-padded; lengths: [B].
      true, false: the two tokens.

    Returns:
      [B] log-probability of ``true`` against ``false``; its exponential lies between 0 and 1.
    """
    encoded = encode(cfg, params, tokens, lengths)
    start = jnp.full((tokens.shape[0], 1), cfg.start, jnp.int32)
    hidden = decode(cfg, params, encoded, lengths, start)[:, 0]
    two = logits(cfg, params, hidden, jnp.array([true, false]))
    return jax.nn.log_softmax(two, axis=-1)[:, 0]


class T5(TableModule):
    """T5 as a Flax module, in front of this file's functions: it holds no other state."""

    cfg: T5Config

    def table(self) -> dict[str, Any]:
        """``parameter_table``."""
        return parameter_table(self.cfg)

    def __call__(self, tokens: jax.Array, lengths: jax.Array, targets: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the token after each target token, given sources [B, S]."""
        params = self.parameters()
        encoded = encode(self.cfg, params, tokens, lengths)
        return logits(self.cfg, params, decode(self.cfg, params, encoded, lengths, targets))

    def encode(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """``encode``: hidden states [B, S, D] of the sources."""
        return encode(self.cfg, self.parameters(), tokens, lengths)

    def decode(self, encoded: jax.Array, lengths: jax.Array, tokens: jax.Array) -> jax.Array:
        """``decode``: hidden states [B, T, D] of given targets."""
        return decode(self.cfg, self.parameters(), encoded, lengths, tokens)

    def monot5_scores(
        self, tokens: jax.Array, lengths: jax.Array, true: int, false: int
    ) -> jax.Array:
        """``monot5_scores``: log-probabilities [B] of relevance."""
        return monot5_scores(self.cfg, self.parameters(), tokens, lengths, true, false)


def init_params(cfg: T5Config, key: jax.Array) -> Params:
    """Random parameters as the nested tree that every function here takes."""
    return nn.unbox(jax.jit(partial(T5(cfg).init, method="parameters"))(key))["params"]
