"""Sums that are scattered along one ring after the other, and gradients that are summed so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.models.lora import LoraConfig, attach, init_adapters
from dynarag_jax.policy.logprobs import token_logps
from dynarag_jax.rings import along, has_rings, rings_of, scattered_sum
from dynarag_jax.sharding import make_mesh, named

CFG = DecoderConfig(
    vocab=64, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp=48, tied=False,
)  # fmt: skip


def mesh_at(places, axis_names) -> Any:
    """What ``rings_of`` reads of a mesh: names, and devices that stand at these coordinates."""
    devices = np.empty(places.shape[:-1], object)
    for at in np.ndindex(devices.shape):
        devices[at] = SimpleNamespace(coords=tuple(places[at]), core_on_chip=0)
    return SimpleNamespace(devices=devices, axis_names=axis_names)


def torus(*sizes):
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1)


def test_the_rings_of_a_mesh_are_read_from_where_its_devices_stand():
    cube = torus(4, 4, 4)
    names = ("data", "fsdp", "tensor")
    assert rings_of(mesh_at(cube.reshape(1, 64, 1, 3), names)) == {"fsdp": (4, 4, 4)}
    assert rings_of(mesh_at(cube.reshape(1, 16, 4, 3), names)) == {"fsdp": (4, 4)}
    assert rings_of(mesh_at(cube.reshape(4, 16, 1, 3), names)) == {"fsdp": (4, 4)}
    assert rings_of(mesh_at(cube.reshape(16, 4, 1, 3), names)) == {"data": (4, 4)}
    assert rings_of(mesh_at(torus(2, 4).reshape(1, 8, 1, 2), names)) == {"fsdp": (2, 4)}
    # A ring that is divided, as `create_device_mesh` divides one where no other way is left.
    assert rings_of(mesh_at(torus(4, 4).reshape(2, 8, 1, 2), names)) == {"fsdp": (2, 4)}
    # One ring that winds through both directions, as small slices are laid out: one sum.
    winding = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    assert rings_of(mesh_at(winding.reshape(1, 4, 1, 2), names)) == {}
    # In no order that follows rings: the same.
    mixed = np.random.default_rng(0).permutation(cube.reshape(64, 3))
    assert rings_of(mesh_at(mixed.reshape(1, 64, 1, 3), names)) == {}
    assert rings_of(make_mesh(1, 8, 1)) == {}


def rows_on(mesh):
    """Prompts, their lengths, and two branches of each, on a mesh."""
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 64, (8, 16)), rng.integers(4, 17, 8), rng.integers(1, 64, (8, 2, 6))
    return [jax.device_put(jnp.asarray(x, jnp.int32), named(mesh, ("batch",))) for x in rows]


@pytest.mark.parametrize("rings", [(8,), (2, 4), (4, 2), (2, 2, 2)])
@pytest.mark.parametrize("dimension", [0, 1])
def test_a_sum_along_rings_is_the_sum(rings, dimension):
    mesh = make_mesh(1, 8, 1)
    x = np.random.default_rng(0).integers(-9, 9, (8, 16, 24)).astype(np.float32)
    parts = PartitionSpec(*[None] * dimension, "fsdp")

    def own(x):
        return scattered_sum(x[0], ("fsdp",), dimension)

    with along({"fsdp": rings}):
        sums = jax.shard_map(
            own, mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=parts, check_vma=False
        )
        program = jax.jit(sums).lower(x).compile()
    np.testing.assert_array_equal(program(x), x.sum(0))
    assert str(program.as_text()).count("reduce-scatter(") == len(rings)
    assert not has_rings(("fsdp",))  # and afterwards there are none


@pytest.mark.parametrize(
    ("sizes", "rings"),
    [
        pytest.param({"data": 1, "fsdp": 8, "tensor": 1}, (2, 4), id="fsdp"),
        pytest.param(
            {"data": 2, "fsdp": 4, "tensor": 1}, (2, 2), id="data and fsdp", marks=pytest.mark.slow
        ),
        pytest.param({"data": 1, "fsdp": 4, "tensor": 2}, (2, 2), id="fsdp and tensor"),
        pytest.param(
            {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 2},
            (2, 2),
            id="fsdp and sequence",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gradients_along_rings_are_the_gradients(sizes, rings):
    mesh = make_mesh(**sizes)
    place = param_shardings(CFG, mesh)
    params = jax.device_put(decoder.init_params(CFG, jax.random.key(0)), place)
    rows = rows_on(mesh)

    def gradients(along_rings):
        def loss(params, trunk, lengths, branches):
            _, hidden = decoder.trunk_and_branches(CFG, params, trunk, lengths, branches)
            return token_logps(CFG, params, hidden, branches).unconstrained.mean()

        with jax.set_mesh(mesh), along({"fsdp": rings} if along_rings else {}):
            program = jax.jit(jax.grad(loss), out_shardings=place).lower(params, *rows).compile()
        return program(params, *rows), str(program.as_text()).count("reduce-scatter(")

    (wanted, before), (found, after) = gradients(False), gradients(True)
    assert after > before
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(np.abs(other).max()))


def test_frozen_matrices_have_no_gradients_to_scatter():
    mesh, lora = make_mesh(1, 8, 1), LoraConfig(rank=2)
    params = decoder.init_params(CFG, jax.random.key(0))
    params = jax.device_put(params, param_shardings(CFG, mesh))
    adapters = jax.tree.map(lambda x: x + 0.1, init_adapters(CFG, lora, jax.random.key(1)))
    rows = rows_on(mesh)

    def loss(adapters, params, trunk, lengths, branches):
        adapted = attach(CFG, lora, params, adapters)
        _, hidden = decoder.trunk_and_branches(CFG, adapted, trunk, lengths, branches)
        return token_logps(CFG, adapted, hidden, branches).unconstrained.mean()

    def gradients(rings):
        with jax.set_mesh(mesh), along(rings):
            program = jax.jit(jax.grad(loss)).lower(adapters, params, *rows).compile()
        return program(adapters, params, *rows), str(program.as_text()).count("reduce-scatter(")

    (wanted, _), (found, scattered) = gradients({}), gradients({"fsdp": (2, 4)})
    assert scattered == 0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(np.abs(other).max()))
