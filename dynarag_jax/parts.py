"""JSONL files that processes append to together, each to a part of its own, and go on after a kill.

A team of processes appends to NAME.part-0.jsonl and so on; in the end the parts become NAME.jsonl,
in a given order. What stands in the parts is not made again, in however many processes it goes on.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from dynarag_jax.atomic import atomic_write
from dynarag_jax.errors import InputError
from dynarag_jax.files import JsonlAppender, PathLike, parse_object, read_jsonl
from dynarag_jax.processes import ProcessTeam, once, wait

Key = Callable[[Mapping[str, Any]], str]


def by_id(record: Mapping[str, Any]) -> str:
    """The key of a record that stands for a question."""
    return str(record["id"])


def by_system(record: Mapping[str, Any]) -> str:
    """The key of a record of what one system made of a question."""
    return f"{record['system']}/{record['id']}"


def part(directory: Path, kind: str, team: int) -> Path:
    """The file that a team of processes appends to."""
    return directory / f"{kind}.part-{team}.jsonl"


def parts(directory: Path, kind: str) -> list[Path]:
    """All that stands of a kind: the merged file of an earlier end, and parts."""
    whole = directory / f"{kind}.jsonl"
    found = sorted(directory.glob(f"{glob.escape(kind)}.part-*.jsonl"))
    return [*([whole] if whole.exists() else []), *found]


def keys_of(paths: Iterable[Path], key: Key = by_id) -> set[str]:
    """The keys of the records that stand."""
    return {key(record) for path in paths for _, record in read_jsonl(path)}


def merge(
    directory: Path,
    kind: str,
    order: Iterable[str],
    always: bool = True,
    key: Key = by_id,
    expected: int = 0,
) -> int:
    """Make one file of all parts, in the given order of keys; return how many records there are.

    Lines are copied as they are, and only their places are held in memory. Records of other keys
    are left out, and of several with one key all but the first.

    Args:
      always: write the file even if there is no record.
      expected: how many records there are at least.

    Raises:
      InputError: there are fewer; nothing is changed.
    """
    standing = parts(directory, kind)
    places: dict[str, tuple[int, int, int]] = {}
    for file, path in enumerate(standing):
        with path.open("rb") as stream:
            start = 0
            for number, line in enumerate(stream, 1):
                name = key(parse_object(line, f"{path}:{number}"))
                places.setdefault(name, (file, start, len(line)))
                start += len(line)
    whole = directory / f"{kind}.jsonl"
    if len(places) < expected:
        raise InputError(
            f"{whole}: of {expected} records that the processes wrote {len(places)} can be seen "
            f"in process 0; {directory} must be on a file system that all of them share. Run "
            f"again to continue"
        )
    if places or always:
        streams = [path.open("rb") for path in standing]
        try:
            with atomic_write(whole, "wb") as out:
                for name in dict.fromkeys(order):
                    if name in places:
                        file, start, length = places[name]
                        streams[file].seek(start)
                        out.write(streams[file].read(length))
        finally:
            for stream in streams:
                stream.close()
    for path in standing:
        if path != whole:
            path.unlink()
    return len(places)


class SharedRows:
    """A file in parts, as one of the processes that append to it; all of them open and finish it.

    Attributes:
      path: the file that comes of it.
      done: keys of the records that stood when it was opened, whoever wrote them.
      repaired: bytes of unfinished last lines, the trace of a kill, that were removed.

    Args:
      team: who appends: the leader of each team.
      key: what a record is known by.
      afresh: forget what stands.

    Raises:
      InputError, OSError: in every process, where a record has no key or a file cannot be written.
    """

    def __init__(self, path: PathLike, team: ProcessTeam, key: Key = by_id, afresh: bool = False):
        self.path = Path(path)
        self._team, self._key, self._added = team, key, 0
        directory, kind = self.path.parent, self.path.stem
        self.repaired = once(lambda: self._mend(afresh)) or 0
        # Read by all before anybody appends.
        self.done = keys_of(parts(directory, kind), key)
        wait(f"{kind} is read")
        own = part(directory, kind, team.index)
        self._rows = JsonlAppender(own, key) if team.leader else None

    def _mend(self, afresh: bool) -> int:
        """Cut off unfinished last lines, before anybody reads."""
        repaired = 0
        for path in parts(self.path.parent, self.path.stem):
            if afresh:
                path.unlink()
            else:
                with JsonlAppender(path, self._key) as rows:
                    repaired += rows.repaired
        return repaired

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record, once a team."""
        if self._rows is not None:
            self._rows.append(record)
        self._added += 1

    def close(self) -> None:
        """Flush this process's part to the disk and close it."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def finish(self, order: Iterable[str], always: bool = True) -> int:
        """Make one file of the parts; every process calls it. Returns how many records there are.

        Args:
          order: of the keys; records of others are left out.
          always: write the file even if there is no record.

        Raises:
          InputError: what a process has written cannot be seen here.
        """
        self.close()
        (added,) = self._team.sum([self._added])
        directory, kind, expected = self.path.parent, self.path.stem, len(self.done) + added
        once(lambda: merge(directory, kind, order, always, self._key, expected))
        return expected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
