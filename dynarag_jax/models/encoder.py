"""The encoder: BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692), a hidden state per token.

MiniLM, Contriever, BGE, E5 and most retrieval encoders are this model with other weights. The
forward pass is plain functions on arrays; ``Encoder`` gives them Flax's ``init``/``apply``.

Dimension letters: B texts, T positions, D model width, H heads, K head size, F hidden width of the
MLP, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = Mapping[str, Any]


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and numerics of an encoder; sizes follow Hugging Face's ``config.json``."""

    vocab: int = 30522
    """word pieces in the vocabulary"""
    width: int = 384
    """model dimension (hidden_size)"""
    layers: int = 6
    heads: int = 12
    mlp: int = 1536
    """hidden width of the MLP (intermediate_size)"""
    positions: int = 512
    """longest text, in word pieces, that has position embeddings"""
    first_position: int = 0
    """row of the position table where texts begin; RoBERTa leaves the first two rows unused"""
    types: int = 2
    """token types; a text alone is type 0 throughout"""
    norm_eps: float = 1e-12
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of activations; norms and softmax are float32 always"""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")


def parameter_shapes(cfg: EncoderConfig, scored: bool = False) -> dict[str, Any]:
    """Shapes of the parameters, as the tree they form; per-layer arrays are stacked on axis 0.

    ``scored`` adds a cross-encoder's head.
    """
    d, f, n = cfg.width, cfg.mlp, cfg.layers
    head = {"dense": (d, d), "dense_bias": (d,), "score": (d, 1), "score_bias": (1,)}
    return {
        "tokens": (cfg.vocab, d),
        "positions": (cfg.first_position + cfg.positions, d),
        "types": (cfg.types, d),
        "norm_scale": (d,),
        "norm_bias": (d,),
        "layers": {
            "qkv": (n, d, 3 * d),  # query, key and value side by side: one matrix product
            "qkv_bias": (n, 3 * d),
            "output": (n, d, d),
            "output_bias": (n, d),
            "attention_norm_scale": (n, d),
            "attention_norm_bias": (n, d),
            "up": (n, d, f),
            "up_bias": (n, f),
            "down": (n, f, d),
            "down_bias": (n, d),
            "mlp_norm_scale": (n, d),
            "mlp_norm_bias": (n, d),
        },
        **({"head": head} if scored else {}),
    }


def count_parameters(cfg: EncoderConfig) -> int:
    """How many numbers the model holds."""
    leaves = jax.tree.leaves(parameter_shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))
    return sum(math.prod(shape) for shape in leaves)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer norm over the last axis, computed in float32 (arXiv 1607.06450)."""
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def _attention(cfg: EncoderConfig, w: Params, x: jax.Array, visible: jax.Array) -> jax.Array:
    """Every position over every visible one: x [B T, D], visible [B, T] -> [B T, D]."""
    b, t = visible.shape
    h, size = cfg.heads, cfg.width // cfg.heads
    # Plain matrix products over flattened positions: what XLA runs fastest on every platform.
    qkv = (x @ w["qkv"] + w["qkv_bias"]).reshape(b, t, 3, h, size)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))  # [B, H, T, K]
    scores = jnp.matmul(q * size**-0.5, k.transpose(0, 1, 3, 2), preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    # Dividing the values, not the weights, spares a pass over the [T, T] arrays.
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    values = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return values.astype(v.dtype).transpose(0, 2, 1, 3).reshape(b * t, cfg.width)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (arXiv 1606.08415), computed in float32 through the error function.

    ``jax.nn.gelu`` goes through its complement, which is 2.6 times as slow on CPUs; the two are
    within 5e-7 of each other.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def encode(
    cfg: EncoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    types: jax.Array | None = None,
) -> jax.Array:
    """Hidden states of the last layer.

    Args:
      tokens: int32 [B, T], right-padded, T at most ``cfg.positions``.
      lengths: int32 [B], word pieces of each text.
      types: int32 [B, T], the token types of a pair of texts; None is type 0 throughout.

    Returns:
      [B, T, D] in ``cfg.dtype``; positions at or beyond ``lengths`` hold finite values of no
      meaning.

    Raises:
      ValueError: T exceeds ``cfg.positions``.
    """
    b, t = tokens.shape
    if t > cfg.positions:
        raise ValueError(f"tokens have {t} positions, the encoder has {cfg.positions}")
    # One key stays visible at least, so that an empty row of padding gives no NaN.
    visible = jnp.arange(t) < jnp.maximum(lengths, 1)[:, None]
    positions = params["positions"][cfg.first_position : cfg.first_position + t]
    kinds = params["types"][0] if types is None else jnp.take(params["types"], types, axis=0)
    x = jnp.take(params["tokens"], tokens, axis=0) + positions + kinds
    x = layer_norm(x, params["norm_scale"], params["norm_bias"], cfg.norm_eps)
    x = x.astype(cfg.dtype).reshape(b * t, cfg.width)

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, None]:
        w = {name: p.astype(cfg.dtype) for name, p in w.items()}
        attended = _attention(cfg, w, x, visible) @ w["output"] + w["output_bias"]
        x = layer_norm(
            x + attended, w["attention_norm_scale"], w["attention_norm_bias"], cfg.norm_eps
        )
        hidden = gelu(x @ w["up"] + w["up_bias"])
        x = x + hidden @ w["down"] + w["down_bias"]
        return layer_norm(x, w["mlp_norm_scale"], w["mlp_norm_bias"], cfg.norm_eps), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x.reshape(b, t, cfg.width)


def pair_scores(
    cfg: EncoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    types: jax.Array | None = None,
) -> jax.Array:
    """The one logit [B] that a cross-encoder gives to pairs of texts (arXiv 1901.04085).

    Args:
      params: those of ``encode``, and ``head``: ``dense`` [D, D] and ``score`` [D, 1], with biases.
      tokens, lengths, types: as ``encode``; a pair is one sequence.
    """
    head = {name: p.astype(jnp.float32) for name, p in params["head"].items()}
    first = encode(cfg, params, tokens, lengths, types)[:, 0].astype(jnp.float32)
    hidden = jnp.tanh(first @ head["dense"] + head["dense_bias"])
    return (hidden @ head["score"] + head["score_bias"])[:, 0]


def _initial(key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    if name.endswith("bias"):
        return jnp.zeros(shape)
    if name.endswith("scale"):
        return jnp.ones(shape)
    return 0.02 * jax.random.normal(key, shape)  # BERT's initializer_range


class Encoder(nn.Module):
    """The encoder as a Flax module, in front of this file's functions: it holds no other state.

    ``Encoder(cfg).apply({"params": params}, tokens, lengths)`` is ``encode``. Its parameters are
    whole on every device, and carry no partitioning.
    """

    cfg: EncoderConfig
    scored: bool = False
    """whether it has the head of a cross-encoder, one logit a text"""

    @nn.compact
    def parameters(self) -> Params:
        """The parameters as the nested tree that ``encode`` and ``pair_scores`` take."""
        params: dict[str, Any] = {}
        for name, shape in parameter_shapes(self.cfg, self.scored).items():
            if isinstance(shape, dict):
                params[name] = self.param(name, _initial_tree, shape)
            else:
                params[name] = self.param(name, _initial, name, shape)
        return params

    def __call__(
        self, tokens: jax.Array, lengths: jax.Array, types: jax.Array | None = None
    ) -> jax.Array:
        """``encode``: hidden states [B, T, D]."""
        return encode(self.cfg, self.parameters(), tokens, lengths, types)

    def pair_scores(
        self, tokens: jax.Array, lengths: jax.Array, types: jax.Array | None = None
    ) -> jax.Array:
        """``pair_scores``: the logit [B] of each pair; for a module with ``scored``."""
        return pair_scores(self.cfg, self.parameters(), tokens, lengths, types)


def _initial_tree(key: jax.Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    keys = jax.random.split(key, len(shapes))
    return {n: _initial(k, n, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def init_params(cfg: EncoderConfig, key: jax.Array, scored: bool = False) -> Params:
    """Random parameters as the nested tree that ``encode`` takes; ``scored`` adds the head's."""
    return jax.jit(partial(Encoder(cfg, scored).init, method="parameters"))(key)["params"]
