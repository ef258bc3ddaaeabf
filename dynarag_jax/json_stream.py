"""JSON values out of a stream of text, of which one value at a time is held."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dynarag_jax.errors import InputError
from dynarag_jax.files import (
    LONGEST_LINE,
    finite,
    naming_damage,
    open_bytes,
    refuse_constant,
)

Row = tuple[int, "dict[str, Any] | InputError"]
"""A record's line (or row) from 1, and the record or what is wrong with it."""

CONTAINERS = ("data", "Data")
"""Fields of a whole document that hold its records."""

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_constant=refuse_constant, parse_float=finite)


def container(head: str) -> str:
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


class Scanner:
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
        with naming_damage(self.path, lambda: self._line):
            raw = self._stream.read(size)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where()}: not UTF-8 text ({error.reason})") from None
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
        character = self.peek()
        if not character or character not in wanted:
            shown = " or ".join(f"'{c}'" for c in wanted)
            raise InputError(
                f"{self.where()}: not valid JSON: expected {shown}, found "
                f"{repr(character) if character else 'the end of the file'}"
            )
        self._move(self._at + 1)
        return character

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
        if character := self.peek():
            raise InputError(f"{self.where()}: {character!r} after the end of the JSON document")


def read_array(path: Path) -> Iterator[Row]:
    with open_bytes(path) as stream:
        scanner = Scanner(path, stream)
        yield from scanner.elements()
        scanner.end()


def read_values(path: Path) -> Iterator[Row]:
    with open_bytes(path) as stream:
        scanner = Scanner(path, stream)
        while scanner.peek():
            yield scanner.record()


def read_document(path: Path, field: str) -> Iterator[Row]:
    with open_bytes(path) as stream:
        scanner = Scanner(path, stream)
        scanner.take("{")
        while True:
            key = scanner.value()
            if not isinstance(key, str):
                raise InputError(f"{scanner.where()}: not valid JSON: a field without a name")
            scanner.take(":")
            if key == field:
                yield from scanner.elements()
            else:
                scanner.value()
            if scanner.take(",}") == "}":
                break
        scanner.end()
