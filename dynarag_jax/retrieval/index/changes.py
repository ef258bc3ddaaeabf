"""Passages added to a saved index and removed from it, without building it again.

Additions are searched exactly beside the index, removals are marks, so that results are exact with
respect to both. ScaNN can insert and delete by itself, but then quantizes what it inserts by codes
trained without it, moves other vectors into freed places, and every change writes the index anew.

On the disk a change is a directory of its own, and it counts from the moment the manifest names it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json, write_json
from dynarag_jax.retrieval.index.base import Index
from dynarag_jax.retrieval.index.exact import ExactIndex
from dynarag_jax.retrieval.index.manifest import (
    CHANGES,
    MANIFEST,
    require_space,
    sealed,
)
from dynarag_jax.retrieval.index.rows import Rows, open_shards


class ChangedIndex(Index):
    """An index with vectors added behind its last one and others left out.

    Positions count what is left: the index's own vectors in their order, then the additions.
    """

    kind = "changed"

    def __init__(self, base: Index, added: Any, removed: np.ndarray):
        """Change ``base``.

        Args:
          added: float [m, d], or None.
          removed: positions among base and additions, ``base.count + m`` in all, to leave out.
        """
        rows = Rows(np.zeros((0, base.width), np.float32) if added is None else added)
        total = base.count + len(rows)
        self._alive = np.ones(total, bool)
        self._alive[removed] = False
        # Where each of base and additions stands among what is left.
        self._rank = (np.cumsum(self._alive) - 1).astype(np.int32)
        self._base, self._added = base, rows
        self._removed_of_base = int((~self._alive[: base.count]).sum())
        self._kept = np.flatnonzero(self._alive[base.count :])
        self._delta = ExactIndex(rows.take(self._kept), checked=True) if len(self._kept) else None
        self.count, self.width = int(self._alive.sum()), base.width
        if not self.count:
            raise InputError("index: every passage was removed; build an index of others")
        self.recall, self.speed, self.config = base.recall, base.speed, base.config

    @property
    def description(self) -> str:  # type: ignore[override]
        """The index's own line, and the changes."""
        return (
            f"{self._base.description}; {len(self._kept):,} passages added and searched exactly, "
            f"{self._removed_of_base:,} removed"
        )

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        positions, scores = self._of_base(queries, k)
        if self._delta is not None:
            more, better = self._delta.search(queries, min(k, self._delta.count))
            positions = np.concatenate([positions, self._base.count + self._kept[more]], axis=1)
            scores = np.concatenate([scores, better], axis=1)
        return np.where(positions < 0, -1, self._rank[positions]), scores

    def _of_base(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The base's best with those removed left out; at least ``k``, or all that it finds."""
        base, share = self._base, self._removed_of_base / self._base.count
        wanted = min(k, base.count - self._removed_of_base)
        if not wanted:
            return np.full((len(queries), 1), -1), np.full((len(queries), 1), -np.inf)
        fetch = min(base.count, k + (math.ceil(2 * k * share) + 8 if share else 0))
        while True:
            positions, scores = base.search(queries, fetch)
            gone = (positions >= 0) & ~self._alive[positions]
            enough = ((positions >= 0) & ~gone).sum(axis=1) >= wanted
            if fetch == base.count or (enough | (positions[:, -1] < 0)).all():
                return np.where(gone, -1, positions), np.where(gone, -np.inf, scores)
            fetch = min(base.count, 2 * fetch)

    def rows(self) -> Rows | None:
        """The vectors that are left, copied; None where the index does not keep its own."""
        if (base := self._base.rows()) is None:
            return None
        return Rows(Rows([*base.parts, *self._added.parts]).take(np.flatnonzero(self._alive)))

    def stored_bytes(self) -> int:
        """As the index itself, and the additions."""
        return self._base.stored_bytes() + 4 * len(self._added) * self.width

    def _write(self, directory: Path) -> dict[str, Any]:
        raise InputError(f"{directory}: an index with changes is saved by update_index")


# ---------------------------------------------------------------------------- on the disk


def read_changes(place: Path, manifest: dict[str, Any]) -> tuple[Rows, list[str], np.ndarray]:
    """Additions, their ids, and positions removed, of a saved index."""
    width = manifest["dim"]
    if not (name := manifest.get("changes")):
        return Rows(np.zeros((0, width), np.float32)), [], np.zeros(0, np.int64)
    added = open_shards([place / name / "added.npy"], width)
    removed = np.load(place / name / "removed.npy", allow_pickle=False)
    return added, read_json(place / name / "ids.json"), removed


def apply_changes(place: Path, manifest: dict[str, Any], base: Index) -> Index:
    """``base`` with the changes that the manifest names; ``base`` itself where it names none."""
    if not manifest.get("changes"):
        return base
    added, _, removed = read_changes(place, manifest)
    index = ChangedIndex(base, added, removed)
    index.duplicates = manifest.get("duplicates")
    return index


def changed_ids(place: Path, manifest: dict[str, Any], ids: list[str]) -> list[str]:
    """The ids that are left of ``ids``, and those added."""
    if not manifest.get("changes"):
        return ids
    _, more, removed = read_changes(place, manifest)
    gone = set(removed.tolist())
    return [passage for i, passage in enumerate([*ids, *more]) if i not in gone]


def live_count(place: Path, manifest: dict[str, Any]) -> int:
    """Passages in a saved index, without reading their ids."""
    added, _, removed = read_changes(place, manifest)
    return manifest["count"] + len(added) - len(removed)


def write_change(
    place: Path, manifest: dict[str, Any], added: Rows, ids: Sequence[str], removed: Sequence[int]
) -> None:
    """Write a directory of changes, then the manifest that names it, then drop the one before."""
    require_space(place, 4 * len(added) * added.shape[1] + 8 * len(removed))
    before = manifest.get("changes") or f"{CHANGES}{0:06}"
    name = f"{CHANGES}{int(before.removeprefix(CHANGES)) + 1:06}"
    with atomic_directory(place / name, overwrite=True) as temporary:
        # Copied, since the file read from is the one that is dropped below.
        np.save(temporary / "added.npy", added.array())
        np.save(temporary / "removed.npy", np.asarray(removed, np.int64))
        write_json(temporary / "ids.json", list(ids))
    files = {n: v for n, v in manifest["files"].items() if not n.startswith(CHANGES)}
    files |= sealed(place, sorted((place / name).iterdir()))
    write_json(place / MANIFEST, manifest | {"changes": name, "files": files})
    for old in place.glob(f"{CHANGES}*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
