"""The format ``fields``: any JSON or Parquet file as questions, by paths into its records.

A path is names parted by dots; ``[]`` behind a name stands for every element of a list, ``[0]`` for
one, and ``*`` for every value of an object: ``documents[].text``, ``gold.answer``,
``passages.passage_text[]``, ``evidence.*``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from dynarag_jax.data.values import Candidates, Record, as_texts, content_id, rest, unique
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.judgments import identity

_STEP = re.compile(r"(?P<name>[^.\[\]]*)(?P<inside>(?:\[\d*\])*)")


@dataclass(frozen=True)
class FieldPaths:
    """Where in a record things stand; an empty path says that it is nowhere."""

    question: str = ""
    """the question; must be given"""
    answers: str = ""
    """one answer or several: texts, numbers, true and false as yes and no"""
    id: str = ""
    """the question's id; without one it is q and its line"""
    type: str = ""
    """a tag for tables of results"""
    passages: str = ""
    """the candidates' texts, in their order"""
    titles: str = ""
    """their titles, as many"""
    ids: str = ""
    """their ids, as many; without them they are named by their content"""
    scores: str = ""
    """their scores, as many"""
    gold: str = ""
    """which passages are needed: true or false (or 1 or 0) of each, or ids or titles"""

    @property
    def given(self) -> bool:
        """Whether any path is."""
        return any(getattr(self, each.name) for each in fields(self))


def values_at(value: Any, path: str, where: str) -> list[Any]:
    """What stands at a path, in order; None for what a record or an element lacks.

    Raises:
      InputError: the path is none, or goes into what holds nothing.
    """
    values = [value]
    for step in path.split("."):
        match = _STEP.fullmatch(step)
        if match is None or (not match["name"] and not match["inside"]):
            raise InputError(f"fields: '{path}' is no path; such are question, a.b, list[].text")
        if match["name"] == "*":
            values = [item for each in values for item in _every(each, path, where)]
        elif match["name"]:
            values = [_field(each, match["name"], path, where) for each in values]
        for index in re.findall(r"\[(\d*)\]", match["inside"]):
            values = [item for each in values for item in _elements(each, index, path, where)]
    return values


def _field(value: Any, name: str, path: str, where: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise InputError(f"{where}: '{path}': '{name}' is looked for in a {kind}, not in an object")
    return value.get(name)


def _every(value: Any, path: str, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise InputError(f"{where}: '{path}': * stands for an object's values, found a {kind}")
    return list(value.values())


def _elements(value: Any, index: str, path: str, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        kind = type(value).__name__
        raise InputError(f"{where}: '{path}': [] stands for a list's elements, found a {kind}")
    if not index:
        return value
    return [value[int(index)] if int(index) < len(value) else None]


def read_mapped(
    paths: FieldPaths, value: dict[str, Any], where: str, default: str
) -> Iterator[Question]:
    """The question of a record by paths.

    Raises:
      InputError: no question stands there, or titles, ids or scores are not as many as passages.
    """
    if not paths.question:
        raise InputError("--format fields needs --fields.question, the path of the question")

    def at(name: str) -> list[Any]:
        path = getattr(paths, name)
        return values_at(value, path, where) if path else []

    asked = [each for each in at("question") if each is not None]
    if len(asked) != 1 or not isinstance(asked[0], str) or not asked[0].strip():
        top = re.split(r"[.\[]", paths.question)[0]
        hint = "" if top in value else nearest(top, value)
        raise InputError(
            f"{where}: '{paths.question}' must be one text that is not empty{hint}, found "
            f"{asked if len(asked) != 1 else asked[0]!r:.60}"
        )
    candidates, gold = _passages(paths, at, where)
    identities = [each for each in at("id") if each is not None]
    kinds = [each for each in at("type") if isinstance(each, str)]
    answers: list[str] = []
    for item in at("answers"):
        texts = as_texts(item, numbers=True)
        if texts is None:
            raise InputError(f"{where}: '{paths.answers}' must be answers, found {item!r:.60}")
        answers += texts
    used = {re.split(r"[.\[]", getattr(paths, f.name))[0] for f in fields(paths)}
    yield Question(
        id=identity(identities[0], where, paths.id) if identities else default,
        text=asked[0],
        answers=unique(answers),
        type=kinds[0] if kinds else "",
        passages=tuple(candidates.passages.values()),
        gold=gold,
        extra=rest(value, used),
    )


def _passages(paths: FieldPaths, at: Any, where: str) -> tuple[Candidates, tuple[str, ...] | None]:
    """The candidates, and which of them are needed; None where the file does not say."""
    texts = at("passages")
    beside = {name: at(name) for name in ("titles", "ids", "scores") if getattr(paths, name)}
    for name, items in beside.items():
        if len(items) != len(texts):
            raise InputError(
                f"{where}: '{getattr(paths, name)}' has {len(items)} {name}, and there are "
                f"{len(texts)} passages at '{paths.passages}'"
            )
    candidates = Candidates()
    names = []
    for i, text in enumerate(texts):
        place = f"{where}: {paths.passages} ({i + 1})"
        title = beside["titles"][i] if "titles" in beside else ""
        for what in (text, title):
            if not isinstance(what, str | None):
                raise InputError(f"{place}: must be a text, found {what!r:.60}")
        text, title = text or "", title or ""
        given = beside["ids"][i] if "ids" in beside else None
        name = content_id(title, text) if given is None else identity(given, place, paths.ids)
        score = (
            Record(place, {"score": beside["scores"][i]}).score() if "scores" in beside else None
        )
        names.append(candidates.add(Passage(name, text, title, score), place).id)
    if not paths.gold:
        return candidates, None
    marks = at("gold")
    if len(marks) == 1 and isinstance(marks[0], list):
        marks = marks[0]
    if len(marks) == len(names) and all(mark in (True, False, None) for mark in marks):
        return candidates, unique(name for name, mark in zip(names, marks, strict=True) if mark)
    by_title = {p.title: p.id for p in candidates.passages.values()}
    needed = [identity(mark, where, paths.gold) for mark in marks if mark is not None]
    if not paths.ids:
        needed = [by_title.get(name, f"title:{name}") for name in needed]
    return candidates, unique(needed)
