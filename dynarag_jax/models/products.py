"""Matrix products of bfloat16 activations with float32 master weights.

The product runs in the activations' type. Its gradient with respect to the weights leaves the
matrix unit in float32, before it is summed over devices and microbatches: nothing is lost to a
bfloat16 sum. What comes back through a float32 result (the logits) is rounded to bfloat16 first, so
that both gradients are products of that type, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from dynarag_jax.models.kernels import Platform
from dynarag_jax.rings import has_rings, scattered_sum
from dynarag_jax.sharding import axes_of, constrain, context_mesh, spec

Axes = tuple[str, str] | None
"""Logical axes of a matrix's input and output; None where it is not said how it lies."""


def matmul(x: jax.Array, w: jax.Array, out: Any = None, axes: Axes = None) -> jax.Array:
    """``x @ w`` in the type of ``x``.

    Args:
      x: [..., I] activations; w: [I, O] weights as they are stored.
      out: type of the result; that of ``x`` by default.
      axes: logical axes of w, which lies on the mesh so, while the rows of x lie over the batch
        axes: on slices whose mesh runs through several rings of links, its gradient is then
        summed along one ring after the other (``rings``).

    Returns:
      [..., O].
    """
    out = jnp.dtype(out or x.dtype)
    plain = x.dtype != jnp.bfloat16 or not _one_cpu()
    if x.dtype == w.dtype and plain and not _by_rings(axes):
        return jnp.matmul(x, w, preferred_element_type=out)
    return _mixed(x, w, out, axes)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """``y + bias`` in the type of ``y``; the bias's gradient is summed in float32.

    Args:
      y: [T, O]; bias: [O] as it is stored.
    """
    return _biased(y, bias)


def _one_cpu() -> bool:
    """Whether a program is traced for one CPU.

    There a bfloat16 product is twice as fast if it writes float32 and if both its matrices lie row
    after row, which the copy of a transposed one is worth. On a mesh that copy would have to be
    gathered first.
    """
    mesh = context_mesh()
    return (mesh is None or mesh.size == 1) and Platform.here().name == "cpu"


def _by_rings(axes: Axes) -> TypeGuard[tuple[str, str]]:
    """Whether the gradient of a matrix with these axes is summed along one ring after the other."""
    return axes is not None and has_rings(axes_of("embed"))


def _rows_first(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(major_to_minor=(0, 1)))


def _product(x: jax.Array, w: jax.Array, out: Any) -> jax.Array:
    """``x @ w`` of arrays of one type; two matrices, or more leading axes of x on a mesh."""
    if x.dtype != jnp.bfloat16 or not _one_cpu():
        return jnp.matmul(x, w, preferred_element_type=out)
    y = jnp.matmul(_rows_first(x), _rows_first(w), preferred_element_type=jnp.float32)
    return _rows_first(y).astype(out)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mixed(x: jax.Array, w: jax.Array, out: Any, axes: Axes) -> jax.Array:
    return _product(x, _at_hand(w, x.dtype, axes), out)


def _forward(x: jax.Array, w: jax.Array, out: Any, axes: Axes) -> tuple[jax.Array, Any]:
    return _mixed(x, w, out, axes), (x, w)


def _backward(out: Any, axes: Axes, kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    del out
    x, w = kept
    g = g.astype(x.dtype)
    dx = _product(g, _at_hand(w, x.dtype, axes).T, x.dtype)
    if _by_rings(axes):
        dw = _along_rings(x, g, axes)
    elif x.ndim == 2 and _one_cpu() and g.shape[1] < x.shape[1]:
        # Of the two the narrower one is turned: a copy there.
        dw = _product(g.T, x, jnp.float32).T
    elif x.ndim == 2:
        dw = _product(x.T, g, jnp.float32)
    else:
        tokens = tuple(range(x.ndim - 1))
        dw = jnp.tensordot(x, g, (tokens, tokens), preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_mixed.defvjp(_forward, _backward)


def _at_hand(w: jax.Array, dtype: Any, axes: Axes) -> jax.Array:
    """The weights as products read them.

    Where a step's gradients are summed along rings, whole on every device by one layout, which both
    passes ask for: XLA gathers a matrix again for each other shape that it reads it in.
    """
    w = w.astype(dtype)
    if not _by_rings(axes):
        return w
    return constrain(w, *(None if axis == "embed" else axis for axis in axes))


def _along_rings(x: jax.Array, g: jax.Array, axes: tuple[str, str]) -> jax.Array:
    """The gradient [I, O] of weights with these axes, each device's part on that device."""
    rows = ("batch",) if x.ndim == 2 else ("batch", "positions")
    inside, outside = (None if axis == "embed" else axis for axis in axes)

    def own_rows(x: jax.Array, g: jax.Array) -> jax.Array:
        every = tuple(range(x.ndim - 1))
        # Cut along its first dimension: parts of fewer than 128 columns are not sent as such.
        sides = (x, g) if axes[0] == "embed" else (g, x)
        dw = jnp.tensordot(*sides, (every, every), preferred_element_type=jnp.float32)
        dw = jax.lax.psum(scattered_sum(dw, axes_of("embed"), 0), axes_of("rows"))
        return dw if axes[0] == "embed" else dw.T

    return jax.shard_map(
        own_rows,
        in_specs=(spec((*rows, inside)), spec((*rows, outside))),
        out_specs=spec(axes),
        check_vma=False,  # which knows no sums over groups of devices
    )(x, g)


@jax.custom_vjp
def _biased(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias.astype(y.dtype)


def _bias_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    return _biased(y, bias), bias


def _bias_backward(bias: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    if _one_cpu():
        # XLA on CPU sums rows several times more slowly than a product with ones does.
        ones = jnp.ones((1, len(g)), g.dtype)
        summed = jnp.matmul(ones, g, preferred_element_type=jnp.float32)[0]
    else:
        summed = g.sum(0, dtype=jnp.float32)
    return g, summed.astype(bias.dtype)


_biased.defvjp(_bias_forward, _bias_backward)


def columns(x: jax.Array, parts: int) -> tuple[jax.Array, ...]:
    """The columns of x [T, parts O] in equal parts, each [T, O]."""
    cut: Any = _columns(x, parts)
    return cut


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _columns(x: jax.Array, parts: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.split(x, parts, axis=1))


def _columns_forward(x: jax.Array, parts: int) -> tuple[tuple[jax.Array, ...], None]:
    return columns(x, parts), None


def _columns_backward(parts: int, _: None, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    del parts
    if _one_cpu():
        # Joined within what computes them, XLA on CPU takes 10 ns a number.
        gradients = jax.lax.optimization_barrier(gradients)
    return (jnp.concatenate(gradients, axis=1),)


_columns.defvjp(_columns_forward, _columns_backward)


GRADIENT = 1 << 26
"""Numbers of the vocabulary's gradient that a device makes whole at once: 256 MB."""

ALIGNED = 1024
"""Its rows come in multiples of so many."""


@jax.custom_vjp
def vocabulary_scores(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w.T`` in float32 on a mesh that cuts the vocabulary's matrix by its width.

    The matrix travels, and each device makes its gradient from its own tokens. Left to itself, a
    compiler may bring the gradient of all tokens' scores together on every device instead.

    Args:
      x: [T, D] hidden states, rows over the batch axes, or [B, T, D], positions over theirs, too;
        w: [V, D], the embedding as it is stored.

    Returns:
      [T, V], or [B, T, V].
    """
    return jnp.matmul(x, _whole(x, w), preferred_element_type=jnp.float32)


def _whole(x: jax.Array, w: jax.Array) -> jax.Array:
    """[D, V]: as its parts lie beside each other, so that none is copied."""
    return constrain(w.T.astype(x.dtype), None, "vocab")


def _scores_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
    return vocabulary_scores(x, w), (x, w)


def _scores_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    g = g.astype(x.dtype)

    def own_tokens(g: jax.Array, x: jax.Array) -> jax.Array:
        g, x = (part.reshape(-1, part.shape[-1]) for part in (g, x))
        # In two parts at least: where there is but one, XLA for TPUs does not scatter its sum.
        half = -(-g.shape[1] // (2 * ALIGNED)) * ALIGNED
        size = min(half, max(ALIGNED, GRADIENT // x.shape[1] // ALIGNED * ALIGNED))
        columns: list[jax.Array] = []
        for first in range(0, g.shape[1], size):
            if len(columns) > 1:  # not before the last but one is on its way
                g = jax.lax.optimization_barrier((g, columns[-2]))[0]
            dw = jnp.matmul(x.T, g[:, first : first + size], preferred_element_type=jnp.float32)
            # Cut along its first dimension: parts of fewer than 128 columns are not sent as such.
            dw = scattered_sum(dw, axes_of("embed"), 0)
            columns.append(jax.lax.psum(dw, axes_of("rows")))
        return jnp.concatenate(columns, 1).T

    tokens = ("batch",) if x.ndim == 2 else ("batch", "positions")
    gradient = jax.shard_map(
        own_tokens,
        in_specs=(spec((*tokens, "vocab")), spec((*tokens, None))),
        out_specs=spec(("vocab", "embed")),
        check_vma=False,  # which knows no sums over groups of devices
    )
    dx, dw = jnp.matmul(g, _whole(x, w).T), gradient(g, x).astype(w.dtype)
    if w.size <= GRADIENT:
        # Scattered before the layers' backward pass begins: held whole beside it, it would count.
        # Of a larger one, parts are on their way before.
        dx, dw = jax.lax.optimization_barrier((dx, dw))
    return dx, dw


vocabulary_scores.defvjp(_scores_forward, _scores_backward)


def vocabulary_rows(tokens: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    """``w[tokens]`` on a mesh that cuts rows, positions, and the vocabulary's matrix.

    The tokens travel to the matrix, and each device sends the columns that it holds of all tokens
    to these. Left to itself, a compiler may gather the matrix or the gradients of all tokens on
    every device, and make the matrix's whole gradient there.

    Args:
      tokens: int32 [B, T], rows over the batch axes, positions over theirs; w: [V, D], as stored.

    Returns:
      [B, T, D] of ``dtype``, laid out as the tokens.
    """
    columns, parts = axes_of("embed"), axes_of("vocab")

    def own(tokens: jax.Array, w: jax.Array) -> jax.Array:
        every = jax.lax.all_gather(tokens, columns)  # [parts of D, B, T]
        place = every - jax.lax.axis_index(parts) * len(w)
        here = (place >= 0) & (place < len(w))
        rows = jnp.take(w, jnp.clip(place, 0, len(w) - 1), axis=0).astype(dtype)
        rows = jax.lax.psum(jnp.where(here[..., None], rows, 0), parts)  # one of them is not 0
        return jax.lax.all_to_all(rows, columns, 0, 3, tiled=True)[0]

    places = ("batch", "positions")
    return jax.shard_map(
        own, in_specs=(spec(places), spec(("vocab", "embed"))), out_specs=spec((*places, None))
    )(tokens, w)
