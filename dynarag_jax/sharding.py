"""One mesh, one table: how every array of the program is laid over the devices.

Arrays carry *logical* axis names; ``RULES`` maps them to mesh axes. Nothing else in the library
names a mesh axis, so that changing the layout is changing this table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dynarag_jax.errors import InputError

HOST = "pinned_host"
"""The memory kind of the host, where devices read and write it directly."""

MESH_AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # activations and caches: one question lives on one shard
    "rows": ("data",),  # tokens that travel to weights which stay where they are
    "embed": ("fsdp",),  # weights are sharded over fsdp on their model dimension
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
"""Logical axes that are not named here are replicated."""


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """Sizes of the mesh over so many devices; one of them may be -1 and takes what is left.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(f"mesh {tuple(sizes)}: sizes are positive, at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        raise InputError(
            f"mesh data x fsdp x tensor = {data} x {fsdp} x {tensor} does not cover the "
            f"{devices} device(s) here; choose sizes whose product is {devices}"
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
    slices: int = 0,
) -> Mesh:
    """Make the mesh (data, fsdp, tensor); one size may be -1 and takes what is left.

    Inside a slice, devices are arranged so that the axes that talk most, ``tensor`` first, lie on
    neighbors. Between slices only gradients travel: the data axis runs over them, outermost.

    Args:
      slices: groups of devices joined by a slower network; 0 takes the TPUs' own.

    Raises:
      InputError: the sizes do not multiply to the number of devices, or the data axis does not
        divide over the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(data, fsdp, tensor, len(devices))
    groups = _slices(devices, slices)
    if sizes[0] % len(groups):
        raise InputError(
            f"mesh data x fsdp x tensor = {' x '.join(map(str, sizes))} over {len(groups)} slices: "
            f"only data runs between slices, so that its size must be a multiple of {len(groups)}"
        )
    inside = (sizes[0] // len(groups), *sizes[1:])
    arranged = [
        mesh_utils.create_device_mesh(inside, group, allow_split_physical_axes=True)
        for group in groups
    ]
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return Mesh(np.concatenate(arranged), MESH_AXES, axis_types=axis_types)


def abstract_mesh(sizes: tuple[int, int, int]) -> AbstractMesh:
    """A mesh of these sizes over no devices: for what is counted from shapes."""
    return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _slices(devices: list[Any], slices: int) -> list[list[Any]]:
    """The devices by slice: their own, or so many equal groups in the order of processes."""
    own: dict[int, list[Any]] = {}
    for device in devices:
        number = getattr(device, "slice_index", None) if device.platform == "tpu" else None
        own.setdefault(number or 0, []).append(device)
    found = [own[number] for number in sorted(own)]
    if slices in (0, len(found)):
        return found
    if len(found) > 1:
        raise InputError(f"mesh.slices = {slices}, but these TPUs are {len(found)} slices")
    if len(devices) % slices:
        raise InputError(f"mesh.slices = {slices} does not divide the {len(devices)} devices here")
    size = len(devices) // slices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes.

    Raises:
      ValueError: two axes of one array map to the same mesh axis.
    """
    parts = [RULES.get(axis) if axis else None for axis in axes]
    used = [name for part in parts if part for name in part]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {tuple(axes)} use a mesh axis twice: {used}")
    return PartitionSpec(*(part[0] if part and len(part) == 1 else part for part in parts))


def named(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
    """The NamedSharding on ``mesh`` of an array with these logical axes."""
    return NamedSharding(mesh, spec(axes))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the batch axis is cut."""
    return int(np.prod([mesh.shape[name] for name in RULES["batch"]]))


def require_divisible(size: int, mesh: Mesh, what: str) -> None:
    """Raise InputError with the nearest usable sizes if ``size`` does not divide over the mesh."""
    shards = batch_shards(mesh)
    if size % shards:
        below, above = size // shards * shards, -(-size // shards) * shards
        sizes = f"{above}" if below == 0 else f"{below} or {above}"
        raise InputError(
            f"{what} = {size} does not divide over {shards} batch shards "
            f"(data x fsdp); the nearest sizes are {sizes}"
        )


def require_host_memory(mesh: Mesh, what: str) -> None:
    """Raise InputError if the mesh's devices have no host memory that programs can address."""
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise InputError(
            f"{what} needs host memory of kind '{HOST}', which {device.device_kind} devices do not "
            f"offer (they have {', '.join(kinds)}); turn it off"
        )


def laid_out(shapes: Any, shardings: Any) -> Any:
    """Shapes with where their arrays lie, for programs that are compiled without any.

    Args:
      shapes: a tree of arrays or their shapes; shardings: the same tree, or one that it begins as.
    """
    places = jax.tree.broadcast(shardings, shapes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def on_host(shardings: Any, arrays: Any) -> Any:
    """The same layouts in host memory; numbers (counts) stay on the device.

    Args:
      shardings: a tree of NamedSharding; arrays: the tree of shapes they are for.
    """
    return jax.tree.map(lambda s, x: s.with_memory_kind(HOST) if x.ndim else s, shardings, arrays)


def check_shapes(mesh: Mesh, shapes: Mapping[str, tuple[tuple[int, ...], tuple[Any, ...]]]) -> None:
    """Raise InputError naming every array ``{name: (shape, axes)}`` that the mesh cannot divide."""
    wrong = []
    for name, (shape, axes) in shapes.items():
        for size, axis in zip(shape, axes, strict=True):
            parts = int(np.prod([mesh.shape[m] for m in RULES.get(axis, ())])) if axis else 1
            if size % parts:
                wrong.append(f"{name}: axis '{axis}' of size {size} over {parts} devices")
    if wrong:
        raise InputError("the mesh does not divide these arrays: " + "; ".join(wrong))


def context_mesh() -> Any:
    """The mesh that a traced function runs under, or None where none of ours is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names) else mesh


def local_size(size: int, axis: str) -> int:
    """A device's part of an axis under the mesh that is set; all of it where none is."""
    mesh = context_mesh()
    parts = 1 if mesh is None else math.prod(mesh.shape[name] for name in RULES[axis])
    return -(-size // parts)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin the layout of an activation inside jit; the identity where no mesh is set."""
    return x if context_mesh() is None else jax.lax.with_sharding_constraint(x, spec(axes))
