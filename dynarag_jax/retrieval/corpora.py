"""Corpora as streams of passages: the files people have, read in little memory.

| format | a record | read by |
|---|---|---|
| ours | ``{"id", "title", "text"}`` | JSONL |
| beir | ``{"_id", "title", "text"}`` | JSONL |
| contents | ``{"id", "contents"}``, the title on a line of its own before the text (FlashRAG, Pyserini) | JSONL |
| tsv | ``id <tab> text <tab> title`` below a header that names them (DPR's psgs_w100.tsv) | lines |
| parquet | columns of these names | extra ``data`` |

All but Parquet may be packed by gzip or zstd. What a file is, is seen from its first record.
"""  # noqa: E501 - a table

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dynarag_jax.errors import InputError, MissingExtra, nearest
from dynarag_jax.fields import Fields
from dynarag_jax.files import LONGEST_LINE, parse_object, read_lines, require_file
from dynarag_jax.records import Passage

CorpusFormat = Literal["auto", "ours", "beir", "contents", "tsv", "parquet"]
_IDS = ("id", "_id", "docid", "pid")
_TEXTS = ("text", "contents", "passage", "body")

# A record's place in its file, and the record or what is wrong with it.
Row = tuple[str, Passage | InputError]


@dataclass(frozen=True)
class CorpusConfig:
    """A corpus in files, and how it becomes passages."""

    files: tuple[str, ...] = ("corpus.jsonl",)
    """files or patterns (``wiki/*.jsonl.gz``), read in the order given, patterns by name"""
    format: CorpusFormat = "auto"
    """auto sees it from each file's first record"""
    words: int = 0
    """cut texts into passages of so many words; 0 leaves them as they are"""
    overlap: int = 0
    """words that a passage repeats of the one before"""
    reject_limit: int = 0
    """bad records that are left out before the corpus is refused"""

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("corpus: files is empty; name at least one file")
        if self.words < 0 or self.reject_limit < 0:
            raise InputError(
                f"corpus: words = {self.words} and reject_limit = {self.reject_limit} must not "
                f"be negative"
            )
        if self.overlap < 0 or self.overlap >= max(self.words, 1):
            raise InputError(
                f"corpus: overlap = {self.overlap} must be at least 0 and less than "
                f"words = {self.words}"
            )


@dataclass
class Account:
    """What was read: filled while ``read_corpus`` runs.

    Attributes:
      records: good records.
      passages: passages made of them.
      empty: passages without text; they are kept.
      rejected: what was wrong with the bad records, in order.
      formats: the format of each file.
      counts: the passages of each file.
    """

    records: int = 0
    passages: int = 0
    empty: int = 0
    rejected: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def corpus_files(patterns: Sequence[str]) -> list[Path]:
    """The files that the patterns stand for, in order.

    Raises:
      InputError: a file is missing, a pattern fits none, or a file is named twice.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if any(c in pattern for c in "*?[") and not path.exists():
            fixed = Path(*path.parts[: next(i for i, p in enumerate(path.parts) if _wild(p))])
            some = sorted(p for p in fixed.glob(str(path.relative_to(fixed))) if p.is_file())
            if not some:
                raise InputError(f"{pattern}: no file fits this pattern")
            found += some
        else:
            found.append(require_file(path, "corpus file"))
    for path in found:
        if found.count(path) > 1:
            raise InputError(f"{path}: is named twice in the corpus' files")
    return found


def _wild(part: str) -> bool:
    return any(c in part for c in "*?[")


def read_corpus(config: CorpusConfig, account: Account | None = None) -> Iterator[Passage]:
    """Yield the passages of a corpus, file by file, in order.

    That ids do not repeat is seen by who stores them (``store.write_store``).

    Raises:
      InputError: a file is missing or its format unknown, or more records are bad than
        ``config.reject_limit``; the message names file, line and field.
    """
    account = account if account is not None else Account()
    for path in corpus_files(config.files):
        kind, rows = _open(path, config.format)
        account.formats[str(path)], account.counts[str(path)] = kind, 0
        for place, row in rows:
            if isinstance(row, InputError):
                account.rejected.append(str(row))
                if len(account.rejected) > config.reject_limit:
                    more = "" if config.reject_limit else "; reject_limit leaves such records out"
                    many = f" (bad record {len(account.rejected)})" if config.reject_limit else more
                    raise InputError(f"{row}{many}")
                continue
            account.records += 1
            for passage in split(row, config.words, config.overlap):
                if not _encodable(passage):
                    raise InputError(f"{place}: holds half of a surrogate pair, no character")
                account.passages += 1
                account.counts[str(path)] += 1
                account.empty += not passage.text.strip()
                yield passage


def _encodable(passage: Passage) -> bool:
    try:
        f"{passage.id}{passage.title}{passage.text}".encode()
    except UnicodeEncodeError:
        return False
    return True


_WORD = re.compile(r"\S+")


def split(passage: Passage, words: int, overlap: int = 0) -> Iterator[Passage]:
    """Cut a text into passages of ``words`` words, each repeating ``overlap`` of the one before.

    Ids are the document's with ``#0``, ``#1`` behind; the title stays. With ``words`` 0, or for a
    text without words, the passage itself. The last passage may be shorter; it is never only the
    overlap.
    """
    spans = [m.span() for m in _WORD.finditer(passage.text)] if words else []
    if not spans:
        yield passage
        return
    for i, first in enumerate(range(0, max(len(spans) - overlap, 1), words - overlap)):
        part = spans[first : first + words]
        text = passage.text[part[0][0] : part[-1][1]]
        yield Passage(f"{passage.id}#{i}", text, passage.title)


# ---------------------------------------------------------------------------- the formats


def _open(path: Path, wanted: CorpusFormat) -> tuple[str, Iterator[Row]]:
    """The format of a file, and its records."""
    if wanted == "parquet" or (wanted == "auto" and _is_parquet(path)):
        return "parquet", _parquet(path)
    first = next((raw for _, raw in read_lines(path) if raw.strip()), None)
    if first is None:
        raise InputError(f"{path}: is empty; a corpus file has at least one passage")
    kind = _detect(first, path) if wanted == "auto" else wanted
    if kind == "tsv":
        return kind, _tsv(path)
    if kind not in _JSON:
        raise InputError(f"format '{kind}' is none of {', '.join(get_args(CorpusFormat))}")
    return kind, _jsonl(path, _JSON[kind])


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _detect(first: bytes, path: Path) -> str:
    head = first.removeprefix(b"\xef\xbb\xbf").strip()
    if head.lower().split(b"\t") in ([b"id", b"text", b"title"], [b"id", b"text"]):
        return "tsv"
    if not head.startswith(b"{"):
        raise InputError(
            f"{path}:1: neither a JSON object nor the header 'id<tab>text<tab>title'; known "
            f"formats are {', '.join(get_args(CorpusFormat)[1:])}"
        )
    names = parse_object(first, f"{path}:1")
    if "contents" in names:
        return "contents"
    if "_id" in names:
        return "beir"
    if "id" in names and "text" in names:
        return "ours"
    raise InputError(
        f"{path}:1: a passage has 'id' and 'text', '_id' and 'text', or 'id' and 'contents'; found "
        f"{', '.join(map(repr, list(names)[:8]))}"
    )


def _ours(value: dict[str, Any], where: str) -> Passage:
    fields = Fields(where, value)
    return Passage(
        fields.string("id"),
        fields.string("text", blank=True),
        fields.string("title", default="", blank=True),
    )


def _beir(value: dict[str, Any], where: str) -> Passage:
    if isinstance(value.get("_id"), int):
        value = value | {"_id": str(value["_id"])}
    fields = Fields(where, value)
    return Passage(
        fields.string("_id"),
        fields.string("text", blank=True),
        fields.string("title", default="", blank=True),
    )


def _contents(value: dict[str, Any], where: str) -> Passage:
    fields = Fields(where, value)
    title, newline, text = fields.string("contents", blank=True).partition("\n")
    if not newline:
        title, text = fields.string("title", default="", blank=True), title
    title = title.strip()
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return Passage(fields.string("id"), text, title)


_JSON: dict[str, Callable[[dict[str, Any], str], Passage]] = {
    "ours": _ours,
    "beir": _beir,
    "contents": _contents,
}


def _jsonl(path: Path, parse: Callable[[dict[str, Any], str], Passage]) -> Iterator[Row]:
    for number, raw in read_lines(path):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            yield where, parse(parse_object(raw, where), where)
        except InputError as error:
            yield where, error


def _tsv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    names: list[str] = []
    for number, raw in read_lines(path):
        where = f"{path}:{number}"
        if not raw.strip():
            continue
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield where, InputError(f"{where}: not UTF-8 text ({error.reason})")
            continue
        if not names:
            names = [name.strip().lower() for name in line.split("\t")]
            if names[:2] != ["id", "text"]:
                raise InputError(
                    f"{where}: the first line must be the header 'id<tab>text<tab>title', found "
                    f"{line[:60]!r}"
                )
            continue
        try:
            # Fields with quotes are written as CSV has them.
            cells = next(csv.reader([line], delimiter="\t")) if '"' in line else line.split("\t")
        except (csv.Error, StopIteration) as error:
            yield where, InputError(f"{where}: cannot be taken apart ({error})")
            continue
        if len(cells) != len(names):
            yield (
                where,
                InputError(
                    f"{where}: has {len(cells)} fields, the header {len(names)} "
                    f"({', '.join(names)}); fields are parted by one tab"
                ),
            )
        elif not cells[0].strip():
            yield where, InputError(f"{where}: field 'id' must not be empty")
        else:
            yield where, Passage(cells[0], cells[1], cells[2] if len(cells) > 2 else "")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "data", "reading Parquet") from None
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        chosen = {
            what: next((n for n in options if n in names), None)
            for what, options in (("id", _IDS), ("text", _TEXTS), ("title", ("title",)))
        }
        for what in ("id", "text"):
            if chosen[what] is None:
                raise InputError(
                    f"{path}: no column for the {what} (one of "
                    f"{', '.join(_IDS if what == 'id' else _TEXTS)}); it has "
                    f"{', '.join(names[:12])}{nearest(what, names)}"
                )
        columns = [name for name in chosen.values() if name is not None]
        number = 0
        for batch in file.iter_batches(batch_size=8192, columns=columns):
            for value in batch.to_pylist():
                number += 1
                where = f"{path}: row {number}"
                row = {what: value.get(name) for what, name in chosen.items() if name is not None}
                try:
                    yield where, _ours(row, where)
                except InputError as error:
                    yield where, error
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not a readable Parquet file ({reason})") from None
