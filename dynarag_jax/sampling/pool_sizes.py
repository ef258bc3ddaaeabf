"""How many prompts are in flight at once: what a pool's caches take, and what memory has."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.sampling.requests import STOPS


@dataclass(frozen=True)
class PoolShape:
    """The shape of a pool."""

    slots: int
    entering: int
    """prompts that are computed at once"""
    branches: int
    prompt: int
    branch: int
    stops: int


def trunk_bytes(cfg: DecoderConfig, length: int) -> int:
    """Bytes of one trunk's cache."""
    numbers = 2 * cfg.layers * cfg.kv_heads * cfg.head_size * length
    return numbers * jnp.dtype(cfg.dtype).itemsize


def slot_bytes(cfg: DecoderConfig, shape: PoolShape) -> int:
    """Bytes of caches that one slot takes, its share of the prompts about to enter included."""
    entering = shape.entering / shape.slots * trunk_bytes(cfg, shape.prompt)
    branches = shape.branches * trunk_bytes(cfg, shape.branch)
    return math.ceil(trunk_bytes(cfg, shape.prompt) + branches + entering)


def pool_shape(
    slots: int, length: int, branches: int, branch: int, refill: float, shards: int
) -> PoolShape:
    """The shape of a pool: so many prompts enter at once as ``refill`` says, on every shard."""
    entering = max(1, math.ceil(slots * refill / shards)) * shards
    return PoolShape(slots, entering, branches, length, branch, STOPS)


def largest_pool(
    cfg: DecoderConfig, most: int, budget: int, shape: Callable[[int], PoolShape], shards: int
) -> int:
    """The most slots, up to ``most``, whose caches the budget holds; 0 where not even one does.

    Args:
      budget: bytes over all devices.
      shape: of so many slots.
    """
    slots = most
    while slots and slots * slot_bytes(cfg, shape(slots)) > budget:
        slots = (slots - 1) // shards * shards
    return slots


def free_bytes(mesh: Mesh) -> int:
    """Memory that caches may take on all devices of the mesh: nine tenths of what is free.

    Where devices do not say what they hold (CPUs), half of the host's free memory.
    """
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [d.memory_stats() for d in mine]
    known = [s for s in stats if s and "bytes_limit" in s]
    if known and len(known) == len(mine):
        least = min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in known)
        return int(0.9 * least) * mesh.size
    try:
        host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 62
    return host // 2
