"""The mesh and the one rule table."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from dynarag_jax.errors import InputError
from dynarag_jax.sharding import (
    batch_shards,
    check_shapes,
    constrain,
    make_mesh,
    mesh_of,
    mesh_sizes,
    named,
    require_divisible,
    require_whole_prompts,
    spec,
    whole_prompts,
)


@pytest.fixture(scope="module")
def eight():
    devices = jax.devices()[:8]
    assert len(devices) == 8, "these tests need 8 simulated devices; see tests/conftest.py"
    return devices


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 4, 2), (1, 4, 2))],
)
def test_mesh_sizes(eight, sizes, shape):
    mesh = make_mesh(*sizes, devices=eight)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert batch_shards(mesh) == shape[0] * shape[1]


def test_a_fourth_axis_cuts_prompts_and_weights(eight):
    assert mesh_sizes(1, -1, 2, 8, sequence=2) == (1, 2, 2, 2)
    assert mesh_sizes(1, 4, 2, 8, sequence=-1) == (1, 4, 2)  # nothing was left for it
    mesh = mesh_of((1, 2, 2, 2), eight)
    assert mesh.axis_names == ("data", "fsdp", "sequence", "tensor")
    assert batch_shards(mesh) == 2
    assert named(mesh, ("batch", "positions")).spec == PartitionSpec(("data", "fsdp"), "sequence")
    assert named(mesh, ("vocab", "embed")).spec == PartitionSpec("tensor", ("fsdp", "sequence"))
    with pytest.raises(InputError, match="axis 'embed' of size 6 over 4 devices"):
        check_shapes(mesh, {"a": ((6,), ("embed",))})
    with pytest.raises(InputError, match="sequence x tensor = 1 x 3 x 2 x 1 does not cover the 8"):
        mesh_sizes(1, 3, 1, 8, sequence=2)
    # What cuts no prompts has the same weights on the same devices, and rows over both axes.
    other = mesh_of(whole_prompts((1, 2, 2, 2)), eight)
    axes = (("vocab", "embed"), (4, 8))
    where = (named(m, axes[0]).devices_indices_map(axes[1]) for m in (mesh, other))
    assert next(where) == next(where)
    assert batch_shards(other) == 4
    with pytest.raises(InputError, match=r"sampling reads whole prompts, .* tensor = 1 x 4 x 2"):
        require_whole_prompts(mesh, "sampling")
    require_whole_prompts(other, "sampling")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 2, 1), "does not cover the 8 device"),
        ((-1, 3, 1), "does not cover the 8 device"),
        ((-1, -1, 1), "at most one is -1"),
        ((0, 8, 1), "sizes are positive"),
        ((-2, 4, 1), "sizes are positive"),
    ],
)
def test_impossible_meshes_are_refused(eight, sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(*sizes, devices=eight)


class Tpu(SimpleNamespace):
    """A TPU as a mesh sees it: a v5p chip at its place in its slice. There is none here."""

    platform, device_kind = "tpu", "TPU v5p"

    def __hash__(self):
        return self.id


def tpus(slices):
    """Slices of eight chips, 2 x 2 x 2."""
    return [
        Tpu(
            id=8 * number + i, process_index=2 * number + i // 4, slice_index=number,
            coords=(i % 2, i // 2 % 2, i // 4), core_on_chip=0,
        )
        for number in range(slices)
        for i in range(8)
    ]  # fmt: skip


def test_between_slices_runs_data_alone():
    mesh = make_mesh(4, 2, 2, devices=tpus(2)[::-1])
    assert mesh.devices.shape == (4, 2, 2)
    by_slice = [{d.slice_index for d in mesh.devices[i].flat} for i in range(4)]
    assert by_slice == [{0}, {0}, {1}, {1}]
    # The axis that talks most lies on neighbors.
    for pair in mesh.devices.reshape(-1, 2):
        assert sum(abs(a - b) for a, b in zip(pair[0].coords, pair[1].coords, strict=True)) == 1


def test_groups_can_be_named_where_devices_name_none(eight):
    mesh = make_mesh(2, 2, 2, devices=eight, slices=2)
    assert [d.id for d in mesh.devices[0].flat] == [d.id for d in eight[:4]]
    assert make_mesh(8, devices=eight, slices=1).devices.shape == (8, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "slices", "message"),
    [
        ((1, 4, 4), 0, "over 2 slices: only data runs between .* a multiple of 2"),
        ((4, 2, 2), 4, "mesh.slices = 4, but these TPUs are 2 slices"),
    ],
)
def test_slices_that_the_mesh_does_not_fit_are_refused(sizes, slices, message):
    with pytest.raises(InputError, match=message):
        make_mesh(*sizes, devices=tpus(2), slices=slices)


def test_groups_that_do_not_divide_the_devices_are_refused(eight):
    with pytest.raises(InputError, match="slices = 3 does not divide the 8 devices"):
        make_mesh(devices=eight, slices=3)


def test_logical_axes_become_mesh_axes():
    assert spec(("vocab", "embed")) == PartitionSpec("tensor", "fsdp")
    assert spec(("batch", None, "heads")) == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert spec(("layers", "width")) == PartitionSpec(None, None)
    with pytest.raises(ValueError, match="use a mesh axis twice"):
        spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="use a mesh axis twice"):
        spec(("batch", "embed"))


def test_batches_that_do_not_divide_name_the_nearest_sizes(eight):
    mesh = make_mesh(2, 2, 2, devices=eight)
    require_divisible(12, mesh, "batch")
    with pytest.raises(InputError, match=r"batch = 10 .* 4 batch shards .* are 8 or 12"):
        require_divisible(10, mesh, "batch")
    with pytest.raises(InputError, match=r"nearest sizes are 4$"):
        require_divisible(3, mesh, "batch")


def test_every_array_that_does_not_divide_is_listed(eight):
    mesh = make_mesh(2, 2, 2, devices=eight)
    good = {"a": ((4, 6), ("embed", "mlp")), "b": ((3, 5), (None, "layers"))}
    check_shapes(mesh, good)
    bad = good | {"c": ((5, 6), ("embed", "mlp")), "d": ((2, 6), ("batch", None))}
    with pytest.raises(InputError) as error:
        check_shapes(mesh, bad)
    assert "c: axis 'embed' of size 5 over 2 devices" in str(error.value)
    assert "d: axis 'batch' of size 2 over 4 devices" in str(error.value)
    assert "a:" not in str(error.value)


def test_activations_are_pinned_where_a_mesh_is_set(eight):
    mesh = make_mesh(2, 2, 2, devices=eight)
    pin = jax.jit(lambda x: constrain(x * 2, "batch", "mlp"))
    x = jnp.ones((8, 4))
    assert len(pin(x).sharding.device_set) == 1
    with jax.set_mesh(mesh):
        pinned = pin(x)
    assert pinned.sharding.is_equivalent_to(named(mesh, ("batch", "mlp")), 2)
    assert pinned.addressable_shards[0].data.shape == (2, 2)
