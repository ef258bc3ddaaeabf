"""The encoder: BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692), a hidden state per token.

A configuration of ModernBERT's family is computed by ``modernbert``, through the same functions.

MiniLM, Contriever, BGE, E5 and most retrieval encoders are this model with other weights. The
forward pass is plain functions on arrays; ``Encoder`` gives them Flax's ``init``/``apply``.

Dimension letters: B texts, T positions, D model width, H heads, K head size, F hidden width of the
MLP, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynarag_jax.models import modernbert
from dynarag_jax.models.encoder_parts import (
    EncoderConfig,
    Params,
    attend,
    attend_across,
    attend_texts,
    gelu,
    layer_norm,
    layer_stacks,
    over_layers,
    product,
)
from dynarag_jax.models.packed import (
    Packed,
    Room,
    attend_packed,
    first_rows,
    pack,
    sources,
    unpacked,
)
from dynarag_jax.models.products import add_bias, columns


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


class _Texts(NamedTuple):
    """What every layer knows of a batch: lengths [B], which positions are visible [B, T], the
    groups, and where texts lie that are not padded."""

    lengths: jax.Array
    visible: jax.Array
    there: jax.Array | None
    packed: Packed | None = None


def _dense(w: Params, name: str, x: jax.Array, some: slice = slice(None)) -> jax.Array:
    """A matrix and its bias, or some of their columns, as they are stored: [T, I] -> [T, O]."""
    return add_bias(product(w, name, x, some), w[f"{name}_bias"][some])


def _attention(
    cfg: EncoderConfig, w: Params, x: jax.Array, texts: _Texts, first_only: bool
) -> jax.Array:
    """Every position, or each text's first, over every visible one: [B T, D] -> [B T or B, D].

    Of texts that are packed [R, D] stands for [B T, D].
    """
    b, t = texts.visible.shape
    d = cfg.width

    def by_heads(flat: jax.Array, parts: int) -> list[jax.Array]:
        split = (p.reshape(b, -1, cfg.heads, d // cfg.heads) for p in columns(flat, parts))
        return [p.transpose(0, 2, 1, 3) for p in split]  # [B, H, T, K]

    # Plain matrix products over flattened positions: what XLA runs fastest on every platform.
    if first_only:
        (q,) = by_heads(_dense(w, "qkv", _firsts(texts, x), slice(d)), 1)
        others = _dense(w, "qkv", x, slice(d, None))
        k, v = by_heads(others if texts.packed is None else unpacked(others, texts.packed, t), 2)
    elif texts.packed is not None:
        return attend_packed(_dense(w, "qkv", x), texts.packed, cfg.heads, t)
    else:
        q, k, v = by_heads(_dense(w, "qkv", x), 3)
    visible = texts.visible[:, None, None]
    if first_only and texts.there is None:
        values = attend(q, k, v, visible)  # one query a text: no scores to speak of
    elif texts.there is None:
        values = attend_texts(q, k, v, visible, texts.lengths)
    else:
        values = attend_across(q, k, v, visible, texts.there, q)
    return values.transpose(0, 2, 1, 3).reshape(-1, d)


def _firsts(texts: _Texts, x: jax.Array) -> jax.Array:
    """The first position of every text: [B, D]."""
    if texts.packed is not None:
        return first_rows(x, texts.packed)
    return x.reshape(*texts.visible.shape, -1)[:, 0]


def _layer(
    cfg: EncoderConfig, texts: _Texts, x: jax.Array, w: Params, first_only: bool = False
) -> jax.Array:
    """One layer over x [B T, D]; with ``first_only`` what it gives each text's first position."""
    attended = _dense(w, "output", _attention(cfg, w, x, texts, first_only))
    if first_only:
        x = _firsts(texts, x)
    x = layer_norm(x + attended, w["attention_norm_scale"], w["attention_norm_bias"], cfg.norm_eps)
    x = x + _dense(w, "down", gelu(_dense(w, "up", x)))
    return layer_norm(x, w["mlp_norm_scale"], w["mlp_norm_bias"], cfg.norm_eps)


def _through(
    cfg: EncoderConfig, texts: _Texts, x: jax.Array, stacks: Sequence[Params]
) -> jax.Array:
    """All layers of all stacks over x [B T, D]."""
    for stack in stacks:
        x = over_layers(cfg, lambda x, w: (_layer(cfg, texts, x, w), None), x, stack)
    return x


def _embedded(
    cfg: EncoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    types: jax.Array | None,
    there: jax.Array | None,
    room: Room | None,
) -> tuple[jax.Array, _Texts]:
    """What the first layer reads [B T, D]; the arguments are those of ``encode``."""
    t = tokens.shape[1]
    # One key stays visible at least, so that an empty row of padding gives no NaN.
    visible = jnp.arange(t) < jnp.maximum(lengths, 1)[:, None]
    packed, positions = None, params["positions"][cfg.first_position : cfg.first_position + t]
    if room is not None and there is None:
        packed = pack(lengths.reshape(-1, room.rows))
        places, within = sources(packed, room.positions, t)
        positions = jnp.take(positions, within, axis=0)

        def of(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x.reshape(len(places), -1), places, axis=1)

        tokens, types = of(tokens), None if types is None else of(types)
    kinds = params["types"][0] if types is None else jnp.take(params["types"], types, axis=0)
    x = jnp.take(params["tokens"], tokens, axis=0) + positions + kinds
    x = layer_norm(x, params["norm_scale"], params["norm_bias"], cfg.norm_eps)
    texts = _Texts(lengths, visible, there, packed)
    return x.astype(cfg.dtype).reshape(-1, cfg.width), texts


def _check_length(cfg: EncoderConfig, tokens: jax.Array) -> None:
    if tokens.shape[1] > cfg.positions:
        raise ValueError(
            f"tokens have {tokens.shape[1]} positions, the encoder has {cfg.positions}"
        )


def encode(
    cfg: EncoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    types: jax.Array | None = None,
    there: jax.Array | None = None,
    room: Room | None = None,
) -> jax.Array:
    """Hidden states of the last layer.

    Args:
      tokens: int32 [B, T], right-padded, T at most ``cfg.positions``.
      lengths: int32 [B], word pieces of each text.
      types: int32 [B, T], the token types of a pair of texts; None is type 0 throughout.
      there: [G, N] bool where the B = G N texts are N of each of G groups whose texts see each
        other (``encoder_parts.attend_across``): the texts that exist. None leaves each by itself.
      room: where texts are computed without the padding between them (``packed``): no group of
        them may have more word pieces, or they overwrite each other. ModernBERT, and texts that
        see each other, are padded all the same.

    Over several TPUs or GPUs, trace it under ``jax.set_mesh`` of a mesh that ``sharding`` made:
    there each calls the flash kernel on its own texts.

    Returns:
      [B, T, D] in ``cfg.dtype``; positions at or beyond ``lengths`` hold finite values of no
      meaning.

    Raises:
      ValueError: T exceeds ``cfg.positions``.
    """
    _check_length(cfg, tokens)
    if cfg.family == "modernbert":
        return modernbert.encode(cfg, params, tokens, lengths, there)
    x, texts = _embedded(cfg, params, tokens, lengths, types, there, room)
    x = _through(cfg, texts, x, layer_stacks(params["layers"]))
    if texts.packed is not None:
        x = unpacked(x, texts.packed, tokens.shape[1])
    return x.reshape(*tokens.shape, cfg.width)


def encode_first(
    cfg: EncoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    types: jax.Array | None = None,
    there: jax.Array | None = None,
    room: Room | None = None,
) -> jax.Array:
    """``encode(...)[:, 0]``, [B, D]: of the last layer only what the first positions need.

    That layer computes keys and values of every position and nothing else of them, a sixth of its
    products. Arguments and errors are those of ``encode``. Where calls follow each other, give
    ``last_apart(cfg, params)``: it spares a copy of the layers a call.
    """
    _check_length(cfg, tokens)
    if cfg.family == "modernbert":
        return modernbert.encode(cfg, params, tokens, lengths, there)[:, 0]
    x, texts = _embedded(cfg, params, tokens, lengths, types, there, room)
    *stacks, last = layer_stacks(last_apart(cfg, params)["layers"])
    x = _through(cfg, texts, x, stacks)
    return _layer(cfg, texts, x, jax.tree.map(lambda p: p[0], last), first_only=True)


def last_apart(cfg: EncoderConfig, params: Params) -> Params:
    """The parameters with the last layer in a stack of its own, as ``encode_first`` needs it.

    A ModernBERT's are left as they are: ``encode_first`` computes all of its last layer.
    """
    if cfg.family == "modernbert":
        return params
    *stacks, last = layer_stacks(params["layers"])
    if len(jax.tree.leaves(last)[0]) > 1:
        ends = (slice(-1), slice(-1, None))
        stacks += [jax.tree.map(lambda p, part=part: p[part], last) for part in ends]
    else:
        stacks.append(last)
    return {**params, "layers": tuple(stacks)}


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
    return head_scores(cfg, params["head"], encode_first(cfg, params, tokens, lengths, types))


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
