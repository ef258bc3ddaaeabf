"""Questions out of a file of any known format: the one reader that every program uses."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dynarag_jax.data import ranked
from dynarag_jax.data.catalog import benchmark
from dynarag_jax.data.formats import Format, detect, named
from dynarag_jax.data.layouts import queries_file
from dynarag_jax.data.mapping import FieldPaths, read_mapped
from dynarag_jax.data.values import RESERVED, holds_passages
from dynarag_jax.delimited import Quotes
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike
from dynarag_jax.records import TASKS, Question
from dynarag_jax.rows import read_rows

_LISTS = (
    *ranked.CONTEXTS, *ranked.DPR, "context", "candidates", "paragraphs", "retrieved_evidence"
)  # fmt: skip
"""Fields whose elements are candidates."""

_KEPT_AND_READ = {
    "hotpotqa": ("supporting_facts",),
    "2wikimultihopqa": ("supporting_facts",),
    "musique": ("question_decomposition",),
}
"""By format, fields that say which passages are needed, and are kept beside that."""


@dataclass
class QuestionAccount:
    """What became of a file's records; filled while they are read.

    Attributes:
      questions: handed out.
      repeats: left out because an earlier one has the same id, or renamed.
      rejected: bad records, as (line, what is wrong).
      seen: the ids so far, and the line of each.
      lines: of all files so far.
      unread: fields that hold data, are kept and mean nothing here, with how many records have
        them; and of those that look like passages, the path that reads them.
      merged: passages that stood twice among a question's and stand there once.
      needed: questions that need a passage which is not among their candidates.
      format: of the last file.
    """

    questions: int = 0
    repeats: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict, repr=False)
    lines: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    passages: dict[str, str] = field(default_factory=dict)
    merged: int = 0
    needed: int = 0
    format: str = ""

    def see(self, row: Mapping[str, Any], question: Question) -> None:
        """Count what a question kept of its record without reading it."""
        if question.passages and question.gold:
            there = {passage.id for passage in question.passages}
            self.needed += not there.issuperset(question.gold)
        if self.format == "records":
            return
        listed = [row[name] for name in _LISTS if isinstance(row.get(name), list)]
        if question.passages and listed:
            self.merged += max(sum(map(len, listed)) - len(question.passages), 0)
        for name in question.extra:
            source = name.removeprefix("source_") if name not in row else name
            if source in RESERVED and source == name:
                continue
            if source in _KEPT_AND_READ.get(self.format, ()):
                continue
            value = row.get(source)
            if isinstance(value, str | list | dict) and value:
                self.unread[source] += 1
                if source not in self.passages and (path := holds_passages(source, value)):
                    self.passages[source] = path

    def notes(self) -> list[str]:
        """What should be said about the file, a line each."""
        lines = []
        if self.unread:
            named = ", ".join(f"{name} ({count})" for name, count in self.unread.most_common(12))
            lines.append(f"fields that are kept and not read, and how many records: {named}")
        if self.passages:
            paths = ", ".join(self.passages.values())
            lines.append(
                f"some of them look like passages ({paths}); --format fields --fields.passages "
                f"PATH reads such as candidates"
            )
        if self.merged:
            lines.append(
                f"{self.merged} passages stand twice among a question's; they are read once"
            )
        if self.needed:
            lines.append(
                f"{self.needed} questions need a passage that is not among their candidates; it "
                f"stays in gold"
            )
        return lines


@dataclass(frozen=True)
class Reading:
    """How a file of questions is read."""

    format: str = ""
    """name of the format; empty finds it by the first records"""
    dataset: str = ""
    """the benchmark the questions are of; sets their task and their field ``dataset``"""
    task: str = ""
    """form of the answers (short, label, paragraph), where the file does not tell"""
    repeats: str = "refuse"
    """questions whose id came before: refuse, drop or rename (``id#2``)"""
    reject_limit: int = 0
    """bad records that are set aside before the file is refused"""
    columns: tuple[str, ...] = ()
    """of a table without a header line: the columns' names in order"""
    quotes: Quotes = "auto"
    """of a table: see ``delimited.Quotes``"""
    fields: FieldPaths = FieldPaths()
    """of the format ``fields``: where in a record things stand"""

    def __post_init__(self) -> None:
        if self.repeats not in ("refuse", "drop", "rename"):
            raise InputError(f"repeats must be refuse, drop or rename, found '{self.repeats}'")
        if self.task and self.task not in TASKS:
            raise InputError(
                f"task must be one of {', '.join(TASKS)}{nearest(self.task, TASKS)}, found "
                f"'{self.task}'"
            )
        if self.reject_limit < 0:
            raise InputError(f"reject_limit = {self.reject_limit} must not be negative")
        if self.format:
            named(self.format)
        if self.fields.given and self.format != "fields":
            raise InputError("fields are paths for --format fields; name that format")
        if self.dataset:
            benchmark(self.dataset)


def numbered_questions(
    path: PathLike,
    reading: Reading = Reading(),
    account: QuestionAccount | None = None,
) -> Iterator[tuple[int, Question]]:
    """Yield ``(line number, question)`` of a file of any known format, as it is read.

    Memory holds one record and the ids of all questions. A question without an id is called ``q``
    and its line number.

    Args:
      path: the file, or a directory as BEIR's and MTEB's.
      account: is filled; one account for several files makes them one, with ids that do not repeat.

    Raises:
      InputError: the file is damaged or of no known format, or more of its records are bad than
        ``reading.reject_limit``; the message names file, line, field and value.
    """
    account = QuestionAccount() if account is None else account
    path = queries_file(path)
    reader = (
        named(reading.format) if reading.format else detect(path, reading.columns, reading.quotes)
    )
    account.format = reader.name
    seen, before, number = account.seen, account.lines, 0
    for number, row in read_rows(path, reading.columns, reading.quotes):
        # Records of a JSON array may share a line; their ids are of the lines that follow.
        account.lines = max(before + number, account.lines + 1)
        try:
            questions = _questions(reader, path, number, row, reading, f"q{account.lines}")
            for question in questions:
                if question.id in seen:
                    renamed = _repeated(question, seen, f"{path}:{number}", reading.repeats)
                    account.repeats += 1
                    if renamed is None:
                        continue
                    question = renamed
                seen[question.id] = account.lines
                account.questions += 1
                account.see(row if isinstance(row, dict) else {}, question)
                yield number, question
        except InputError as error:
            # What a file holds, and so what is quoted of it, may run over several lines.
            wrong = " ".join(str(error).splitlines())
            account.rejected.append((number, wrong))
            if len(account.rejected) > reading.reject_limit:
                many = f" (bad record {len(account.rejected)})" if reading.reject_limit else ""
                told = reading.format or reader.name == "records"
                guess = "" if told else f"; read as '{reader.name}'"
                raise InputError(f"{wrong}{guess}{many}") from None
    if not number:
        raise InputError(f"{path}: holds no records")


def _questions(
    found: Format, path: PathLike, number: int, row: Any, reading: Reading, default: str
) -> list[Question]:
    if isinstance(row, InputError):
        raise row
    where = f"{path}:{number}"
    questions = []
    read = (
        read_mapped(reading.fields, row, where, default)
        if found.name == "fields"
        else found.read(row, where, default)
    )
    for question in read:
        changes: dict[str, Any] = {}
        if reading.dataset:
            entry = benchmark(reading.dataset)
            changes |= {"task": entry.task, "extra": question.extra | {"dataset": entry.name}}
        if reading.task:
            changes["task"] = reading.task
        questions.append(replace(question, **changes))
    return questions


def _repeated(
    question: Question, seen: Mapping[str, int], where: str, repeats: str
) -> Question | None:
    if repeats == "drop":
        return None
    if repeats == "rename":
        count = next(n for n in itertools.count(2) if f"{question.id}#{n}" not in seen)
        return replace(question, id=f"{question.id}#{count}")
    raise InputError(
        f"{where}: the id '{question.id}' is that of line {seen[question.id]}; --repeats drop or "
        f"--repeats rename goes on"
    )


# ---------------------------------------------------------------------------- for stages


def stream_questions(
    path: PathLike,
    log: Callable[[str], object] = lambda line: None,
    reading: Reading = Reading(),
) -> Iterator[Question]:
    """Read questions of any known format one by one; an empty file has none.

    Args:
      log: hears, after the last question, what was kept and not read.

    Raises:
      InputError: as ``numbered_questions``.
    """
    account = QuestionAccount()
    path = queries_file(path)
    if next(iter(read_rows(path, reading.columns, reading.quotes)), None) is None:
        return
    for _, question in numbered_questions(path, reading, account):
        yield question
    for line in account.notes():
        log(f"{path}: {line}")


def read_questions(
    path: PathLike,
    log: Callable[[str], object] = lambda line: None,
    reading: Reading = Reading(),
) -> list[Question]:
    """All questions of a file of any known format; see ``stream_questions``."""
    return list(stream_questions(path, log, reading))


def with_candidates(
    questions: Sequence[Question], path: PathLike, log: Callable[[str], object]
) -> list[Question]:
    """The questions that have candidates; ``log`` hears of those for which nothing was found.

    Raises:
      InputError: none of them has any.
    """
    some = [question for question in questions if question.passages]
    bare = [question.id for question in questions if not question.passages]
    if bare and not some:
        raise InputError(f"{path}: question '{bare[0]}' has no passages; retrieve first")
    if bare:
        log(
            f"{path}: {len(bare)} of {len(questions)} questions have no candidates, '{bare[0]}' "
            f"among them; they stay, and nothing is listed for them"
        )
    return some


def read_valid_questions(path: PathLike) -> tuple[list[Question], list[tuple[str, str]]]:
    """Read a file of questions past its bad records.

    Returns:
      the valid questions, and of each other record an id (``line N`` where it has none) and what is
      wrong.

    Raises:
      InputError: the file is of no known format, or a line of it is not JSON: it is damaged.
    """
    questions: list[Question] = []
    wrong: list[tuple[str, str]] = []
    seen: dict[str, int] = {}
    path = queries_file(path)
    rows = iter(read_rows(path))
    if (first := next(rows, None)) is None:
        return [], []
    reader = detect(path)
    for number, row in itertools.chain([first], rows):
        if isinstance(row, InputError):
            raise row
        given = row.get("id")
        name = str(given) if isinstance(given, str | int) and given != "" else f"line {number}"
        try:
            for question in _questions(reader, path, number, row, Reading(), f"q{number}"):
                if question.id in seen:
                    name = f"line {number}"
                    _repeated(question, seen, f"{path}:{number}", "refuse")
                seen[question.id] = number
                questions.append(question)
        except InputError as error:
            wrong.append((name, str(error)))
    return questions, wrong
