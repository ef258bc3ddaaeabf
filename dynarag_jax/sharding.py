"""One mesh, one table: how every array of the program is laid over the devices.

Arrays carry *logical* axis names; ``RULES`` maps them to mesh axes. Nothing else in the library
names a mesh axis, so that changing the layout is changing this table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynarag_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # activations and caches: one question lives on one shard
    "embed": ("fsdp",),  # weights are sharded over fsdp on their model dimension
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
"""Logical axes that are not named here are replicated."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Make the mesh (data, fsdp, tensor); one size may be -1 and takes what is left.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(f"mesh {tuple(sizes)}: sizes are positive, at most one is -1")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise InputError(
            f"mesh data x fsdp x tensor = {data} x {fsdp} x {tensor} does not cover the "
            f"{len(devices)} device(s) here; choose sizes whose product is {len(devices)}"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=axis_types, devices=devices)


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


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin the layout of an activation inside jit; the identity where no mesh is set."""
    return x if context_mesh() is None else jax.lax.with_sharding_constraint(x, spec(axes))
