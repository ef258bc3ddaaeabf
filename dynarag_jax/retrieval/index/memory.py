"""Memory of an index, counted before it is built."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.retrieval.index.exact import PASSAGE_BLOCK, QUERY_BLOCK, RESIDENT
from dynarag_jax.retrieval.index.scann import (
    BLOCK_WIDTH,
    CODE_SAMPLE,
    ITEM_BYTES,
    PER_LEAF,
    PLACES,
    ScannSettings,
)

_GIB = 2**30
# What ScaNN takes however few the vectors.
_FIXED = 8 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes that an index takes, beside the vectors given to it where they are memory-mapped.

    Attributes:
      build: at the height of building it.
      search: while it answers.
      disk: of the saved directory, without the ids.
      parts: what ``search`` consists of, by name.
    """

    build: int
    search: int
    disk: int
    parts: dict[str, int]

    def describe(self) -> str:
        """One line."""
        parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in self.parts.items())
        return (
            f"{self.build / _GIB:.2f} GiB to build, {self.search / _GIB:.2f} GiB to search "
            f"({parts}), {self.disk / _GIB:.2f} GiB on the disk"
        )


def estimate_exact(count: int, width: int) -> Memory:
    """Of exact search over ``count`` vectors: what lies on the device, or streams through it."""
    data = 4 * count * width
    held = data if data <= RESIDENT else 2 * 4 * PASSAGE_BLOCK * width
    parts = {"vectors": held, "scores": 4 * QUERY_BLOCK * min(count, PASSAGE_BLOCK)}
    total = sum(parts.values())
    return Memory(total, total, data, parts)


def estimate_scann(count: int, width: int, settings: ScannSettings, copy: bool = False) -> Memory:
    """Of a ScaNN index over ``count`` vectors.

    ScaNN copies the vectors in float32 whatever type it keeps in the end, and where there are
    partitions it encodes a second copy, each vector's difference from its partition's center. Codes
    take four bits for every two numbers, in each of a vector's two partitions, and twice that while
    they are made.

    Args:
      copy: the vectors come as several shards or in another type, and are joined first.
    """
    data = 4 * count * width
    if settings.method == "brute_force":
        return Memory(data * (2 if copy else 1), data, data, {"vectors": data})
    places = PLACES if settings.leaves else 1
    codes = places * count * math.ceil(width / BLOCK_WIDTH / 2)
    parts = {
        "vectors scored again": count * width * ITEM_BYTES[settings.reorder_type],
        "codes": codes,
        "partitions": 4 * (places * count + settings.leaves * width) if settings.leaves else 0,
    }
    search = sum(parts.values())
    # The sample that codes are trained on is copied and split into blocks.
    training = 2 * 4 * width * min(count, CODE_SAMPLE)
    if settings.leaves:
        training += 4 * width * min(count, PER_LEAF * settings.leaves)
    copies = (2 if settings.leaves else 1) + (1 if copy else 0)
    build = copies * data + 2 * codes + training + _FIXED
    return Memory(max(build, search), search, search, parts)


def machine_memory() -> int | None:
    """Bytes that a process may still take here; None where the system does not say."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    try:
        # A container's limit, which /proc/meminfo does not know.
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            limits.append(int(limit) - used)
    except (OSError, ValueError):
        pass
    if not limits and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits) if limits else None


def require_memory(memory: Memory, limit: float, what: str) -> None:
    """Refuse what does not fit.

    Args:
      limit: bytes; 0 for what the machine has free.

    Raises:
      InputError: building takes more.
    """
    allowed = limit or machine_memory()
    if allowed is not None and memory.build > allowed:
        source = "the limit set" if limit else "free here"
        raise InputError(
            f"index: {what} takes {memory.describe()}; {allowed / _GIB:.2f} GiB are {source}: "
            f"split it into more shards, store bfloat16 or int8, or raise memory_gib"
        )
