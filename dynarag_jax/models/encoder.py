"""The encoder: BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692), a hidden state per token.

A configuration of ModernBERT's family is computed by ``modernbert``, through the same functions.

MiniLM, Contriever, BGE, E5 and most retrieval encoders are this model with other weights. The
forward pass is plain functions on arrays; ``Encoder`` gives them Flax's ``init``/``apply``.

Dimension letters: B texts, T positions, D model width, H heads, K head size, F hidden width of the
MLP, L layers.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynarag_jax.models import modernbert
from dynarag_jax.models.encoder_parts import (
    EncoderConfig,
    Params,
    attend,
    attend_across,
    gelu,
    layer_norm,
    layer_stacks,
)


def parameter_shapes(cfg: EncoderConfig, scored: bool = False) -> dict[str, Any]:
    """Shapes of the parameters, as the tree they form; per-layer arrays are stacked on axis 0.

    ``scored`` adds a cross-encoder's head.
    """
    if cfg.family == "modernbert":
        return modernbert.parameter_shapes(cfg, scored)
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


def _attention(
    cfg: EncoderConfig, w: Params, x: jax.Array, visible: jax.Array, there: jax.Array | None
) -> jax.Array:
    """Every position over every visible one: x [B T, D], visible [B, T] -> [B T, D]."""
    b, t = visible.shape
    # Plain matrix products over flattened positions: what XLA runs fastest on every platform.
    qkv = (x @ w["qkv"] + w["qkv_bias"]).reshape(b, t, 3, cfg.heads, -1)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))  # [B, H, T, K]
    if there is None:
        values = attend(q, k, v, visible[:, None, None])
    else:
        values = attend_across(q, k, v, visible[:, None, None], there, q)
    return values.transpose(0, 2, 1, 3).reshape(b * t, cfg.width)


def encode(
    cfg: EncoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    types: jax.Array | None = None,
    there: jax.Array | None = None,
) -> jax.Array:
    """Hidden states of the last layer.

    Args:
      tokens: int32 [B, T], right-padded, T at most ``cfg.positions``.
      lengths: int32 [B], word pieces of each text.
      types: int32 [B, T], the token types of a pair of texts; None is type 0 throughout.
      there: [G, N] bool where the B = G N texts are N of each of G groups whose texts see each
        other (``encoder_parts.attend_across``): the texts that exist. None leaves each by itself.

    Returns:
      [B, T, D] in ``cfg.dtype``; positions at or beyond ``lengths`` hold finite values of no
      meaning.

    Raises:
      ValueError: T exceeds ``cfg.positions``.
    """
    b, t = tokens.shape
    if t > cfg.positions:
        raise ValueError(f"tokens have {t} positions, the encoder has {cfg.positions}")
    if cfg.family == "modernbert":
        return modernbert.encode(cfg, params, tokens, lengths, there)
    # One key stays visible at least, so that an empty row of padding gives no NaN.
    visible = jnp.arange(t) < jnp.maximum(lengths, 1)[:, None]
    positions = params["positions"][cfg.first_position : cfg.first_position + t]
    kinds = params["types"][0] if types is None else jnp.take(params["types"], types, axis=0)
    x = jnp.take(params["tokens"], tokens, axis=0) + positions + kinds
    x = layer_norm(x, params["norm_scale"], params["norm_bias"], cfg.norm_eps)
    x = x.astype(cfg.dtype).reshape(b * t, cfg.width)

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, None]:
        w = {name: p.astype(cfg.dtype) for name, p in w.items()}
        attended = _attention(cfg, w, x, visible, there) @ w["output"] + w["output_bias"]
        x = layer_norm(
            x + attended, w["attention_norm_scale"], w["attention_norm_bias"], cfg.norm_eps
        )
        hidden = gelu(x @ w["up"] + w["up_bias"])
        x = x + hidden @ w["down"] + w["down_bias"]
        return layer_norm(x, w["mlp_norm_scale"], w["mlp_norm_bias"], cfg.norm_eps), None

    for stack in layer_stacks(params["layers"]):
        x, _ = jax.lax.scan(layer, x, stack)
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
    if cfg.family == "modernbert":
        return modernbert.pair_scores(cfg, params, tokens, lengths)
    return head_scores(cfg, params["head"], encode(cfg, params, tokens, lengths, types)[:, 0])


def head_scores(cfg: EncoderConfig, head: Params, first: jax.Array) -> jax.Array:
    """The logit [B] of a cross-encoder's head on the hidden states [B, D] of first positions."""
    if cfg.family == "modernbert":
        return modernbert.head_scores(cfg, head, first)
    head = {name: p.astype(jnp.float32) for name, p in head.items()}
    first = first.astype(jnp.float32)
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
