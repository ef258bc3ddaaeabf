"""Passages added to a saved index and removed from it, without building it again.

Additions are searched exactly beside the index, removals are marks, so that results are exact with
respect to both. ScaNN can insert and delete by itself, but then quantizes what it inserts by codes
trained without it, moves other vectors into freed places, and every change writes the index anew.

On the disk a change is a directory of its own, and it counts from the moment the manifest names it.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, atomic_directory, read_json, write_json
from dynarag_jax.retrieval.index.base import Index
from dynarag_jax.retrieval.index.exact import ExactIndex
from dynarag_jax.retrieval.index.manifest import (
    CHANGES,
    MANIFEST,
    read_manifest,
    require_space,
    sealed,
)
from dynarag_jax.retrieval.index.rows import Rows, look, open_shards


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
        if (own := self._base.rows()) is None:
            return None
        return Rows(Rows([*own.parts, *self._added.parts]).take(np.flatnonzero(self._alive)))

    def stored_bytes(self) -> int:
        """As the index itself, and the additions."""
        return self._base.stored_bytes() + 4 * len(self._added) * self.width

    def _write(self, directory: Path) -> dict[str, Any]:
        raise InputError(f"{directory}: an index with changes is saved by update_index")


# ---------------------------------------------------------------------------- on the disk


def _read(place: Path, manifest: dict[str, Any]) -> tuple[Rows, list[str], np.ndarray]:
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
    added, _, removed = _read(place, manifest)
    index = ChangedIndex(base, added, removed)
    index.duplicates = manifest.get("duplicates")
    return index


def changed_ids(place: Path, manifest: dict[str, Any], ids: list[str]) -> list[str]:
    """The ids that are left of ``ids``, and those added."""
    if not manifest.get("changes"):
        return ids
    _, more, removed = _read(place, manifest)
    gone = set(removed.tolist())
    return [passage for i, passage in enumerate([*ids, *more]) if i not in gone]


def live_count(place: Path, manifest: dict[str, Any]) -> int:
    """Passages in a saved index, without reading their ids."""
    added, _, removed = _read(place, manifest)
    return manifest["count"] + len(added) - len(removed)


def update_index(
    directory: PathLike,
    encoder: str,
    *,
    add: Any = None,
    add_ids: Sequence[str] = (),
    remove_ids: Sequence[str] = (),
    rebuild_at: float = 0.1,
    queries: np.ndarray | None = None,
) -> str:
    """Add passages to a saved index and remove others; whole or not at all.

    A passage that changed is named in both: it is removed, and added at the end. Where changes
    exceed a share of the index it is built again, with the configuration it was built with, if it
    keeps float32 vectors; ids are then in the same order as before.

    Args:
      encoder: fingerprint of the encoder that made ``add``.
      add: float [m, d] vectors.
      add_ids: their passages' ids.
      remove_ids: ids of passages to remove.
      rebuild_at: changes as a share of the index from which it is built again.
      queries: to measure recall on when it is built again.

    Returns:
      One line that says what was done.

    Raises:
      InputError: another encoder, an id that is there already or is not there, vectors that cannot
        be searched, an index in shards, or no room on the disk.
    """
    from dynarag_jax.retrieval.index.build import IndexConfig, build_index
    from dynarag_jax.retrieval.index.load import check_encoder, load_index
    from dynarag_jax.retrieval.index.sharded import shard_directories

    place = Path(directory)
    if shards := shard_directories(place):
        raise InputError(f"{place}: holds shards; update one of them, such as {shards[-1]}")
    manifest = read_manifest(place)
    check_encoder(place, manifest["encoder"], encoder)
    added, more, removed = _read(place, manifest)
    new = Rows(np.zeros((0, manifest["dim"]), np.float32) if add is None else add, "add")
    if len(new) != len(add_ids):
        raise InputError(f"add: {len(new)} vectors for {len(add_ids)} ids")
    if len(new):
        if new.shape[1] != manifest["dim"]:
            raise InputError(
                f"add: vectors have {new.shape[1]} numbers, those of the index {manifest['dim']}; "
                f"embed both with the same encoder"
            )
        look(new, "add")
    base_ids = read_json(place / manifest["ids"])
    gone = set(removed.tolist())
    where = {p: i for i, p in enumerate([*base_ids, *more]) if i not in gone}
    for passage in remove_ids:
        if (position := where.pop(passage, None)) is None:
            raise InputError(f"{place}: passage '{passage}' is not in the index")
        gone.add(position)
    for passage in add_ids:
        if passage in where:
            raise InputError(
                f"{place}: passage '{passage}' is in the index already; remove it in the same call "
                f"to replace it"
            )
        where[passage] = -1
    ids = [*more, *add_ids]
    _write_change(place, manifest, Rows([*added.parts, *new.parts]), ids, sorted(gone))
    share = (len(ids) + len(gone)) / manifest["count"]
    done = f"{len(add_ids):,} passages added, {len(remove_ids):,} removed"
    if share <= rebuild_at:
        return f"{done}; changes are {100 * share:.1f} % of the index"
    index = load_index(place, encoder)
    if (rows := index.rows()) is None:
        return (
            f"{done}; changes are {100 * share:.1f} % of an index that keeps no float32 vectors: "
            f"build it again"
        )
    names = {f.name for f in dataclasses.fields(IndexConfig)}
    config = IndexConfig(**{k: v for k, v in (index.config or {}).items() if k in names})
    left = changed_ids(place, read_manifest(place), base_ids)
    again = build_index(rows, config, queries)
    again.save(place, left, encoder, overwrite=True)
    return f"{done}; built again: {again.description}"


def _write_change(
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
