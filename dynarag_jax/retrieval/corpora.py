"""Corpora as streams of passages: the files people have, read in little memory.

| format | a record |
|---|---|
| ours | ``{"id", "title", "text"}``, in JSON of any shape |
| beir | ``{"_id", "title", "text"}`` |
| contents | ``{"id", "contents"}``, the title on a line of its own before the text (FlashRAG, Pyserini) |
| tsv, csv | columns of these names below a header line (DPR's psgs_w100.tsv), or as ``columns`` says |
| parquet | columns of these names (extra ``data``) |
| text | a plain text or Markdown file: one passage, named by its path, titled by its first heading |

Files may be packed by gzip or zstd. A directory is BEIR's (its ``corpus.jsonl``, or Parquet below
``corpus/``), or all data files in it, or all text and Markdown files below it.
"""  # noqa: E501 - a table

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dynarag_jax.delimited import Dialect, Quotes, read_table
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import open_bytes, read_lines, require_file
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.passages import IDS, TEXTS, TITLES, first_name, read_passage
from dynarag_jax.rows import Row, parquet_columns, read_parquet, read_rows, shape

CorpusFormat = Literal["auto", "ours", "beir", "contents", "tsv", "csv", "parquet", "text"]
_DATA = (".jsonl", ".json", ".parquet", ".tsv", ".csv")
_TEXT = (".txt", ".md", ".markdown")
_DPR = (("id", "text", "title"), ("id", "text"))
"""The header of DPR's passages, which are CSV with tabs."""

# A record's place in its file, the fields of it that were not read, and the passage or what is
# wrong with it.
PassageRow = tuple[str, list[str], Passage | InputError]


@dataclass(frozen=True)
class CorpusConfig:
    """A corpus in files, and how it becomes passages."""

    files: tuple[str, ...] = ("corpus.jsonl",)
    """files, patterns (``wiki/*.jsonl.gz``) or directories, read in the order given, patterns by
    name"""
    format: CorpusFormat = "auto"
    """auto sees it from each file's first record"""
    columns: tuple[str, ...] = ()
    """of tables without a header line: the columns' names in order, such as id text title"""
    quotes: Quotes = "auto"
    """of tables: csv takes quotes as CSV has them, none as they stand, auto sees it from the whole
    file and refuses what it cannot decide"""
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
        if self.columns and not (first_name(IDS, self.columns) and first_name(TEXTS, self.columns)):
            raise InputError(
                f"corpus: columns = {' '.join(self.columns)} names no id (one of {', '.join(IDS)}) "
                f"or no text (one of {', '.join(TEXTS)})"
            )


@dataclass
class CorpusAccount:
    """What was read: filled while ``read_corpus`` runs.

    Attributes:
      records: good records.
      passages: passages made of them.
      empty: passages without text; they are kept.
      rejected: what was wrong with the bad records, in order.
      formats: the format of each file.
      dialects: of files that are tables, how they are written.
      unnamed: files whose passages have no ids and are named by their content.
      unread: fields that hold data and were not read, with how many records have them.
      counts: the passages of each file.
    """

    records: int = 0
    passages: int = 0
    empty: int = 0
    rejected: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    dialects: dict[str, str] = field(default_factory=dict)
    unnamed: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """What should be said about the files, a line each."""
        lines = [f"{name}: {dialect}" for name, dialect in self.dialects.items()]
        lines += [
            f"{name}: passages have no ids; they are named by their content"
            for name in self.unnamed
        ]
        if self.unread:
            named = ", ".join(f"{name} ({count})" for name, count in self.unread.most_common(12))
            lines.append(f"fields that were not read, and how many records have them: {named}")
        return lines


def corpus_files(patterns: Sequence[str]) -> list[Path]:
    """The files that paths, patterns and directories stand for, in order.

    Raises:
      InputError: a file is missing, a pattern or directory holds none, or a file is named twice.
    """
    if "" in patterns:
        raise InputError("corpus: a name among files is empty; '.' is the directory one is in")
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if any(c in pattern for c in "*?[") and not path.exists():
            fixed = Path(*path.parts[: next(i for i, p in enumerate(path.parts) if _wild(p))])
            some = sorted(p for p in fixed.glob(str(path.relative_to(fixed))) if p.is_file())
            if not some:
                raise InputError(f"{pattern}: no file fits this pattern")
            files += some
        elif path.is_dir():
            files += directory_files(path)
        else:
            files.append(require_file(path, "corpus file"))
    for path in files:
        if files.count(path) > 1:
            raise InputError(f"{path}: is named twice in the corpus' files")
    return files


def directory_files(place: Path) -> list[Path]:
    """The files of a corpus that is a directory.

    Raises:
      InputError: it holds nothing that is read here.
    """
    for name in ("corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.zst", "corpus.parquet"):
        if (place / name).is_file():
            return [place / name]
    inner = place / "corpus"
    data = _with(inner.iterdir() if inner.is_dir() else place.iterdir(), _DATA)
    files = data or _with(place.rglob("*"), _TEXT)
    if not files:
        raise InputError(
            f"{place}: no corpus: no corpus.jsonl, no {', '.join(_DATA)} and no text or Markdown "
            f"files"
        )
    return files


def _with(paths: Iterator[Path], endings: tuple[str, ...]) -> list[Path]:
    def ending(path: Path) -> str:
        packed = path.suffix in (".gz", ".zst")
        return Path(path.stem).suffix.lower() if packed else path.suffix.lower()

    return sorted(p for p in paths if ending(p) in endings and p.is_file() and p.name[0] != ".")


def _wild(part: str) -> bool:
    return any(c in part for c in "*?[")


def read_corpus(config: CorpusConfig, account: CorpusAccount | None = None) -> Iterator[Passage]:
    """Yield the passages of a corpus, file by file, in order.

    That ids do not repeat is seen by who stores them (``store.write_store``).

    Raises:
      InputError: a file is missing or its format unknown, or more records are bad than
        ``config.reject_limit``; the message names file, line and field.
    """
    account = account if account is not None else CorpusAccount()
    roots = [Path(name) for name in config.files if Path(name).is_dir()]
    for path in corpus_files(config.files):
        kind, rows = _open(path, config, account, roots)
        account.formats[str(path)], account.counts[str(path)] = kind, 0
        for where, unread, row in rows:
            if isinstance(row, InputError):
                account.rejected.append(str(row))
                if len(account.rejected) > config.reject_limit:
                    more = "" if config.reject_limit else "; reject_limit leaves such records out"
                    many = f" (bad record {len(account.rejected)})" if config.reject_limit else more
                    raise InputError(f"{row}{many}")
                continue
            account.records += 1
            account.unread.update(unread)
            for passage in split(row, config.words, config.overlap):
                if not _encodable(passage):
                    raise InputError(f"{where}: holds half of a surrogate pair, no character")
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


def _open(
    path: Path, config: CorpusConfig, account: CorpusAccount, roots: Sequence[Path]
) -> tuple[str, Iterator[PassageRow]]:
    """The format of a file, and its records."""
    wanted = config.format
    if wanted not in get_args(CorpusFormat):
        raise InputError(
            f"corpus: format '{wanted}' is none of {', '.join(get_args(CorpusFormat))}"
            f"{nearest(wanted, get_args(CorpusFormat))}"
        )
    textual = path.suffix.lower() in _TEXT and not config.columns
    if wanted == "text" or (wanted == "auto" and textual):
        return "text", _text(path, roots)
    kind = shape(path, config.columns)
    if kind == "parquet":
        return "parquet", _parquet(path, account)
    if wanted in ("tsv", "csv", "parquet") and (wanted == "parquet" or kind != "table"):
        needs = "a header line, or columns" if wanted != "parquet" else "Parquet's first bytes"
        raise InputError(f"{path}:1: is no {wanted} ({needs} missing)")

    def hear(dialect: Dialect) -> None:
        account.dialects[str(path)] = dialect.describe()

    if kind == "table":
        rows = read_table(path, config.columns, config.quotes, _DPR, hear)
        first = next((raw for _, raw in read_lines(path) if raw.strip()), b"")
        return "tsv" if b"\t" in first else "csv", _records(path, rows)
    first = next(iter(read_rows(path)), None)
    if first is None:
        raise InputError(f"{path}: is empty; a corpus file has at least one passage")
    number, names = first
    head = next(raw for _, raw in read_lines(path) if raw.strip())
    if kind == "lines" and not head.lstrip().startswith(b"{"):
        raise InputError(
            f"{path}:1: neither a JSON object nor the header line of a table, such as "
            f"'id<tab>text<tab>title'; name the columns of a table without one (columns id text), "
            f"and read plain text with format text"
        )
    if isinstance(names, InputError):
        raise names
    if not first_name(TEXTS, names):
        raise InputError(
            f"{path}:{number}: a passage has 'id' and 'text', '_id' and 'text', or 'id' and "
            f"'contents'; found {', '.join(map(repr, list(names)[:8]))}"
        )
    named = bool(first_name(IDS, names))
    if not named:
        account.unnamed.append(str(path))
    return (
        "contents" if "contents" in names else "beir" if "_id" in names else "ours",
        _records(path, read_rows(path), named=named),
    )


def _records(
    path: Path, rows: Iterator[Row], what: str = "", named: bool = True
) -> Iterator[PassageRow]:
    for number, row in rows:
        where = f"{path}: {what} {number}" if what else f"{path}:{number}"
        if isinstance(row, InputError):
            yield where, [], row
            continue
        try:
            passage, read = read_passage(row, where, named)
        except InputError as error:
            yield where, [], error
            continue
        yield where, [n for n, v in row.items() if n not in read and _data(v)], passage


def _data(value: Any) -> bool:
    """Whether a field holds what somebody may have wanted to be read."""
    return isinstance(value, str | list | dict) and bool(value)


def _parquet(path: Path, account: CorpusAccount) -> Iterator[PassageRow]:
    names = parquet_columns(path)
    chosen = [first_name(options, names) for options in (IDS, TEXTS, TITLES)]
    if not chosen[1]:
        raise InputError(
            f"{path}: no column for the text (one of {', '.join(TEXTS)}); it has "
            f"{', '.join(names[:12])}{nearest('text', names)}"
        )
    if not chosen[0]:
        account.unnamed.append(str(path))
    # Other columns are not even opened: whatever they hold, they are no part of a passage.
    unread = [name for name in names if name not in chosen]
    rows = _records(
        path, read_parquet(path, [name for name in chosen if name]), "row", bool(chosen[0])
    )
    return ((where, unread, passage) for where, _, passage in rows)


_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)


def _text(path: Path, roots: Sequence[Path]) -> Iterator[PassageRow]:
    """A file as one passage: its first heading, or its name, is the title."""
    root = next((root for root in roots if root in path.parents), path.parent)
    name = path.relative_to(root).as_posix()
    try:
        with open_bytes(path) as stream:
            text = stream.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        yield f"{path}:1", [], InputError(f"{path}:1: not UTF-8 text ({error.reason})")
        return
    heading = _HEADING.search(text) if path.suffix.lower() != ".txt" else None
    title = path.stem
    if heading:
        title = heading[1]
        text = text[: heading.start()] + text[heading.end() :]
    yield f"{path}:1", [], Passage(name, text.strip(), title)


def located(config: CorpusConfig, place: Any) -> CorpusConfig:
    """The corpus with its files' names changed by ``place``."""
    return dataclasses.replace(config, files=tuple(str(place(name)) for name in config.files))
