"""Judgments of relevance: TREC's and BEIR's qrels, as text, JSON or Parquet.

| layout | a record |
|---|---|
| TREC | ``qid 0 docid relevance``, parted by tabs throughout or by white space throughout |
| BEIR | ``query-id <tab> corpus-id <tab> score`` below that header, quoted as CSV is |
| JSONL, JSON, Parquet | fields of these names (MTEB and BEIR on the hub) |

Which of them a file is, and what parts its fields, is seen once and holds for all its lines, so
that an id with a space is never cut in two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynarag_jax.delimited import read_table
from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_lines
from dynarag_jax.rows import Row, read_rows, shape

QUESTIONS = ("query-id", "query_id", "qid", "topic", "topic_id", "question_id", "query")
PASSAGES = ("corpus-id", "corpus_id", "docid", "doc_id", "docno", "pid", "passage_id")
GRADES = ("score", "relevance", "rel", "label", "grade", "judgment")
BEIR = ("query-id", "corpus-id", "score")
"""The header that BEIR writes; such files are CSV with tabs."""

_ITERATION = re.compile(r"Q0|-?[0-9]+", re.IGNORECASE)
_TREC = "a judgment is 'qid 0 docid relevance', or 'qid docid relevance' as BEIR has it"


def read_qrels(path: PathLike) -> dict[str, dict[str, float]]:
    """Read judgments of any layout.

    Returns:
      For each question id the relevance of passages, by passage id.

    Raises:
      InputError: a record is no judgment, or judges a passage a second time otherwise; the message
        names file, line and value.
    """
    path = Path(path)
    kind = shape(path)
    first = (
        next((raw for _, raw in read_lines(path) if raw.strip()), b"{")
        if kind != "parquet"
        else b""
    )
    if kind == "lines" and not first.lstrip().startswith(b"{"):
        judged = _text(path)
    else:
        rows = read_table(path, declared=[BEIR]) if kind == "table" else read_rows(path)
        judged = _fields(path, rows)
    grades: dict[str, dict[str, float]] = {}
    for where, question, passage, grade in judged:
        if grades.setdefault(question, {}).setdefault(passage, grade) != grade:
            raise InputError(f"{where}: judges passage '{passage}' of '{question}' a second time")
    return grades


def number(text: object, where: str, name: str) -> float:
    """A finite number, also where it is written as text.

    Raises:
      InputError: it is none.
    """
    try:
        value = math.nan if isinstance(text, bool) else float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: field '{name}' must be a finite number, found '{text}'")
    return value


def cells(path: PathLike, counts: tuple[int, ...], what: str) -> Iterator[tuple[str, list[str]]]:
    """The fields of each line of a TREC file with its place; all lines have as many as the first.

    Fields are parted by tabs throughout where the first line has so many fields that way, and by
    white space throughout otherwise.

    Args:
      counts: how many fields a line may have.
      what: said of a line that has others.
    """
    tabs = False
    count = 0
    for number, raw in read_lines(path):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 text ({error.reason})") from None
        if not line.strip():
            continue
        if not count:
            tabs = len(line.split("\t")) in counts
        fields = line.split("\t") if tabs else line.split()
        if len(fields) not in counts:
            raise InputError(f"{where}: has {len(fields)} fields; {what}")
        if count and len(fields) != count:
            parted = "tabs" if tabs else "white space"
            raise InputError(
                f"{where}: has {len(fields)} fields, the first line {count}, parted by {parted}; "
                f"{what}; ids that hold spaces need tabs between the fields"
            )
        count = len(fields)
        yield where, fields


def _text(path: Path) -> Iterator[tuple[str, str, str, float]]:
    first = True
    for where, fields in cells(path, (3, 4), _TREC):
        if first and fields[-1].strip().lower() in GRADES:
            first = False
            continue  # a header
        first = False
        if len(fields) == 4 and not _ITERATION.fullmatch(fields[1].strip()):
            raise InputError(
                f"{where}: the second of four fields must be TREC's iteration, a number, found "
                f"'{fields[1]}'; ids that hold spaces need tabs between the fields"
            )
        for name, value in (("qid", fields[0]), ("docid", fields[-2])):
            if not value.strip():
                raise InputError(f"{where}: field '{name}' must not be empty")
        yield where, fields[0], fields[-2], number(fields[-1], where, "relevance")


def _fields(path: Path, rows: Iterator[Row]) -> Iterator[tuple[str, str, str, float]]:
    for line, row in rows:
        if isinstance(row, InputError):
            raise row
        where = f"{path}:{line}"
        names = {name.lower(): name for name in row}
        chosen = [next((names[n] for n in each if n in names), "") for each in _ALL]
        if not all(chosen):
            raise InputError(
                f"{where}: no judgment: its fields are {', '.join(list(row)[:8])}, and a judgment "
                f"has {', '.join(BEIR)}"
            )
        question, passage, grade = (row[name] for name in chosen)
        yield (
            where,
            identity(question, where, chosen[0]),
            identity(passage, where, chosen[1]),
            number(grade, where, chosen[2]),
        )


_ALL = (QUESTIONS, PASSAGES, GRADES)


def identity(value: Any, where: str, name: str) -> str:
    """An id as text: also of an integer, or of one that pandas turned into a float.

    Raises:
      InputError: it is none, or blank.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: field '{name}' must be an id, found {value!r:.60}")
    return value


def graded(judged: Mapping[str, float]) -> tuple[str, ...]:
    """The passages of relevance above 0, best first."""
    best = sorted(judged.items(), key=lambda item: -item[1])
    return tuple(name for name, grade in best if grade > 0)
