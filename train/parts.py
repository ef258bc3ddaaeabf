"""Records that several processes append, each to a file of its own, until one joins them.

A process appends to NAME.part-0.jsonl and so on; in the end the parts become NAME.jsonl, in a given
order of ids. What stands in the parts is not made again, in however many processes it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dynarag_jax.files import atomic_write, parse_object, read_jsonl


def part(directory: Path, kind: str, team: int) -> Path:
    """The file that a team of processes appends to."""
    return directory / f"{kind}.part-{team}.jsonl"


def parts(directory: Path, kind: str) -> list[Path]:
    """All that stands of a kind: the merged file of an earlier end, and parts."""
    whole = directory / f"{kind}.jsonl"
    return [*([whole] if whole.exists() else []), *sorted(directory.glob(f"{kind}.part-*.jsonl"))]


def ids_of(paths: Iterable[Path]) -> set[str]:
    """The ids of the records that stand."""
    return {str(record["id"]) for path in paths for _, record in read_jsonl(path)}


def merge(directory: Path, kind: str, order: Sequence[str], always: bool = True) -> int:
    """Make one file of all parts, in the given order of ids; return how many records it holds.

    Lines are copied as they are, and only their places are held in memory. Records of other ids
    are left out, and of several with one id all but the first.

    Args:
      always: write the file even if there is no record.
    """
    standing = parts(directory, kind)
    places: dict[str, tuple[int, int, int]] = {}
    for file, path in enumerate(standing):
        with path.open("rb") as stream:
            start = 0
            for number, line in enumerate(stream, 1):
                name = str(parse_object(line, f"{path}:{number}")["id"])
                places.setdefault(name, (file, start, len(line)))
                start += len(line)
    whole = directory / f"{kind}.jsonl"
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
