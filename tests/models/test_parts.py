"""Attention of prompts that a mesh cuts along their positions, against that of whole ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.kernels import Platform, attend, choose
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.models.parts import trunk_in_parts
from dynarag_jax.sharding import make_mesh, named, position_order

H, G, K = 4, 2, 64


def mesh_of(data, fsdp, sequence, tensor):
    devices = jax.devices()[: data * fsdp * sequence * tensor]
    return make_mesh(data, fsdp, tensor, devices, sequence=sequence)


@pytest.mark.parametrize(
    ("kernel", "sizes", "length", "window", "cap"),
    [
        ("plain", (1, 1, 4, 1), 40, None, None),
        # Stretches of more than a block, which is padded behind the last key of the first half.
        ("plain", (1, 2, 2, 2), 560, 17, 3.0),
        ("splash", (1, 1, 4, 1), 320, 17, 3.0),
        pytest.param("plain", (2, 1, 4, 1), 320, jnp.int32(17), None, marks=pytest.mark.slow),
        pytest.param("splash", (1, 2, 2, 2), 560, None, None, marks=pytest.mark.slow),
        pytest.param("splash", (2, 1, 4, 1), 320, jnp.int32(17), None, marks=pytest.mark.slow),
        pytest.param("splash", (1, 1, 4, 1), 320, jnp.int32(2**30), None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_attention_in_parts_is_that_of_whole_prompts(kernel, sizes, length, window, cap):
    rng = np.random.default_rng(0)
    q, k, v, pull = (
        jnp.asarray(rng.normal(size=(2, length, heads, K)) * scale, np.float32)
        for heads, scale in ((H, K**-0.5), (G, 1.0), (G, 1.0), (H, 1.0))
    )
    lengths = jnp.array([length, length // 3], jnp.int32)

    def gradients(attention, order, *x):
        def total(*x):
            real = (jnp.asarray(order) < lengths[:, None])[..., None, None]
            out = jnp.where(real, attention(*x), 0.0)
            return (out * pull[:, order]).sum(), out

        gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*x)
        return out, *gradients

    whole = gradients(
        lambda *x: attend(*x, lengths, window, cap, "plain"), np.arange(length), q, k, v
    )
    order = position_order(length, sizes[2])
    with jax.set_mesh(mesh_of(*sizes)):
        parts = gradients(
            lambda *x: trunk_in_parts(*x, lengths, window, cap, kernel, 17),
            order, *(x[:, order] for x in (q, k, v)),
        )  # fmt: skip
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one, np.asarray(other)[:, order], atol=2e-5)


CFG = DecoderConfig(
    vocab=64, width=24, layers=2, heads=4, kv_heads=2, head_size=8, mlp=48, window=7,
    windowed=(True, False), score_cap=2.0,
)  # fmt: skip
LENGTHS = np.array([12, 1, 5, 8], np.int32)


def batch(n, r):
    rng = np.random.default_rng(0)
    trunk, branches = rng.integers(0, 64, (4, 12)), rng.integers(0, 64, (4, n, r))
    return trunk.astype(np.int32), LENGTHS, branches.astype(np.int32)


@pytest.mark.parametrize(
    ("sizes", "n", "r"),
    [
        ((1, 2, 2, 2), 3, 4),
        pytest.param((2, 1, 2, 1), 3, 1, marks=pytest.mark.slow),  # no token of a branch enters
        pytest.param((1, 1, 6, 1), 1, 9, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_hidden_states_are_those_of_whole_prompts_in_their_order(sizes, n, r):
    params = decoder.init_params(CFG, jax.random.key(0))
    run = jax.jit(lambda *x: decoder.trunk_and_branches(CFG, *x))
    x, y = run(params, *batch(n, r))
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch(n, r), named(mesh, ("batch",)))
        there, beside = jax.jit(lambda *x: decoder.trunk_and_branches(CFG, *x))(
            jax.device_put(params, param_shardings(CFG, mesh)), *rows
        )
    assert there.addressable_shards[0].data.shape[1] == 12 // sizes[2]
    order = position_order(12, sizes[2])
    real = (order < LENGTHS[:, None])[..., None]
    np.testing.assert_allclose(np.where(real, there, 0), np.where(real, x[:, order], 0), atol=2e-5)
    np.testing.assert_allclose(beside, y, atol=2e-5)


def test_positions_are_dealt_evenly():
    assert position_order(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    order = position_order(48, 6).reshape(6, -1)
    assert len(set((order + 1).sum(1))) == 1  # keys that are seen, of all queries
    assert sorted(order.flat) == list(range(48))
    with pytest.raises(InputError, match=r"of 12 positions .* mesh\.sequence = 4; pad them to 16"):
        position_order(12, 4)


def test_a_kernel_that_knows_no_parts_is_not_taken_and_that_is_said():
    half, gpu = DecoderConfig(dtype="bfloat16"), Platform("cuda", hopper=True)
    assert choose(half, gpu).kernel == "cudnn"
    choice = choose(half, gpu, parts=4)
    assert choice.kernel == "plain"
    assert "not by cudnn: its masks know of no prompts cut in parts" in choice.reason
    with pytest.raises(InputError, match="attention 'cudnn' cannot be used: its masks"):
        choose(dataclasses.replace(half, attention="cudnn"), gpu, parts=4)
    wide = dataclasses.replace(half, head_size=128)
    assert choose(wide, Platform("tpu"), parts=4).kernel == "splash"


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_gradients_of_layers_that_are_computed_again_are_the_same(remat):
    def gradient(cfg, params, trunk, lengths, branches, order):
        def total(params):
            x, y = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)
            real = (jnp.asarray(order) < lengths[:, None])[..., None]
            weight = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            return (y * weight).mean() + jnp.where(real, x**3, 0).mean()

        return jax.jit(jax.grad(total))(params)

    params = decoder.init_params(CFG, jax.random.key(0))
    whole = gradient(CFG, params, *batch(3, 4), np.arange(12))
    mesh = mesh_of(1, 2, 2, 1)
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch(3, 4), named(mesh, ("batch",)))
        there = jax.device_put(params, param_shardings(CFG, mesh))
        cfg = dataclasses.replace(CFG, remat=remat)
        parts = gradient(cfg, there, *rows, position_order(12, 2))
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
