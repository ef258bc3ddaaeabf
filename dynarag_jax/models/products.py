"""Matrix products of bfloat16 activations with float32 master weights.

The product runs in the activations' type. Its gradient with respect to the weights leaves the
matrix unit in float32, before it is summed over devices and microbatches: nothing is lost to a
bfloat16 sum. What comes back through a float32 result (the logits) is rounded to bfloat16 first, so
that both gradients are products of that type, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dynarag_jax.sharding import RULES, constrain, spec


def matmul(x: jax.Array, w: jax.Array, out: Any = None) -> jax.Array:
    """``x @ w`` in the type of ``x``.

    Args:
      x: [T, I] activations; w: [I, O] weights as they are stored.
      out: type of the result; that of ``x`` by default.

    Returns:
      [T, O].
    """
    out = jnp.dtype(out or x.dtype)
    if x.dtype == w.dtype:
        return jnp.matmul(x, w, preferred_element_type=out)
    return _mixed(x, w, out)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mixed(x: jax.Array, w: jax.Array, out: Any) -> jax.Array:
    return jnp.matmul(x, w.astype(x.dtype), preferred_element_type=out)


def _forward(x: jax.Array, w: jax.Array, out: Any) -> tuple[jax.Array, Any]:
    return _mixed(x, w, out), (x, w)


def _backward(out: Any, kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    del out
    x, w = kept
    g = g.astype(x.dtype)
    dx = jnp.matmul(g, w.astype(x.dtype).T)
    dw = jnp.matmul(x.T, g, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_mixed.defvjp(_forward, _backward)


@jax.custom_vjp
def vocabulary_scores(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w.T`` in float32 on a mesh that cuts the vocabulary's matrix over fsdp.

    The matrix travels, and each device makes its gradient from its own tokens. Left to itself, a
    compiler may bring the gradient of all tokens' scores together on every device instead.

    Args:
      x: [T, D] hidden states, rows over the batch axes; w: [V, D], the embedding as it is stored.

    Returns:
      [T, V].
    """
    return jnp.matmul(x, _whole(x, w).T, preferred_element_type=jnp.float32)


def _whole(x: jax.Array, w: jax.Array) -> jax.Array:
    return constrain(w.astype(x.dtype), "vocab", None)


def _scores_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
    return vocabulary_scores(x, w), (x, w)


def _scores_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    g = g.astype(x.dtype)

    def own_tokens(g: jax.Array, x: jax.Array) -> jax.Array:
        dw = jnp.matmul(g.T, x, preferred_element_type=jnp.float32)
        dw = jax.lax.psum_scatter(dw, RULES["embed"], scatter_dimension=1, tiled=True)
        return jax.lax.psum(dw, RULES["rows"])

    gradient = jax.shard_map(
        own_tokens,
        in_specs=(spec(("batch", "vocab")), spec(("batch", None))),
        out_specs=spec(("vocab", "embed")),
    )
    return jnp.matmul(g, _whole(x, w)), gradient(g, x).astype(w.dtype)


vocabulary_scores.defvjp(_scores_forward, _scores_backward)
