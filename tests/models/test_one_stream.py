"""On meshes that cut weights over fsdp, trunk and branches share one stream and its weights."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.sharding import make_mesh, named

CFG = DecoderConfig(
    vocab=64, width=32, layers=3, heads=4, kv_heads=2, head_size=8, mlp=48, window=7,
    windowed=(True, False, True), post_norms=True, qk_norm=True,
)  # fmt: skip
LENGTHS = np.array([9, 1, 5, 8, 2, 9, 9, 3], np.int32)


def batch(r):
    rng = np.random.default_rng(0)
    trunk, branches = rng.integers(0, 64, (8, 9)), rng.integers(0, 64, (8, 3, r))
    return trunk.astype(np.int32), LENGTHS, branches.astype(np.int32)


def value_and_gradient(params, trunk, lengths, branches):
    def total(params):
        x, y = decoder.trunk_and_branches(CFG, params, trunk, lengths, branches)
        real = jnp.arange(9) < lengths[:, None]
        weight = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y * weight).mean() + jnp.where(real[..., None], x**3, 0).mean()

    return jax.value_and_grad(total)(params)


@pytest.mark.parametrize("r", [1, 6])
def test_one_stream_is_the_two(r):
    params = decoder.init_params(CFG, jax.random.key(0))
    apart = jax.jit(value_and_gradient)(params, *batch(r))
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch(r), named(mesh, ("batch",)))
        there = jax.device_put(params, param_shardings(CFG, mesh))
        joined = jax.jit(value_and_gradient)(there, *rows)
    for one, other in zip(jax.tree.leaves(apart), jax.tree.leaves(joined), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-6)


def test_each_weight_of_a_layer_is_gathered_once_a_pass():
    mesh = make_mesh(1, 8, 1, devices=jax.devices()[:8])
    place = param_shardings(CFG, mesh)
    shapes = jax.eval_shape(lambda key: decoder.init_params(CFG, key), jax.random.key(0))
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, place
    )
    rows = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=named(mesh, ("batch",))) for x in batch(6)
    ]
    with jax.set_mesh(mesh):
        run = jax.jit(lambda *x: decoder.trunk_and_branches(CFG, *x))
        text = run.lower(params, *rows).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]+)\][^=]* all-gather\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in gathered]
    matrices = [n for n, x in shapes["layers"].items() if x.ndim > 2]
    least = min(shapes["layers"][n].size // CFG.layers for n in matrices)
    assert len(matrices) == 7
    assert sum(size >= least for size in sizes) == len(matrices)
