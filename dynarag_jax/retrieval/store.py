"""Passages on disk with random access: 21 million of them need no memory but their offsets.

directory/
  passages.jsonl   {"id", "title", "text"} a line, in the corpus' order; "empty" marks those
                   without text
  offsets.npy      int64 [n + 1], where each line begins
  ids.npy          uint64 [2, n], hashes of the ids in ascending order, and their rows
  store.json       count, what was read and left out, and a checksum
"""

from __future__ import annotations

import hashlib
import json
import mmap
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, dump_line, parse_object, read_json, require_file, write_json
from dynarag_jax.records import Passage, passage_from_json, passage_to_json
from dynarag_jax.retrieval.corpora import CorpusAccount

_PASSAGES, _OFFSETS, _IDS = "passages.jsonl", "offsets.npy", "ids.npy"
_MANIFEST = "store.json"


class Store(Sequence[Passage]):
    """The passages of a store, read from disk as they are asked for.

    Attributes:
      fingerprint: SHA-256 over all passages in order.
      manifest: what store.json says.
    """

    def __init__(self, directory: PathLike):
        self.directory = Path(directory)
        if not (self.directory / _MANIFEST).is_file():
            raise InputError(f"{self.directory}: holds no passages (no {_MANIFEST})")
        self.manifest: dict[str, Any] = read_json(self.directory / _MANIFEST)
        self.fingerprint = str(self.manifest.get("sha256", ""))
        path = require_file(self.directory / _PASSAGES)
        try:
            self._offsets = np.load(require_file(self.directory / _OFFSETS), mmap_mode="r")
            self._ids = np.load(require_file(self.directory / _IDS), mmap_mode="r")
            whole = int(self._offsets[-1]) == path.stat().st_size
            whole &= self._ids.shape == (2, len(self._offsets) - 1)
        except (ValueError, EOFError, IndexError):
            whole = False
        if not whole or len(self._offsets) != self.manifest.get("count", -1) + 1:
            raise InputError(f"{path}: cut short or changed since it was made; make it again")
        self._file = path.open("rb")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(index)
        where = f"{self.directory / _PASSAGES}:{row + 1}"
        raw = self._map[int(self._offsets[row]) : int(self._offsets[row + 1])]
        return passage_from_json(parse_object(raw, where), where)

    def __iter__(self) -> Iterator[Passage]:
        return (self[i] for i in range(len(self)))

    def ids(self) -> Iterator[str]:
        """The passages' ids, in order."""
        return (passage.id for passage in self)

    def row(self, name: str) -> int | None:
        """The row of the passage with this id; None where there is none."""
        hashed = np.uint64(_hash(name))
        place = int(np.searchsorted(self._ids[0], hashed))
        while place < len(self) and self._ids[0][place] == hashed:
            row = int(self._ids[1][place])
            if self[row].id == name:
                return row
            place += 1
        return None


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def write_store(directory: PathLike, passages: Iterable[Passage], account: CorpusAccount) -> Store:
    """Write passages to a new directory, which appears only when it is whole.

    Args:
      account: what reading them found; it is kept in store.json.

    Raises:
      InputError: an id repeats, there are no passages, or ``directory`` exists.
    """
    offsets, hashes = array("q", [0]), array("Q")
    digest = hashlib.sha256()
    with atomic_directory(directory) as place:
        with (place / _PASSAGES).open("wb") as stream:
            for passage in passages:
                mark = {} if passage.text.strip() else {"empty": True}
                line = dump_line(passage_to_json(passage) | mark).encode()
                stream.write(line)
                digest.update(line)
                offsets.append(offsets[-1] + len(line))
                hashes.append(_hash(passage.id))
        if not hashes:
            raise InputError(f"{', '.join(account.formats) or 'corpus'}: holds no passages")
        starts = np.frombuffer(offsets, np.int64)
        names = np.frombuffer(hashes, np.uint64)
        order = np.argsort(names, kind="stable")
        _refuse_repeats(place / _PASSAGES, names, order, starts, account)
        np.save(place / _IDS, np.stack([names[order], order.astype(np.uint64)]))
        np.save(place / _OFFSETS, starts)
        manifest = {
            "count": len(hashes),
            "sha256": digest.hexdigest(),
            "files": {
                name: {"format": kind, "passages": account.counts.get(name, 0)}
                for name, kind in account.formats.items()
            },
            "records": account.records,
            "empty": account.empty,
            "rejected": len(account.rejected),
            "rejects": account.rejected[:100],
        }
        write_json(place / _MANIFEST, manifest)
    return Store(directory)


def _place(row: int, account: CorpusAccount) -> str:
    """Where a passage comes from: its number within its file, from 1."""
    for name, count in account.counts.items():
        if row < count:
            return f"passage {row + 1} of {name}"
        row -= count
    return f"passage {row + 1}"


def _refuse_repeats(
    path: Path, hashes: np.ndarray, order: np.ndarray, offsets: np.ndarray, account: CorpusAccount
) -> None:
    """Find an id that two passages have: those of equal hashes are compared in full."""
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if not equal.size:
        return
    groups: dict[int, set[int]] = {}
    for i in equal:
        groups.setdefault(int(hashes[order[i]]), set()).update((int(order[i]), int(order[i + 1])))
    with path.open("rb") as stream:
        for rows in groups.values():
            seen: dict[str, int] = {}
            for row in sorted(rows):
                stream.seek(int(offsets[row]))
                name = json.loads(stream.read(int(offsets[row + 1] - offsets[row])))["id"]
                if name in seen:
                    raise InputError(
                        f"{_place(row, account)} repeats the id '{name}' of "
                        f"{_place(seen[name], account)}; ids must be unique in a corpus"
                    )
                seen[name] = row
