"""Tables as text: fields parted by tabs, commas or semicolons, with or without a header line.

Whether quotes are CSV's (a field that begins with one ends with one, and holds tabs, line ends and
doubled quotes) or stand for themselves is decided once for the whole file, before its first record
is handed out: files of both kinds are common, and to guess line by line puts one record's text into
another.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.errors import InputError
from dynarag_jax.files import LONGEST_LINE, PathLike, read_lines
from dynarag_jax.json_stream import Row

Quotes = Literal["auto", "csv", "none"]
"""How quotes are meant: as CSV has them, as characters like others, or seen from the whole file."""

DELIMITERS = ("\t", ",", ";")
KNOWN = frozenset(
    "id _id qid docid doc_id pid psg_id passage_id query_id query-id corpus-id question query text "
    "contents content passage body title answer answers possible_answers golden_answers claim "
    "label score context".split()
)  # fmt: skip
"""Column names of which a header line has at least one; without one it is the first record."""


@dataclass(frozen=True)
class Dialect:
    """How a table is written.

    Attributes:
      delimiter: between fields.
      quoted: quotes are CSV's; else they are characters like others.
      names: of the columns.
      header: the first line holds the names.
    """

    delimiter: str
    quoted: bool
    names: tuple[str, ...]
    header: bool

    def describe(self) -> str:
        """The dialect for logs."""
        parted = {"\t": "tabs", ",": "commas", ";": "semicolons"}[self.delimiter]
        quotes = "quotes as CSV has them" if self.quoted else "quotes as they stand"
        return f"table with {parted}, {quotes}"


def known_table(line: str) -> bool:
    """Whether a line is a table's header: parted, one of the names well known."""
    try:
        return _header(line) is not None
    except InputError:  # a name twice, which is told when the table is read
        return True


def _header(line: str) -> tuple[str, list[str]] | None:
    for delimiter in DELIMITERS:
        if delimiter not in line:
            continue
        try:
            names = next(csv.reader([line], delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            return None
        names = [name.strip() for name in names]
        if all(names) and len(set(names)) == len(names) > 1:
            return (delimiter, names) if KNOWN & {n.lower() for n in names} else None
        if {n.lower() for n in names} & KNOWN and len(set(names)) < len(names):
            raise InputError(f"a column's name stands there twice: {line[:60]!r}")
        return None
    return None


def decide(
    path: PathLike,
    columns: Sequence[str] = (),
    quotes: Quotes = "auto",
    declared: Sequence[Sequence[str]] = (),
) -> Dialect:
    """The dialect of a whole file; it is gone through once.

    CSV's quotes are chosen where they read every line into as many fields as there are columns and
    the text shows them: quotes doubled within a field, a field over several lines, a column quoted
    throughout. Where a field's quote never closes, or text follows a closed one, quotes stand for
    themselves. Where the text shows nothing, tables with commas or semicolons have CSV's, and so do
    those of ``declared`` columns.

    Args:
      columns: names where the file has no header line; a first line that repeats them is one.
      declared: column names, in lower case, of formats that are written as CSV.

    Raises:
      InputError: there is no header line, or both readings are possible and differ; the message
        names the line and how to choose.
    """
    path = Path(path)
    first = next((raw for _, raw in read_lines(path) if raw.strip()), b"")
    try:
        line = first.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:1: not UTF-8 text ({error.reason})") from None
    header = True
    if columns:
        names = list(columns)
        delimiter = next((d for d in DELIMITERS if line.count(d) >= len(names) - 1 > 0), "\t")
        cells = [cell.strip().strip('"').lower() for cell in line.split(delimiter)]
        header = cells == [name.lower() for name in names]
    else:
        try:
            seen = _header(line)
        except InputError as error:
            raise InputError(f"{path}:1: {error}") from None
        if seen is None:
            raise InputError(
                f"{path}:1: no header line that names columns; name them in order with 'columns', "
                f"such as id text title"
            )
        delimiter, names = seen
    if quotes == "auto":
        usual = delimiter != "\t" or [name.lower() for name in names] in [*map(list, declared)]
        quoted = _quoted(path, delimiter, len(names), usual, header)
    else:
        quoted = quotes == "csv"
    return Dialect(delimiter, quoted, tuple(names), header)


def _quoted(path: Path, delimiter: str, width: int, usual: bool, header: bool) -> bool:
    """Whether a file's quotes are CSV's; ``usual`` where nothing shows it and the format says so.

    InputError where nothing shows it, and nothing says so.
    """
    evidence = _Evidence(delimiter, width, header)
    csv.field_size_limit(LONGEST_LINE)
    try:
        for cells in csv.reader(evidence.lines(path), delimiter=delimiter, strict=True):
            evidence.see(_restored(cells))
    except csv.Error:
        return False
    if not evidence.first:
        return False
    if evidence.csv_bad != evidence.literal_bad:
        return evidence.csv_bad < evidence.literal_bad
    if usual or evidence.shown():
        return True
    raise InputError(
        f"{path}:{evidence.first}: a field begins with a quote, and nothing in the file shows "
        f"whether quotes are CSV's or text; say which with quotes csv or quotes none"
    )


class _Evidence:
    """What the lines of a table show of its quotes.

    Attributes:
      first: the first line with a field that begins with a quote; 0 if none has.
      csv_bad, literal_bad: records of another number of fields, by either reading.
    """

    def __init__(self, delimiter: str, width: int, header: bool):
        self._delimiter, self._width, self._header = delimiter, width, header
        self._taken, self._rows, self._special = "", 0, False
        self._whole = [0] * width
        self.first = self.csv_bad = self.literal_bad = 0

    def lines(self, path: Path) -> Iterator[str]:
        """The lines, for a CSV reader."""
        for number, line in _decoded(path):
            bare = line.rstrip("\r\n")
            if not bare:
                continue
            self.literal_bad += bare.count(self._delimiter) != self._width - 1
            if not self.first and (bare.startswith('"') or f'{self._delimiter}"' in bare):
                self.first = number
            self._taken += line
            yield _held(line)

    def see(self, cells: Sequence[str]) -> None:
        """Take a record as CSV has it."""
        text, self._taken = self._taken, ""
        self._rows += 1
        self.csv_bad += len(cells) != self._width
        if '"' not in text or len(cells) != self._width:
            return
        for i, cell in enumerate(cells):
            doubled = cell.replace('"', '""')
            if f'"{doubled}"' in text:
                self._whole[i] += 1
                self._special |= any(c in cell for c in ('"', "\n", "\r", self._delimiter))
        # Names of columns need no quotes: who quotes them quotes everything.
        self._special |= self._header and self._rows == 1

    def shown(self) -> bool:
        """Whether a field needed its quotes, or a column has them in every record."""
        records = self._rows - self._header
        return self._special or (records > 1 and max(self._whole) >= records)


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    for number, raw in read_lines(path):
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason})") from None


# Python before 3.13 writes a carriage return in a field without quotes and then refuses to read it.
# It travels through the CSV reader as a code that Unicode keeps out of texts.
_RETURN = "\ufdd0"


def _held(line: str) -> str:
    end = "\r\n" if line.endswith("\r\n") else "\n" if line.endswith("\n") else ""
    return line.removesuffix(end).replace("\r", _RETURN) + end


def _restored(cells: Sequence[str]) -> list[str]:
    return [cell.replace(_RETURN, "\r") for cell in cells]


class Cells(dict[str, Any]):
    """A row of a table, whose cells are all text: a list is written in one as JSON or Python."""


def read_table(
    path: PathLike,
    columns: Sequence[str] = (),
    quotes: Quotes = "auto",
    declared: Sequence[Sequence[str]] = (),
    told: Callable[[Dialect], object] = lambda dialect: None,
) -> Iterator[Row]:
    """Yield a table's rows by their lines, each a mapping from column to text.

    Args:
      columns, quotes, declared: as of ``decide``.
      told: hears the dialect.
    """
    path = Path(path)
    dialect = decide(path, columns, quotes, declared)
    told(dialect)
    skipped = not dialect.header
    for number, cells in _records(path, dialect):
        if not skipped:
            skipped = True
            continue
        if len(cells) == len(dialect.names):
            yield number, Cells(zip(dialect.names, cells, strict=True))
        else:
            wrong = (
                f"{path}:{number}: has {len(cells)} fields, and there are {len(dialect.names)} "
                f"columns ({', '.join(dialect.names)}); {dialect.describe()}"
            )
            yield number, InputError(wrong)


def _records(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    if not dialect.quoted:
        for number, line in _decoded(path):
            if bare := line.rstrip("\r\n"):
                yield number, bare.split(dialect.delimiter)
        return
    csv.field_size_limit(LONGEST_LINE)
    begun = [1]

    def lines() -> Iterator[str]:
        for number, line in _decoded(path):
            begun.append(number)
            yield _held(line)

    reader = csv.reader(lines(), delimiter=dialect.delimiter, strict=True)
    while True:
        del begun[:]
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}:{begun[0] if begun else 1}: quotes that are not CSV's ({error}); quotes "
                f"none takes them as they stand"
            ) from None
        if cells is None:
            return
        if cells:
            yield begun[0], _restored(cells)


def listed(text: str) -> list[str] | None:
    """The list of texts in a cell, as JSON or Python writes it (``['a']``); None if it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return None
