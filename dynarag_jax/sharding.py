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
SEQUENCE_AXES = ("data", "fsdp", "sequence", "tensor")
"""Of a mesh that cuts prompts along their positions; without that there is no such axis."""

Sizes = tuple[int, ...]
"""A mesh's sizes: (data, fsdp, tensor), or (data, fsdp, sequence, tensor)."""

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # activations and caches: one question lives on one shard
    "positions": ("sequence",),  # of a trunk, in the order of ``position_order``
    "rows": ("data",),  # tokens that travel to weights which stay where they are
    "embed": ("fsdp", "sequence"),  # weights are cut on their model dimension
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
"""Logical axes that are not named here are replicated, and mesh axes that a mesh lacks are 1."""


def mesh_axes(sizes: Sizes) -> tuple[str, ...]:
    """The names of a mesh's sizes."""
    return MESH_AXES if len(sizes) == len(MESH_AXES) else SEQUENCE_AXES


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int, sequence: int = 1) -> Sizes:
    """Sizes of the mesh over so many devices; one of them may be -1 and takes what is left.

    Returns:
      (data, fsdp, tensor); (data, fsdp, sequence, tensor) where ``sequence`` is not 1.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    asked = (data, fsdp, tensor) if sequence == 1 else (data, fsdp, sequence, tensor)
    sizes = list(asked)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(f"mesh {tuple(sizes)}: sizes are positive, at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        raise InputError(
            f"mesh {described(asked)} does not cover the {devices} device(s) here; choose sizes "
            f"whose product is {devices}"
        )
    if sizes[2:-1] == [1]:  # it was to take what is left, and nothing was
        del sizes[2]
    return tuple(sizes)


def described(sizes: Sizes) -> str:
    """A mesh's sizes in words: ``data x fsdp x tensor = 1 x 8 x 1``."""
    return f"{' x '.join(mesh_axes(sizes))} = {' x '.join(map(str, sizes))}"


def whole_prompts(sizes: Sizes) -> tuple[int, int, int]:
    """The mesh for what cuts no prompts: (data, fsdp x sequence, tensor).

    Sampling, scoring and encoders take the sequence axis as more of fsdp: rows are cut over it, and
    weights lie on it as training has them.
    """
    data, fsdp, *sequence, tensor = sizes
    return data, fsdp * math.prod(sequence), tensor


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
    slices: int = 0,
    sequence: int = 1,
) -> Mesh:
    """Make the mesh (data, fsdp, tensor); one size may be -1 and takes what is left.

    Inside a slice, devices are arranged so that the axes that talk most, ``tensor`` first, lie on
    neighbors. Between slices only gradients travel: the data axis runs over them, outermost.

    Args:
      slices: groups of devices joined by a slower network; 0 takes the TPUs' own.
      sequence: parts of each prompt's positions; unless it is 1, the mesh is
        (data, fsdp, sequence, tensor).

    Raises:
      InputError: the sizes do not multiply to the number of devices, or the data axis does not
        divide over the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(data, fsdp, tensor, len(devices), sequence)
    groups = _slices(devices, slices)
    if sizes[0] % len(groups):
        raise InputError(
            f"mesh {described(sizes)} over {len(groups)} slices: "
            f"only data runs between slices, so that its size must be a multiple of {len(groups)}"
        )
    inside = (sizes[0] // len(groups), *sizes[1:])
    arranged = [
        mesh_utils.create_device_mesh(inside, group, allow_split_physical_axes=True)
        for group in groups
    ]
    axis_types = (AxisType.Auto,) * len(sizes)
    return Mesh(np.concatenate(arranged), mesh_axes(sizes), axis_types=axis_types)


def mesh_of(sizes: Sizes, devices: Sequence[Any] | None = None, slices: int = 0) -> Mesh:
    """``make_mesh`` of sizes that ``mesh_sizes`` gave."""
    by_name = dict(zip(mesh_axes(sizes), sizes, strict=True))
    return make_mesh(**by_name, devices=devices, slices=slices)


def abstract_mesh(sizes: Sizes) -> AbstractMesh:
    """A mesh of these sizes over no devices: for what is counted from shapes."""
    return AbstractMesh(sizes, mesh_axes(sizes), axis_types=(AxisType.Auto,) * len(sizes))


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


def axes_of(axis: str | None, mesh: Any = None) -> tuple[str, ...]:
    """The mesh axes that a logical axis is cut over; empty where it is replicated.

    Args:
      mesh: None takes the one that is set, or else one without a sequence axis.
    """
    mesh = context_mesh() if mesh is None else mesh
    there = MESH_AXES if mesh is None else mesh.axis_names
    return tuple(name for name in RULES.get(axis or "", ()) if name in there)


def axis_size(axis: str | None, mesh: Any = None) -> int:
    """Into how many parts a logical axis is cut; ``mesh`` as of ``axes_of``."""
    mesh = context_mesh() if mesh is None else mesh
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in axes_of(axis, mesh))


def spec(axes: Sequence[str | None], mesh: Any = None) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes; ``mesh`` as of ``axes_of``.

    Raises:
      ValueError: two axes of one array map to the same mesh axis.
    """
    parts = [axes_of(axis, mesh) for axis in axes]
    used = [name for part in parts for name in part]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {tuple(axes)} use a mesh axis twice: {used}")
    return PartitionSpec(*(part[0] if len(part) == 1 else part or None for part in parts))


def named(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
    """The NamedSharding on ``mesh`` of an array with these logical axes."""
    return NamedSharding(mesh, spec(axes, mesh))


def sequence_parts(sizes: Sizes) -> int:
    """Into how many parts a mesh of these sizes cuts a prompt."""
    return 1 if len(sizes) == len(MESH_AXES) else sizes[2]


def padded_prompt(length: int, parts: int) -> int:
    """The length that prompts are padded to where they are cut into parts: each holds two stretches
    of it."""
    multiple = 1 if parts == 1 else 2 * parts
    return -(-length // multiple) * multiple


def position_order(length: int, parts: int) -> np.ndarray:
    """The positions of a trunk in the order in which ``parts`` devices hold it, [length].

    Of twice as many stretches as parts, each holds one from the front and one from the back: causal
    attention then is as much work on one as on another.

    Raises:
      InputError: the length is not one of ``padded_prompt``.
    """
    if (padded := padded_prompt(length, parts)) != length:
        raise InputError(
            f"prompts of {length} positions do not divide over mesh.sequence = {parts}; pad them "
            f"to {padded}"
        )
    if parts == 1:
        return np.arange(length)
    stretches = np.arange(length).reshape(2, parts, -1)
    return np.stack([stretches[0], stretches[1, ::-1]], axis=1).reshape(-1)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the batch axis is cut."""
    return axis_size("batch", mesh)


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


def require_whole_prompts(mesh: Mesh, what: str) -> None:
    """Raise InputError if the mesh cuts prompts, and name the one that does not."""
    if (parts := axis_size("positions", mesh)) > 1:
        raise InputError(
            f"{what} reads whole prompts, and this mesh cuts them (sequence = {parts}); take the "
            f"same devices as data x fsdp x tensor = "
            f"{' x '.join(map(str, whole_prompts(mesh.devices.shape)))}"
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
            parts = axis_size(axis, mesh)
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
    return -(-size // axis_size(axis))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin the layout of an activation inside jit; the identity where no mesh is set."""
    return x if context_mesh() is None else jax.lax.with_sharding_constraint(x, spec(axes))
