"""What the readers of all formats share: fields by several names, passages, what is left over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dynarag_jax.delimited import Cells, listed
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.fields import Fields
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.passages import IDS, TEXTS, content_id

__all__ = [
    "LABELS",
    "RESERVED",
    "Candidates",
    "Record",
    "as_texts",
    "content_id",
    "holds_passages",
    "missing_id",
    "rest",
    "unique",
    "with_content_ids",
]

RESERVED = (
    "id", "question", "answers", "task", "type", "ctxs", "gold", "expert",
    "qa_pairs", "dataset", "has_answer",
)  # fmt: skip
"""Names that mean something in our records: a foreign field so named becomes ``source_NAME``."""

LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")


def missing_id(title: str) -> str:
    """The id in ``gold`` of a passage that is no candidate and of which only the title is known."""
    return f"title:{title}"


def as_texts(value: Any, numbers: bool = False) -> list[str] | None:
    """An answer, or a list of answers, as texts; None where it is neither.

    True and false are yes and no, as questions of that kind are answered.

    Args:
      numbers: they are answers, too, as they are written.
    """
    if value is None:
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int | float) and numbers:
        return [str(value)]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        return None
    each = [as_texts(item, numbers) for item in value]
    if None in each:
        return None
    return [text for texts in each for text in texts or ()]


def holds_passages(name: str, value: Any) -> str:
    """The path to passages' texts where a field looks as if it held some; else empty."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for text in TEXTS:
            if isinstance(value[0].get(text), str):
                return f"{name}[].{text}"
    if isinstance(value, dict):
        for text in TEXTS:
            if isinstance(value.get(text), list):
                return f"{name}.{text}[]"
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return f"{name}[]" if sum(map(len, value)) > 100 * len(value) else ""
    return ""


def unique(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts that are not blank, each once, in their order."""
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def rest(value: dict[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The fields that were not read, to be kept with the question."""
    used = set(used)
    return {
        f"source_{name}" if name in RESERVED else name: item
        for name, item in value.items()
        if name not in used
    }


class Record(Fields):
    """The fields of one record of a foreign format, which may have several names."""

    def name(self, *names: str) -> str:
        """The first of ``names`` that is there; else the first, so that an error names it."""
        return next((name for name in names if self.has(name)), names[0])

    def text(self, *names: str, blank: bool = False) -> str:
        """A text under the first of ``names`` that is there."""
        name = self.name(*names)
        if not self.has(name):
            hint = nearest(name, self.values)
            shown = " or ".join(f"'{each}'" for each in names)
            raise InputError(f"{self.where}: field {shown} is missing{hint}")
        value = self.values[name]
        if not isinstance(value, str):
            raise self.fail(name, "must be a string")
        if not blank and not value.strip():
            raise self.fail(name, "must not be empty")
        return value

    def identity(self, *names: str, default: str = "") -> str:
        """An id, as text; ids that are integers are taken, too."""
        name = self.name(*names)
        value = self.values.get(name)
        if value is None and default:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas makes floats of a column of ids that lacks one
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(name, "must be an id: a text that is not empty, or an integer")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """A list of texts, or one text, under the first of ``names``; nothing if none is there."""
        name = self.name(*names)
        value = self.values.get(name)
        if isinstance(value, str):
            return unique([value])
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.fail(name, "must be a text or a list of texts")
        return unique(value)

    def answers(self, *names: str) -> tuple[str, ...]:
        """Answers under the first of ``names``: texts, numbers, true and false as yes and no.

        In a cell of a table a list of answers is a text.
        """
        name = self.name(*names)
        value = self.values.get(name)
        if isinstance(self.values, Cells) and isinstance(value, str):
            value = listed(value) or value
        texts = as_texts(value)
        if texts is None:
            raise self.fail(name, "must be a text, true or false, or a list of such")
        return unique(texts)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, "must be true or false")
        return value

    def score(self, name: str = "score") -> float | None:
        """A number, also where it is written as text; some files hold the retriever's score so."""
        value = self.values.get(name)
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                raise self.fail(name, "must be a number") from None
            if not math.isfinite(number):
                raise self.fail(name, "must be a finite number")
            return number
        return self.number(name)

    def inner(self, name: str) -> Record:
        """The object under ``name``, which must be there."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.fail(name, "must be an object")
        return Record(f"{self.where}: {name}", value)

    def each(self, name: str, needed: bool = False) -> list[Record]:
        """The objects of a list under ``name``."""
        if needed and not self.has(name):
            hint = nearest(name, self.values)
            raise InputError(f"{self.where}: field '{name}' is missing{hint}")
        items = self.objects(name)
        return [Record(f"{self.where}: {name}[{i}]", item) for i, item in enumerate(items)]

    def passage(self) -> Passage:
        """This object as a passage; without an id it gets one from its content.

        Text and title may be empty: retrieval keeps such passages, and so what it writes has them.
        """
        name = self.name(*TEXTS)
        titled = self.has("title")
        text = self.text(*TEXTS, blank=True) if self.has(name) or not titled else ""
        title = self.text("title", blank=True) if titled else ""
        given = self.identity(*IDS, default=content_id(title, text))
        return Passage(given, text, title, self.score())


class Candidates:
    """The passages of one question as they are read: repeats stand once, some are needed."""

    def __init__(self) -> None:
        self.passages: dict[str, Passage] = {}
        self.gold: dict[str, None] = {}

    def add(self, passage: Passage, where: str, gold: bool = False) -> Passage:
        """Add one passage.

        Raises:
          InputError: its id is that of another passage.
        """
        known = self.passages.setdefault(passage.id, passage)
        if (known.text, known.title) != (passage.text, passage.title):
            raise InputError(
                f"{where}: the id '{passage.id}' is that of another passage of this question"
            )
        if gold:
            self.gold[passage.id] = None
        return known


def with_content_ids(question: Question) -> Question:
    """The question with passage ids made from their content; passages that are equal are one.

    Files number passages as they like; ids of content make the passages of many questions, and of
    many files, one corpus.
    """
    names = {p.id: content_id(p.title, p.text) for p in question.passages}
    passages: dict[str, Passage] = {}
    for passage in question.passages:
        passages.setdefault(names[passage.id], replace(passage, id=names[passage.id]))
    number = {name: i for i, name in enumerate(passages, 1)}
    expert = question.expert
    if expert is not None:
        ids = (question.passages[old - 1].id for old in expert)
        expert = tuple(dict.fromkeys(number[names[name]] for name in ids))
    gold = question.gold
    if gold is not None:
        gold = tuple(dict.fromkeys(names.get(name, name) for name in gold))
    extra = question.extra
    if isinstance(extra.get("has_answer"), list):
        marked = [names.get(name, name) for name in extra["has_answer"]]
        extra = extra | {"has_answer": list(dict.fromkeys(marked))}
    return replace(
        question, passages=tuple(passages.values()), gold=gold, expert=expert, extra=extra
    )
