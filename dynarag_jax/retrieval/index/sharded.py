"""A corpus larger than one host: an index per shard, searched side by side and merged.

The best of the union are among the best of the shards, so that merging loses nothing: results are
exact with respect to what the shards find. Shards are plain saved indexes,
``shard-00002-of-00008``, in one directory; several processes build and search them without talking
to each other but for the results.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.processes import gather as gather_bytes
from dynarag_jax.retrieval.index.base import Index, ranked
from dynarag_jax.retrieval.index.manifest import MANIFEST

_NAME = re.compile(r"shard-(\d{5})-of-(\d{5})")
# Bytes of results that a process tells the others at a time.
_TOLD = 1 << 20


def shard_name(number: int, shards: int) -> str:
    """The directory of a shard."""
    return f"shard-{number:05}-of-{shards:05}"


def shard_directories(place: Path) -> list[Path]:
    """The shards in a directory, in order; none where it holds an index itself.

    Raises:
      InputError: some are missing, or they are shards of several indexes.
    """
    if not place.is_dir() or (place / MANIFEST).exists():
        return []
    names_of = {m.group(): m for p in place.iterdir() if (m := _NAME.fullmatch(p.name))}
    if not names_of:
        return []
    totals = sorted({int(match[2]) for match in names_of.values()})
    if len(totals) > 1:
        raise InputError(f"{place}: holds shards of several indexes, of {totals} shards")
    names = [shard_name(i, totals[0]) for i in range(totals[0])]
    if missing := [name for name in names if name not in names_of]:
        raise InputError(f"{place / missing[0]}: this shard is missing; build it")
    return [place / name for name in names]


class ShardedIndex(Index):
    """Shards of one corpus, all or some of them in this process."""

    kind = "sharded"

    def __init__(
        self,
        shards: Mapping[int, Index],
        counts: Sequence[int],
        width: int,
        processes: int = 1,
        gather: Callable[[str, bytes], list[bytes]] = gather_bytes,
    ):
        """Search ``shards`` as one index.

        Args:
          shards: this process's, by number.
          counts: vectors of every shard, of all processes.
          processes: those that search; each must call ``search`` with the same queries.
          gather: brings together what the processes found.
        """
        self._starts = list(itertools.accumulate(counts, initial=0))
        for number, shard in shards.items():
            if (shard.count, shard.width) != (counts[number], width):
                raise InputError(
                    f"index: shard {number} holds {shard.count} vectors of {shard.width} numbers, "
                    f"not {counts[number]} of {width}"
                )
        if processes == 1 and len(shards) != len(counts):
            raise InputError(f"index: {len(shards)} of {len(counts)} shards are here")
        self._shards, self._processes, self._gather = dict(shards), processes, gather
        self.count, self.width = self._starts[-1], width
        known = [s.duplicates for s in shards.values()]
        self.duplicates = sum(filter(None, known)) if processes == 1 else None

    @property
    def description(self) -> str:  # type: ignore[override]
        """How many shards, where, and how the first of them searches."""
        where = f", {len(self._shards)} of them here" if self._processes > 1 else ""
        first = next(iter(self._shards.values()), None)
        return (
            f"{len(self._starts) - 1} shards{where}, {self.count:,} vectors of {self.width} numbers"
            + (f"; each as: {first.description}" if first else "")
        )

    def describe(self) -> str:
        """All shards of this process, one after the other."""
        parts = [f"shard {i}: {shard.describe()}" for i, shard in self._shards.items()]
        return "\n".join([self.description.split(";")[0], *parts])

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        by_shard = [
            (np.where(p < 0, -1, p.astype(np.int64) + self._starts[number]), s)
            for number, shard in self._shards.items()
            for p, s in [shard.search(queries, min(k, shard.count))]
        ]
        none = (np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf))
        side = [np.concatenate(x, axis=1) for x in zip(*by_shard, none, strict=True)]
        merged = ranked(side[0], side[1], k)
        return merged if self._processes == 1 else self._together(*merged)

    def _together(self, positions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What all processes found, side by side."""
        count, k = positions.shape
        rows = max(1, _TOLD // (8 * k))
        parts = []
        for first in range(0, count, rows):
            mine = np.stack(
                [positions[first : first + rows], scores[first : first + rows].view(np.int32)]
            )
            told = self._gather("index/search", mine.astype("<i4").tobytes())
            if len(told) != self._processes or len({len(t) for t in told}) > 1:
                raise InputError(
                    f"search: {self._processes} processes must search together, with the same "
                    f"queries and k; {len(told)} answered"
                )
            all_found = np.stack([np.frombuffer(t, "<i4").reshape(mine.shape) for t in told])
            # [process, 2, rows, k] -> [rows, process * k]
            side = all_found.transpose(1, 2, 0, 3).reshape(2, mine.shape[1], -1)
            parts.append(side)
        joined = np.concatenate(parts, axis=1)
        return joined[0], np.ascontiguousarray(joined[1]).view(np.float32)

    def stored_bytes(self) -> int:
        """Of this process's shards."""
        return sum(shard.stored_bytes() for shard in self._shards.values())

    def _write(self, directory: Path) -> dict[str, Any]:
        raise InputError(f"{directory}: shards are built and saved by build_shards")
