"""Scattered sums over a mesh axis, along one ring of a torus after the other.

A mesh axis over many TPUs of a slice runs through two or three rings of links. Asked for a
scattered sum over such an axis, XLA sums the whole array everywhere and cuts it, which sends twice
as much; a sum over a single ring stays scattered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import numpy as np
from jax.sharding import Mesh

Rings = Mapping[str, tuple[int, ...]]
"""Of mesh axes that run through several rings, the rings' sizes, outermost first."""

_rings: ContextVar[Rings | None] = ContextVar("rings", default=None)


def rings_of(mesh: Mesh) -> Rings:
    """The rings that each axis of a mesh runs through; an axis of one ring is not named.

    Only TPUs say where they stand (``coords``). On other devices no axis is named.
    """
    where = np.array(
        [(*getattr(d, "coords", ()), getattr(d, "core_on_chip", 0)) for d in mesh.devices.flat]
    )
    if where.shape[1] == 1:
        return {}
    where = where.reshape(*mesh.devices.shape, -1)
    lines = {
        name: np.moveaxis(where, i, -2).reshape(-1, where.shape[i], where.shape[-1])
        for i, name in enumerate(mesh.axis_names)
    }
    found = {name: _rings_of_lines(line) for name, line in lines.items()}
    return {name: sizes for name, sizes in found.items() if len(sizes) > 1}


def _rings_of_lines(lines: np.ndarray) -> tuple[int, ...]:
    """The rings of lines of devices alike, whose coordinates are [lines, devices, coordinates].

    Empty where the line does not run through one ring after the other: small slices are laid out
    as a single ring that winds through both directions.
    """
    length = lines.shape[1]
    # Innermost the longest stretch, of equal ones, along which a single coordinate changes.
    for size in range(length, 1, -1):
        if length % size:
            continue
        stretches = lines.reshape(-1, size, lines.shape[-1])
        changes = (stretches != stretches[:, :1]).any((0, 1))
        if changes.sum() == 1:
            outer = _rings_of_lines(lines[:, ::size])
            return (*outer, size) if outer or size == length else ()
    return ()


@contextmanager
def along(rings: Rings) -> Iterator[None]:
    """While this lasts, ``scattered_sum`` takes an axis's rings one after the other."""
    before = _rings.set(rings)
    try:
        yield
    finally:
        _rings.reset(before)


def has_rings(axes: Sequence[str]) -> bool:
    """Whether one of these mesh axes runs through several rings."""
    return any(name in (_rings.get() or ()) for name in axes)


def scattered_sum(x: jax.Array, axes: Sequence[str], dimension: int) -> jax.Array:
    """The sum over mesh axes, of which each device gets its part; for the inside of a shard_map.

    Args:
      x: a device's terms of the sum, whole.
      axes: the mesh axes, outermost first, as a PartitionSpec lists them.
      dimension: what is cut into parts, one a device.

    Returns:
      x with ``dimension`` divided by the devices of the axes.
    """
    rings = _rings.get() or {}
    for name in axes:
        for groups in _groups(rings[name]) if name in rings else [None]:
            x = jax.lax.psum_scatter(
                x, name, scatter_dimension=dimension, axis_index_groups=groups, tiled=True
            )
    return x


def _groups(sizes: tuple[int, ...]) -> list[list[list[int]]]:
    """Of each ring, outermost first, the groups of an axis's devices that lie along it."""
    places = np.arange(np.prod(sizes, dtype=int)).reshape(sizes)
    return [
        np.moveaxis(places, i, -1).reshape(-1, size).tolist()
        for i, size in enumerate(sizes)
        if size > 1
    ]
