"""ModernBERT (arXiv 2412.13663): norms before each block, rotary positions, windows, gated MLPs.

Dimension letters as in ``encoder``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.models.encoder_parts import (
    EncoderConfig,
    Params,
    attend_across,
    attend_texts,
    gelu,
    layer_norm,
    layer_stacks,
    over_layers,
    product,
)
from dynarag_jax.models.products import columns


def parameter_shapes(cfg: EncoderConfig, scored: bool = False) -> dict[str, Any]:
    """Shapes of the parameters, as the tree they form; ``scored`` adds a cross-encoder's head.

    The first layer's ``attention_norm_scale`` is there, and is not used.
    """
    d, f, n = cfg.width, cfg.mlp, cfg.layers
    head = {"dense": (d, d), "norm_scale": (d,), "score": (d, 1), "score_bias": (1,)}
    return {
        "tokens": (cfg.vocab, d),
        "norm_scale": (d,),
        "final_norm_scale": (d,),
        "layers": {
            "attention_norm_scale": (n, d),
            "qkv": (n, d, 3 * d),
            "output": (n, d, d),
            "mlp_norm_scale": (n, d),
            "up": (n, d, 2 * f),  # the activated half, then its gate
            "down": (n, f, d),
        },
        **({"head": head} if scored else {}),
    }


def _rotation(cfg: EncoderConfig, base: float, t: int) -> np.ndarray:
    """Cosines and sines [2, T, K / 2] of positions 0..T-1."""
    size = cfg.width // cfg.heads
    freq = 1.0 / base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    angles = np.arange(t)[:, None] * freq
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def _rotate(x: jax.Array, rotation: jax.Array) -> jax.Array:
    """x [B, H, T, K] turned by [2, T, K / 2], in float32."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def encode(
    cfg: EncoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    across: jax.Array | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] of the last layer, as ``encoder.encode``; ``across`` is ``there``."""
    b, t = tokens.shape
    there = jnp.arange(t) < jnp.maximum(lengths, 1)[:, None]
    near = np.abs(np.arange(t)[:, None] - np.arange(t)) <= cfg.window
    rotations = jnp.asarray(
        np.stack([_rotation(cfg, base, t) for base in (cfg.rope_base, cfg.window_rope_base)])
    )
    x = jnp.take(params["tokens"], tokens, axis=0)
    x = _norm(cfg, x, params["norm_scale"]).astype(cfg.dtype).reshape(b * t, cfg.width)

    def layer(x: jax.Array, at: Any) -> tuple[jax.Array, None]:
        w, windowed, first = at
        normed = jnp.where(first, x, _norm(cfg, x, w["attention_norm_scale"]))
        qkv = (p.reshape(b, t, cfg.heads, -1) for p in columns(product(w, "qkv", normed), 3))
        q, k, v = (p.transpose(0, 2, 1, 3) for p in qkv)
        rotation = rotations[windowed.astype(jnp.int32)]
        # A position of padding sees itself at least, so that none gives NaN.
        visible = (there[:, None] | jnp.eye(t, dtype=bool)) & (near | ~windowed)
        turned, keys = _rotate(q, rotation), _rotate(k, rotation)
        if across is None:
            window, reach = None, cfg.window if any(cfg.windowed) else None
            if isinstance(windowed, np.bool_):  # layers are written out
                window = reach if windowed else None
            elif reach is not None:
                window = jnp.where(windowed, reach, t)
            values = attend_texts(turned, keys, v, visible[:, None], lengths, window, reach)
        else:
            # No order, and no distance: the others' first positions are met without rotation,
            # and those of position 0 have none.
            values = attend_across(turned, keys, v, visible[:, None], across, q)
        x = x + product(w, "output", values.transpose(0, 2, 1, 3).reshape(b * t, cfg.width))
        normed = _norm(cfg, x, w["mlp_norm_scale"])
        hidden, gate = jnp.split(product(w, "up", normed), 2, axis=-1)
        return x + product(w, "down", gelu(hidden) * gate), None

    windowed = np.array(cfg.windowed or (False,) * cfg.layers)
    begin = 0
    for stack in layer_stacks(params["layers"]):
        end = begin + stack["qkv"].shape[0]
        which = (windowed[begin:end], np.arange(begin, end) == 0)
        x = over_layers(cfg, layer, x, (stack, *which))
        begin = end
    return _norm(cfg, x, params["final_norm_scale"]).reshape(b, t, cfg.width)


def _norm(cfg: EncoderConfig, x: jax.Array, scale: jax.Array) -> jax.Array:
    return layer_norm(x, scale, jnp.zeros_like(scale), cfg.norm_eps)


def pair_scores(
    cfg: EncoderConfig, params: Params, tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    """The one logit [B] of pairs of texts, from the first position (``classifier_pooling`` cls)."""
    return head_scores(cfg, params["head"], encode(cfg, params, tokens, lengths)[:, 0])


def head_scores(cfg: EncoderConfig, head: Params, first: jax.Array) -> jax.Array:
    """The logit [B] of the head on the hidden states [B, D] of first positions."""
    head = {name: p.astype(jnp.float32) for name, p in head.items()}
    first = first.astype(jnp.float32)
    hidden = _norm(cfg, gelu(first @ head["dense"]), head["norm_scale"])
    return (hidden @ head["score"] + head["score_bias"])[:, 0]
