"""Products of two types and biases: values, gradients and types, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models.products import add_bias, matmul
from dynarag_jax.sharding import make_mesh

RNG = np.random.default_rng(0)
X, W, B = (RNG.normal(size=s).astype(np.float32) for s in ((24, 16), (16, 40), (40,)))
G = RNG.normal(size=(24, 40)).astype(np.float32)


def exact(value: np.ndarray) -> np.ndarray:
    """The value as bfloat16 has it, in float64."""
    return np.asarray(jnp.asarray(value, jnp.bfloat16), np.float64)


def outcome(stored: str) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Value and gradients of a dense layer of bfloat16 activations."""

    def layer(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return add_bias(matmul(x, w), b)

    x, g = (jnp.asarray(a, jnp.bfloat16) for a in (X, G))
    y, pull = jax.vjp(jax.jit(layer), x, jnp.asarray(W, stored), jnp.asarray(B, stored))
    return y, pull(g)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("devices", [1, 2])
def test_dense_layer_of_two_types(stored: str, devices: int) -> None:
    mesh = make_mesh(1, devices, 1, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        y, (dx, dw, db) = outcome(stored)
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert dw.dtype == db.dtype == stored
    x, w, g = exact(X), exact(W), exact(G)
    b = exact(B)
    # One rounding of the product, one of the sum with the bias.
    np.testing.assert_allclose(np.asarray(y, np.float64), x @ w + b, rtol=2**-7, atol=2**-5)
    np.testing.assert_allclose(np.asarray(dx, np.float64), g @ w.T, rtol=2**-8, atol=1e-6)
    close = 2**-8 if stored == "bfloat16" else 1e-5
    np.testing.assert_allclose(np.asarray(dw, np.float64), x.T @ g, rtol=close, atol=1e-5)
    np.testing.assert_allclose(np.asarray(db, np.float64), g.sum(0), rtol=close, atol=1e-5)


def test_products_of_a_batch_by_vmap() -> None:
    x = jnp.asarray(np.stack([X, 2 * X]), jnp.bfloat16)
    together = jax.jit(jax.vmap(matmul, (0, None)))(x, jnp.asarray(W))
    assert together.shape == (2, 24, 40)
    np.testing.assert_array_equal(together[1], 2 * together[0])
    np.testing.assert_array_equal(together[0], matmul(x[0], jnp.asarray(W)))
