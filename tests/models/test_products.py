"""Products of two types and biases: values, gradients and types, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models import products
from dynarag_jax.models.products import add_bias, matmul, vocabulary_rows, vocabulary_scores
from dynarag_jax.sharding import make_mesh, named

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


@pytest.mark.parametrize("sizes", [(1, 2, 2, 2), (2, 2, 2, 1), (1, 1, 4, 2)], ids=str)
def test_rows_of_a_vocabulary_that_is_cut_every_way(sizes: tuple[int, int, int, int]) -> None:
    data, fsdp, sequence, tensor = sizes
    mesh = make_mesh(data, fsdp, tensor, sequence=sequence, devices=jax.devices()[:8])
    w, g = (RNG.normal(size=s).astype(np.float32) for s in ((32, 16), (4, 8, 16)))
    tokens = RNG.integers(0, 32, (4, 8)).astype(np.int32)

    def score(w: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
        return (vocabulary_rows(tokens, w, dtype).astype(jnp.float32) * g).sum()

    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(w, named(mesh, ("vocab", "embed"))),
            jax.device_put(tokens, named(mesh, ("batch", "positions"))),
        )
        rows = jax.jit(vocabulary_rows, static_argnums=2)(placed[1], placed[0], "float32")
        dw = jax.jit(jax.grad(score), static_argnums=2)(*placed, "float32")
        rounded = jax.jit(jax.grad(score), static_argnums=2)(*placed, "bfloat16")
    np.testing.assert_array_equal(rows, w[tokens])
    expected = np.zeros_like(w)
    np.add.at(expected, tokens, g)
    np.testing.assert_allclose(dw, expected, rtol=1e-6, atol=1e-6)
    layout = named(mesh, ("vocab", "embed"))
    assert all(x.sharding.is_equivalent_to(layout, 2) for x in (dw, rounded))
    # Each token's gradient is rounded once, and summed in float32.
    np.testing.assert_allclose(rounded, expected, rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("size", [1 << 26, 16 * 24, 1], ids=["at once", "three", "uneven"])
def test_scores_of_a_vocabulary_whose_gradient_comes_in_parts(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(products, "GRADIENT", size)
    monkeypatch.setattr(products, "ALIGNED", 8)
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    x, w, g = (RNG.normal(size=s).astype(np.float32) for s in ((8, 16), (60, 16), (8, 60)))

    def score(x: jax.Array, w: jax.Array) -> jax.Array:
        return (vocabulary_scores(x, w) * g).sum()

    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(x, named(mesh, ("batch", None))),
            jax.device_put(w, named(mesh, ("vocab", "embed"))),
        )
        dx, dw = jax.jit(jax.grad(score, (0, 1)))(*placed)
    np.testing.assert_allclose(dx, g @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, g.T @ x, rtol=1e-5, atol=1e-5)
