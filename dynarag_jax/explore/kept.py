"""Columns kept beside a run, so that its files are read once: RUN/.explore/.

Kept columns count for a file of exactly this size and time of change; any other is read again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.data.formats import detect
from dynarag_jax.data.reading import read_valid_questions
from dynarag_jax.errors import InputError
from dynarag_jax.explore.columns import Columns, read_columns
from dynarag_jax.files import GZIP, UTF8_BOM, ZSTD, atomic_write, fingerprint
from dynarag_jax.records import write_questions

VERSION = 1
"""Of what is kept; columns of another version are made again."""

Stamp = tuple[int, int]


def stamp(path: Path) -> Stamp | None:
    """Size and time of change of a file, in nanoseconds; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class KeptColumns:
    """The columns of files, read once and kept.

    Attributes:
      writable: whether they can be kept; else each start reads the files again.
    """

    def __init__(self, place: Path):
        self.place = place
        self._held: dict[tuple[Path, str], tuple[Stamp, Columns, Path]] = {}
        self.writable = True
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / ".writable").touch()
        except OSError:
            self.writable = False

    def get(
        self, path: Path, kind: str, heard: Callable[[int], None] = lambda size: None
    ) -> tuple[Columns, Path]:
        """The columns of a file, and the file that their places are of.

        Questions in another format than ours, or packed, are written once as a file of ours.

        Raises:
          InputError: the file is gone or cannot be read.
        """
        now = stamp(path)
        if now is None:
            raise InputError(f"{path}: no such file")
        held = self._held.get((path, kind))
        if held and held[0] == now:
            heard(now[0])
            return held[1], held[2]
        name = fingerprint([str(path.absolute()), kind])
        kept = self.place / f"{name}.npz"
        of = self.place / f"{name}.jsonl" if kind == "questions" and not _plain(path) else path
        found = self._load(kept, now) if of == path or of.is_file() else None
        if found is None:
            found = self._foreign(path, of) if of != path else read_columns(path, kind, heard)
            if self.writable:
                with contextlib.suppress(OSError):
                    _save(kept, now, found)
        else:
            heard(now[0])
        self._held[path, kind] = now, found, of
        return found, of

    def _foreign(self, path: Path, into: Path) -> Columns:
        if not self.writable:
            raise InputError(
                f"{path}: is packed or of another format, and a plain copy of it would go to "
                f"{self.place}, which cannot be written; make the run's directory writable"
            )
        questions, wrong = read_valid_questions(path)
        write_questions(into, questions)
        found = read_columns(into, "questions")
        found.unread, found.wrong = len(wrong), [text for _, text in wrong[:5]]
        found.sha256 = ""  # of the copy, which nobody recorded
        return found

    def _load(self, kept: Path, now: Stamp) -> Columns | None:
        try:
            with np.load(kept, allow_pickle=False) as arrays:
                about = json.loads(bytes(arrays["about"]))
                if about["version"] != VERSION or tuple(about["stamp"]) != now:
                    return None
                strings = {
                    name: _unpack(arrays[f"text {name}"], arrays[f"ends {name}"])
                    for name in about["strings"]
                }
                return Columns(
                    about["kind"],
                    {name: arrays[f"array {name}"] for name in about["arrays"]},
                    strings, about["names"], about["wrong"], about["unread"],
                    about["unfinished"], about["sha256"],
                )  # fmt: skip
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # not there, cut off, or of an older version: it is made again


def _save(kept: Path, now: Stamp, found: Columns) -> None:
    about: dict[str, Any] = {
        name: getattr(found, name)
        for name in ("kind", "names", "wrong", "unread", "unfinished", "sha256")
    }
    about |= {"version": VERSION, "stamp": now}
    about |= {"arrays": list(found.arrays), "strings": list(found.strings)}
    arrays: dict[str, Any] = {f"array {name}": values for name, values in found.arrays.items()}
    for name, values in found.strings.items():
        raw = [value.encode() for value in values]
        arrays[f"text {name}"] = np.frombuffer(b"".join(raw), np.uint8)
        arrays[f"ends {name}"] = np.cumsum([len(one) for one in raw], dtype=np.int64)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with atomic_write(kept, "wb") as stream:
        np.savez(stream, **arrays)


def _unpack(text: np.ndarray, ends: np.ndarray) -> list[str]:
    raw, starts = text.tobytes(), [0, *ends.tolist()]
    return [raw[a:b].decode() for a, b in itertools.pairwise(starts)]


def _plain(path: Path) -> bool:
    """Whether a file is JSON lines of our own records, readable from any place in it."""
    with path.open("rb") as stream:
        first = stream.read(4)
    if not first or first.startswith((GZIP, ZSTD, UTF8_BOM)):
        return not first
    return first[:1] == b"{" and detect(path).name == "records" and _one_line(path)


def _one_line(path: Path) -> bool:
    """Whether the first record takes one line, as in JSONL."""
    with path.open("rb") as stream:
        try:
            json.loads(stream.readline())
        except ValueError:
            return False
    return True
