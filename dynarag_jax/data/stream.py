"""The objects of a file, one after the other, in memory that one record bounds.

Read are JSONL, a JSON array, a JSON document whose field ``data`` is an array (SQuAD, TriviaQA),
objects one after the other over several lines, tables with tabs and a line of names, and Parquet;
all but Parquet plain, gzip (``.gz``) or zstd (``.zst``). The shape is read off the content.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.files import (
    LONGEST_LINE,
    PathLike,
    finite,
    open_bytes,
    parse_object,
    read_lines,
    refuse_constant,
    require_file,
)

Row = tuple[int, "dict[str, Any] | InputError"]
"""A record's line (or row) from 1, and the record or what is wrong with it."""

CONTAINERS = ("data", "Data")
"""Fields of a whole document that hold its records."""

_SPACE = re.compile(r"[ \t\r\n]*")
_HEAD = 1 << 20
_DECODER = json.JSONDecoder(parse_constant=refuse_constant, parse_float=finite)


def read_rows(path: PathLike) -> Iterator[Row]:
    """Yield each record of a file with its line number; a record that is wrong as an InputError.

    Raises:
      InputError: the file is missing, damaged, or of none of the shapes this module reads.
      MissingExtra: Parquet or zstd without the package that reads it.
    """
    path = require_file(path)
    head = _head(path)
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        kind, name = ("gzip", ".gz") if head[0] == 0x1F else ("zstd", ".zst")
        raise InputError(f"{path}: holds {kind} data; give it a name that ends in '{name}'")
    text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace").lstrip()
    first = text.split("\n", 1)[0].rstrip()
    if text.startswith("["):
        return _array(path)
    if text.startswith("{"):
        if container := _container(text):
            return _document(path, container)
        return _values(path) if first == "{" else _lines(path)
    if "\t" in first and all(name.isidentifier() for name in first.split("\t")):
        return _table(path)
    return _lines(path)


def _head(path: Path) -> bytes:
    try:
        with open_bytes(path) as stream:
            # A document that ends early is noticed when it is read.
            return stream.read(_HEAD)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}:1: broken packed data ({error})") from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":
            raise InputError(f"{path}:1: broken zstd data ({error})") from None
        raise


def _lines(path: Path) -> Iterator[Row]:
    for number, raw in read_lines(path):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if line.strip():
            yield number, _or_error(line, f"{path}:{number}")


def _or_error(line: bytes, where: str) -> dict[str, Any] | InputError:
    try:
        return parse_object(line, where)
    except InputError as error:
        return error


def _table(path: Path) -> Iterator[Row]:
    names: list[str] = []
    rows = csv.reader(_decoded(path), delimiter="\t")
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: not a table with tabs ({error})") from None
        if row is None:
            return
        number = rows.line_num
        if not names:
            names = row
            if len(set(names)) != len(names):
                raise InputError(f"{path}:{number}: a column's name stands there twice")
        elif len(row) == len(names):
            yield number, dict(zip(names, row, strict=True))
        elif row:
            wrong = f"{path}:{number}: {len(row)} columns, and the first line names {len(names)}"
            yield number, InputError(wrong)


def _decoded(path: Path) -> Iterator[str]:
    for number, raw in read_lines(path):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason})") from None


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "reading Parquet") from None
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield number, parse_object(json.dumps(row).encode(), f"{path}:{number}")
                except (TypeError, UnicodeError) as error:
                    wrong = f"{path}:{number}: holds what is no JSON value ({error})"
                    yield number, InputError(wrong)
                except InputError as error:
                    yield number, error
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise InputError(f"{path}: broken Parquet after row {number} ({error})") from None


# ---------------------------------------------------------------------------- JSON documents


def _container(head: str) -> str:
    """The field that holds a document's records, if its beginning shows one."""
    at = _SPACE.match(head, 1).end()  # type: ignore[union-attr]
    while head.startswith('"', at):
        try:
            key, at = _DECODER.raw_decode(head, at)
            at = _SPACE.match(head, at).end()  # type: ignore[union-attr]
            if not head.startswith(":", at):
                return ""
            at = _SPACE.match(head, at + 1).end()  # type: ignore[union-attr]
            if key in CONTAINERS and re.compile(r"\[\s*[{\]]").match(head, at):
                return key
            _, at = _DECODER.raw_decode(head, at)
        except (ValueError, RecursionError):
            return ""
        at = _SPACE.match(head, at).end()  # type: ignore[union-attr]
        if not head.startswith(",", at):
            return ""
        at = _SPACE.match(head, at + 1).end()  # type: ignore[union-attr]
    return ""


class _Scanner:
    """JSON values out of a stream of text, of which one value at a time is held."""

    def __init__(self, path: Path, stream: IO[bytes]):
        self.path, self._stream = path, stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def where(self) -> str:
        return f"{self.path}:{self._line}"

    @property
    def line(self) -> int:
        return self._line

    def _more(self) -> None:
        size = max(1 << 16, len(self._text) - self._at)
        try:
            raw = self._stream.read(size)
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where()}: not UTF-8 text ({error.reason})") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{self.where()}: broken packed data ({error})") from None
        except Exception as error:
            if type(error).__name__ == "ZstdError":
                raise InputError(f"{self.where()}: broken zstd data ({error})") from None
            raise
        if self._line == 1 and not self._at and not self._text:
            text = text.removeprefix("\ufeff")
        self._ended = not raw
        self._text, self._at = self._text[self._at :] + text, 0

    def _move(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self._move(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, wanted: str) -> str:
        """Take one character, which must be one of ``wanted``."""
        found = self.peek()
        if not found or found not in wanted:
            shown = " or ".join(f"'{c}'" for c in wanted)
            raise InputError(
                f"{self.where()}: not valid JSON: expected {shown}, found "
                f"{repr(found) if found else 'the end of the file'}"
            )
        self._move(self._at + 1)
        return found

    def value(self) -> Any:
        """Take one value."""
        self.peek()
        where = self.where()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # What is cut off fails at the end of the text, or where a string began.
                cut = error.msg.startswith("Unterminated string")
                cut |= error.pos > len(self._text) - 64
                if self._ended or not cut:
                    raise InputError(f"{where}: not valid JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not valid JSON ({error})") from None
            else:
                # A number at the very end of what was read may go on.
                if end < len(self._text) or self._ended:
                    break
            if len(self._text) - self._at > LONGEST_LINE:
                raise InputError(f"{where}: a record of more than {LONGEST_LINE >> 20} MiB")
            self._more()
        if "\\u" in self._text[self._at : end]:
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                wrong = f"{where}: holds half of a surrogate pair (\\ud800 and such)"
                raise InputError(wrong) from None
            except RecursionError as error:
                raise InputError(f"{where}: not valid JSON ({error})") from None
        self._move(end)
        return value

    def record(self) -> Row:
        """Take one value that should be an object."""
        self.peek()
        where, line, value = self.where(), self._line, self.value()
        if isinstance(value, dict):
            return line, value
        return line, InputError(f"{where}: expected a JSON object, found {type(value).__name__}")

    def elements(self) -> Iterator[Row]:
        """Take an array, record by record."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.record()
            if self.take(",]") == "]":
                return

    def end(self) -> None:
        if found := self.peek():
            raise InputError(f"{self.where()}: {found!r} after the end of the JSON document")


def _array(path: Path) -> Iterator[Row]:
    with open_bytes(path) as stream:
        scanner = _Scanner(path, stream)
        yield from scanner.elements()
        scanner.end()


def _values(path: Path) -> Iterator[Row]:
    with open_bytes(path) as stream:
        scanner = _Scanner(path, stream)
        while scanner.peek():
            yield scanner.record()


def _document(path: Path, container: str) -> Iterator[Row]:
    with open_bytes(path) as stream:
        scanner = _Scanner(path, stream)
        scanner.take("{")
        while True:
            key = scanner.value()
            if not isinstance(key, str):
                raise InputError(f"{scanner.where()}: not valid JSON: a field without a name")
            scanner.take(":")
            if key == container:
                yield from scanner.elements()
            else:
                scanner.value()
            if scanner.take(",}") == "}":
                break
        scanner.end()
