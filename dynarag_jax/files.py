"""Files that are read and written: JSON, JSONL that is appended to, packed files, fingerprints."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from dynarag_jax.atomic import atomic_write
from dynarag_jax.errors import InputError, MissingExtra

PathLike = str | os.PathLike[str]


def require_file(path: PathLike, what: str = "file") -> Path:
    """Return ``path`` as a Path, or raise InputError if it is not an existing regular file."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected a {what}, found a directory")
    if not path.is_file():
        raise InputError(f"{path}: no such {what}")
    return path


LONGEST_LINE = 1 << 26
"""Bytes of the longest line that is read: a file without line ends must not fill the memory."""


GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""How packed data begin, whatever the file's name says."""
UTF8_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")


def open_bytes(path: PathLike) -> IO[bytes]:
    """A file for reading, unpacked on the way if it holds gzip or zstd data.

    What it holds is seen from its first bytes, since downloads and tools rename files; the name
    tells only of an empty file whether it should have been packed.

    Raises:
      MissingExtra: the file is packed by zstd, and the package zstandard is absent.
    """
    path = Path(path)
    with path.open("rb") as stream:
        first = stream.read(4)
    if first.startswith(GZIP) or (not first and path.suffix == ".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if first == ZSTD or (not first and path.suffix == ".zst"):
        return io.BufferedReader(_ZstdFile(path), 1 << 20)
    return path.open("rb")


@contextlib.contextmanager
def naming_damage(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Turn what broken packed data raise into an InputError that names file and line."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}:{line()}: broken packed data ({error})") from None
    except Exception as error:
        # The package is imported only where a file needs it.
        if type(error).__name__ == "ZstdError":
            raise InputError(f"{path}:{line()}: broken zstd data ({error})") from None
        raise


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstandard", "data", "reading .zst files") from None
    return zstandard


class _ZstdFile(io.RawIOBase):
    """The content of a zstd file. Unlike the package's own reader it notices a file cut short."""

    def __init__(self, path: Path):
        self._new = _zstandard().ZstdDecompressor().decompressobj
        self._frame, self._ready = self._new(), memoryview(b"")
        self._file = path.open("rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame.eof else b""
            packed = packed or self._file.read(1 << 14)
            if not packed:
                if not self._frame.eof:
                    raise EOFError("the file ends within a frame")
                return 0
            if self._frame.eof:
                self._frame = self._new()
            self._ready = memoryview(self._frame.decompress(packed))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def read_lines(path: PathLike) -> Iterator[tuple[int, bytes]]:
    """Yield ``(line number, line)`` of a plain, gzip or zstd file, in little memory.

    Line numbers start at 1; a line keeps its end, and the first loses a UTF-8 byte order mark.

    Raises:
      InputError: the file is missing, its packed data are broken or cut off, it is UTF-16, or a
        line is longer than ``LONGEST_LINE`` bytes.
    """
    path = require_file(path)
    number = 0
    with naming_damage(path, lambda: number + 1), open_bytes(path) as lines:
        while line := lines.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(
                    f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; files "
                    f"of one record a line are read here"
                )
            if number == 1:
                if line.startswith(_WIDE_BOMS):
                    raise InputError(f"{path}:1: is UTF-16 text; save it as UTF-8")
                line = line.removeprefix(UTF8_BOM)
            yield number, line


def refuse_constant(name: str) -> Any:
    """For json's ``parse_constant``: NaN and Infinity are no JSON."""
    raise ValueError(f"{name} is no JSON number")


def finite(text: str) -> float:
    """For json's ``parse_float``: a number beyond every float, 1e999, would be read as infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.20} is beyond the largest number")
    return value


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """One line of JSONL, strictly: what is read here can also be written again."""
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8")
        value = json.loads(text, parse_constant=refuse_constant, parse_float=finite)
        # A lone surrogate is fine as an escape, but is no text that a file can hold.
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text ({error.reason})") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: holds half of a surrogate pair (\\ud800 and such)") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON at column {error.colno} ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_jsonl(path: PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` for each line of a JSONL file, plain, gzip or zstd.

    Line numbers start at 1. Lines of white space only are skipped.

    Raises:
      InputError: the file is missing, is not UTF-8, or a line is not a JSON object.
    """
    for number, raw in read_lines(path):
        if raw.strip():
            yield number, parse_object(raw, f"{path}:{number}")


def dump_line(record: Mapping[str, Any]) -> str:
    """One JSONL line, newline included. NaN and infinity are refused, since JSON has neither."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def output_stem(name: str) -> str:
    """Under which name a question file's results are written: ``q`` of ``q.jsonl`` or its .gz."""
    path = Path(name)
    return Path(path.stem).stem if path.suffix in (".gz", ".zst") else path.stem


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_write(path) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2, allow_nan=False)
        stream.write("\n")


def read_json(path: PathLike) -> Any:
    """Read one JSON document; InputError if the file is missing or is not JSON."""
    path = require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


def write_jsonl(path: PathLike, records: Iterator[Mapping[str, Any]] | list[Any]) -> int:
    """Write all records atomically, one a line; return how many."""
    count = 0
    with atomic_write(path) as stream:
        for record in records:
            stream.write(dump_line(record))
            count += 1
    return count


class JsonlAppender:
    """A JSONL file that grows by whole lines and can be continued after a kill.

    Opening it cuts off an unfinished last line (the trace of a kill in mid-write); ``repaired`` is
    then the number of bytes removed. ``done`` holds the keys of the records that stand.

    Raises:
      InputError: a whole line of the file is no record with that key.
    """

    def __init__(self, path: PathLike, key: str | Callable[[dict[str, Any]], str] = "id"):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.repaired = self._cut_unfinished_line()
        get = key if callable(key) else (lambda record: record[key])
        self.done: set[str] = set()
        if self.path.exists():
            for number, record in read_jsonl(self.path):
                try:
                    self.done.add(get(record))
                except (KeyError, TypeError) as error:
                    raise InputError(
                        f"{self.path}:{number}: no usable key in this record ({error}); remove the "
                        f"line, or the file to start afresh"
                    ) from None
        self._stream = self.path.open("a", encoding="utf-8")

    def _cut_unfinished_line(self) -> int:
        if not self.path.exists():
            return 0
        with self.path.open("rb+") as stream:
            size = stream.seek(0, os.SEEK_END)
            end, block = size, 1 << 16
            while end > 0:
                start = max(0, end - block)
                stream.seek(start)
                newline = stream.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                stream.truncate(end)
            return size - end

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line and hand it to the operating system at once."""
        self._stream.write(dump_line(record))
        self._stream.flush()

    def close(self) -> None:
        """Flush to the disk and close."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sha256_file(path: PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON-serializable value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
