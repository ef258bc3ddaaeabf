"""What encoders share: their configuration, norms, activation, and attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dynarag_jax.models.attention import Window
from dynarag_jax.models.kernels import Platform, attend_within, choose_for_texts
from dynarag_jax.models.products import matmul

Params = Mapping[str, Any]

SMALL, CACHED = 8 << 20, 3 << 20
"""Bytes of scores: of all texts below which a CPU computes them together, and at a time else."""

MODERN_FIELDS = ("family", "rope_base", "window_rope_base", "window", "windowed")
"""Fields that a BERT's configuration leaves alone."""


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
    family: Literal["bert", "modernbert"] = "bert"
    """``bert`` is RoBERTa, too"""
    rope_base: float = 160_000.0
    """ModernBERT: rotary base of layers that see everything"""
    window_rope_base: float = 10_000.0
    """ModernBERT: rotary base of windowed layers"""
    window: int = 64
    """ModernBERT: tokens that a windowed layer sees to either side"""
    windowed: tuple[bool, ...] = ()
    """ModernBERT: which layers are windowed"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of activations; norms and softmax are float32 always"""
    remat: Literal["none", "full"] = field(default="none", repr=False)
    """what gradients recompute: nothing, or whole layers"""
    unroll: int = field(default=1, repr=False)
    """layers per iteration of the layer scan; ``layers`` or more writes them all out: slower to
    compile, and on a CPU faster to train, where a scan moves all that it keeps once more"""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer norm over the last axis, computed in float32 (arXiv 1607.06450)."""
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (arXiv 1606.08415), computed in float32 through the error function.

    ``jax.nn.gelu`` goes through its complement, which is 2.6 times as slow on CPUs; the two are
    within 5e-7 of each other.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def product(w: Params, name: str, x: jax.Array, some: slice = slice(None)) -> jax.Array:
    """A layer's matrix applied to x, or some of its columns, with the adapter beside it if any.

    Args:
      w: a layer's arrays; ``adapters`` among them holds a ``lora.LowRank`` for a name.
      x: [T, I]; some: the columns to take.

    Returns:
      [T, O] in the type of x.
    """
    y = matmul(x, w[name][:, some])
    if name in w.get("adapters", ()):
        pair = w["adapters"][name]
        y += replace(pair, b=pair.b[:, some]).apply(x, stream=x.ndim)
    return y


def over_layers(cfg: EncoderConfig, body: Any, x: jax.Array, xs: Any) -> jax.Array:
    """Scan ``body`` over stacked layers, or write them out, rematerialized as ``cfg`` says."""
    count = len(jax.tree.leaves(xs)[0])
    scanned = cfg.unroll < count
    if cfg.remat == "full":
        body = jax.checkpoint(body, prevent_cse=not scanned)  # a scan keeps the passes apart
    if scanned:
        return jax.lax.scan(body, x, xs, unroll=cfg.unroll)[0]
    for i in range(count):
        x, _ = body(x, jax.tree.map(lambda p, i=i: p[i], xs))
    return x


def layer_stacks(layers: Any) -> list[Params]:
    """The layers as stacks, in order: one, or a tuple of several, of which some are frozen."""
    return list(layers) if isinstance(layers, tuple | list) else [layers]


def attend_texts(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: jax.Array,
    lengths: jax.Array,
    window: Window = None,
    reach: int | None = None,
) -> jax.Array:
    """``attend``, or the platform's flash kernel where it is the better one.

    Args:
      q, k, v: [B, H, T, K]; visible: [B, 1, T or 1, T], what ``attend`` reads.
      lengths, window, reach: the same as ``kernels.attend_within`` reads it; ``reach`` is None
        where no layer has a window.

    Returns:
      [B, H, T, K]; positions of padding hold finite values of no meaning.
    """
    size = q.shape[-1]
    kernel = choose_for_texts(str(q.dtype), size, q.shape[2], reach is not None)
    if kernel == "plain":
        return attend(q, k, v, visible)
    q, k, v = (x.swapaxes(1, 2) for x in (q * size**-0.5, k, v))
    return attend_within(q, k, v, lengths, window, kernel, reach).swapaxes(1, 2)


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of q, k, v [B, H, T, K] over what is visible, [B, 1, T or 1, T].

    Gradients compute the weights anew from the log-sum-exp, as flash attention does (arXiv
    2205.14135): no [T, T] array is kept between the passes.
    """
    return _attend_forward(q, k, v, visible)[0]


def _by_texts(run: Callable[..., Any], q: jax.Array, k: jax.Array, *others: jax.Array) -> Any:
    """``run`` over all texts; on a CPU so many at a time as its cache holds the scores of.

    Passes over scores of all texts wait for the memory there: gradients take twice as long. In
    float32, since XLA widens all of an array to take a part of it.
    """
    texts, heads, rows, _ = q.shape
    each = 4 * heads * rows * k.shape[2]
    if Platform.here().name != "cpu" or texts * each < SMALL:
        return run(q, k, *others)
    some = max(n for n in range(1, max(1, CACHED // each) + 1) if texts % n == 0)
    widened = (x.astype(_wide(x)) if x.dtype != bool else x for x in (q, k, *others))
    parts = [x.reshape(texts // some, some, *x.shape[1:]) for x in widened]
    made = jax.lax.map(lambda part: run(*part), parts)
    return jax.tree.map(lambda x: x.reshape(texts, *x.shape[2:]), made)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(jnp.float32, x.dtype)


def _attended(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array
) -> tuple[jax.Array, jax.Array]:
    size = q.shape[-1]
    scores = jnp.matmul(q * size**-0.5, k.transpose(0, 1, 3, 2), preferred_element_type=jnp.float32)
    scores = jnp.where(visible, scores, -jnp.inf)
    # Dividing the values, not the weights, spares a pass over the [T, T] arrays.
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    values = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return values.astype(v.dtype), top + jnp.log(total)


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array
) -> tuple[jax.Array, Any]:
    values, sums = _by_texts(_attended, q, k, v, visible)
    values = values.astype(v.dtype)
    return values, (q, k, v, visible, values, sums)


def _gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: jax.Array,
    values: jax.Array,
    sums: jax.Array,
    g: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, values, g = (x.astype(_wide(g)) for x in (q, k, v, values, g))
    scale = q.shape[-1] ** -0.5
    scores = jnp.matmul(q * scale, k.transpose(0, 1, 3, 2))
    weights = jnp.where(visible, jnp.exp(scores - sums), 0)
    dv = jnp.matmul(weights.transpose(0, 1, 3, 2), g)
    # What the softmax takes off is the same for all keys of a query.
    off = (values * g).sum(axis=-1, keepdims=True)
    ds = weights * (jnp.matmul(g, v.transpose(0, 1, 3, 2)) - off)
    return jnp.matmul(ds, k) * scale, jnp.matmul(ds.transpose(0, 1, 3, 2), q) * scale, dv


def _attend_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    made = _by_texts(_gradients, *kept, g)
    dq, dk, dv = (x.astype(of.dtype) for x, of in zip(made, kept, strict=False))
    return dq, dk, dv, None


attend.defvjp(_attend_forward, _attend_backward)


def attend_across(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, there: jax.Array, first: jax.Array
) -> jax.Array:
    """As ``attend``; every position also sees the first position of the other texts of its group.

    The texts of a question's candidates exchange what they hold through their first positions, in
    every layer and without any order among them (Set-Encoder, arXiv 2404.06912, where a token of
    its own stands there).

    Args:
      q, k, v: [G N, H, T, K] of G groups of N texts.
      visible: [G N, 1, T or 1, T], of a text's own positions.
      there: [G, N] bool, texts that exist.
      first: [G N, H, T, K], queries as the others' first positions see them: q, but for rotations.
    """
    groups, n = there.shape
    b, h, t, size = q.shape
    scores = jnp.matmul(q * size**-0.5, k.transpose(0, 1, 3, 2), preferred_element_type=jnp.float32)
    scores = jnp.where(visible, scores, -jnp.inf)
    keys, values = (x[:, :, 0].reshape(groups, n, h, size) for x in (k, v))
    asking = first.reshape(groups, n, h, t, size) * size**-0.5
    across = jnp.einsum("gnhtk,gmhk->gnhtm", asking, keys, preferred_element_type=jnp.float32)
    # A text sees its own first position once, among its own.
    others = there[:, None] & ~jnp.eye(n, dtype=bool)
    across = jnp.where(others[:, :, None, None], across, -jnp.inf).reshape(b, h, t, n)
    top = jnp.maximum(scores.max(-1, keepdims=True), across.max(-1, keepdims=True))
    own, far = jnp.exp(scores - top), jnp.exp(across - top)
    total = own.sum(-1, keepdims=True) + far.sum(-1, keepdims=True)
    summed = jnp.matmul(own.astype(v.dtype), v, preferred_element_type=jnp.float32)
    summed += jnp.einsum(
        "gnhtm,gmhk->gnhtk", far.reshape(groups, n, h, t, n).astype(v.dtype), values,
        preferred_element_type=jnp.float32,
    ).reshape(summed.shape)  # fmt: skip
    return (summed / total).astype(v.dtype)
