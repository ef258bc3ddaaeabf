"""The records of a file, one after the other, in memory that one record bounds.

Read are JSONL, a JSON array, a JSON document whose field ``data`` is an array (SQuAD, TriviaQA),
objects one after the other over several lines, tables with tabs, commas or semicolons, and Parquet;
all but Parquet plain, gzip or zstd. The shape is read off the content, never off the name.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dynarag_jax.delimited import Quotes, known_table, read_table
from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.files import (
    UTF8_BOM,
    PathLike,
    naming_damage,
    open_bytes,
    parse_object,
    read_lines,
    require_file,
)
from dynarag_jax.json_stream import Row, container, read_array, read_document, read_values

__all__ = ["Row", "is_parquet", "parquet_columns", "read_parquet", "read_rows", "shape"]

_HEAD = 1 << 20


def shape(path: PathLike, columns: Sequence[str] = ()) -> str:
    """How a file lies on the disk: ``parquet``, ``table``, ``array``, ``document FIELD``,
    ``values`` (objects over several lines) or ``lines``.

    Args:
      columns: names of the columns of a table without a header line.
    """
    path = require_file(path)
    if is_parquet(path):
        return "parquet"
    with naming_damage(path, lambda: 1), open_bytes(path) as stream:
        # A document that ends early is noticed when it is read.
        head = stream.read(_HEAD)
    text = head.removeprefix(UTF8_BOM).decode("utf-8", "replace").lstrip()
    first = text.split("\n", 1)[0].rstrip("\r\n")
    if columns:
        return "table"
    if text.startswith("["):
        return "array"
    if text.startswith("{"):
        if field := container(text):
            return f"document {field}"
        return "values" if first == "{" else "lines"
    return "table" if known_table(first) else "lines"


def read_rows(
    path: PathLike, columns: Sequence[str] = (), quotes: Quotes = "auto"
) -> Iterator[Row]:
    """Yield each record of a file with its line number; a record that is wrong as an InputError.

    Args:
      columns: names of the columns of a table without a header line.
      quotes: of a table, see ``delimited.Quotes``.

    Raises:
      InputError: the file is missing, damaged, or of none of the shapes this module reads.
      MissingExtra: Parquet or zstd without the package that reads it.
    """
    path = require_file(path)
    kind = shape(path, columns)
    if kind == "parquet":
        return read_parquet(path)
    if kind == "table":
        return read_table(path, columns, quotes)
    if kind == "array":
        return read_array(path)
    if kind.startswith("document"):
        return read_document(path, kind.split()[1])
    return read_values(path) if kind == "values" else _lines(path)


def _lines(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        if line.strip():
            yield number, _or_error(line, f"{path}:{number}")


def _or_error(line: bytes, where: str) -> dict[str, Any] | InputError:
    try:
        return parse_object(line, where)
    except InputError as error:
        return error


# ---------------------------------------------------------------------------- Parquet


def is_parquet(path: PathLike) -> bool:
    """Whether a file begins as Parquet does."""
    with Path(path).open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "reading Parquet") from None
    return pyarrow.parquet


def parquet_columns(path: PathLike) -> list[str]:
    """The names of a Parquet file's columns."""
    parquet = _parquet()
    import pyarrow

    try:
        return list(parquet.ParquetFile(path).schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, 0, error) from None


def read_parquet(path: PathLike, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a Parquet file as JSON objects.

    Dates, decimals and UUIDs become text, and numbers that are none (pandas' NaN for what is
    missing) become null. Bytes that are not UTF-8 are left out: JSON has nothing for them.

    Args:
      columns: those to read; None reads all.
    """
    parquet = _parquet()
    import pyarrow

    number = 0
    try:
        batches = parquet.ParquetFile(path).iter_batches(
            batch_size=1024 if columns else 64, columns=columns
        )
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield number, {name: _json(value) for name, value in row.items()}
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise _unreadable(path, number, error) from None


def _unreadable(path: PathLike, number: int, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:160]
    behind = f" after row {number}" if number else ""
    return InputError(f"{path}: not a readable Parquet file{behind} ({reason})")


def _json(value: Any) -> Any:
    """A value of Arrow as JSON has it; None where JSON has nothing for it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, tuple):  # an entry of a map column
        return [_json(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID | datetime.timedelta):
        return str(value)
    return None
