"""What the page asks of a table: which questions, and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.explore.columns import UNKNOWN
from dynarag_jax.explore.table import QuestionTable, Side

Change = Literal[
    "any", "list", "same", "even", "longer", "shorter", "better", "worse", "answer"
]  # fmt: skip
CHANGES: tuple[str, ...] = get_args(Change)
SORTS = (
    "file", "needed", "a.k", "b.k", "a.value", "b.value", "change", "a.spread", "b.spread"
)  # fmt: skip
PAGE = 50
"""Questions of one answer, unless asked otherwise; at most ``MOST``."""
MOST = 500
LONGEST = 15
"""Sizes of lists that plots tell apart; longer ones count together."""


@dataclass(frozen=True)
class QuestionQuery:
    """Which questions of a set, and how they are ordered; empty fields ask for nothing.

    Attributes:
      a, b: names of the sides that are compared; empty where there is none.
      q: words that must all stand in the question or its id, whatever their case.
      task, type: of the question.
      needed, ak, bk: counts such as ``2``, ``1-3``, ``4-``, or ``unknown``.
      amin, amax, bmin, bmax: of a side's score or reward, the ends included.
      change: what became of a question from side a to side b.
      failed: ``a`` or ``b``: that side failed.
      sort: one of ``SORTS``; a minus before it turns the order around.
      offset, limit: the part of the questions that is sent.
    """

    a: str = ""
    b: str = ""
    q: str = ""
    task: str = ""
    type: str = ""
    needed: str = ""
    ak: str = ""
    bk: str = ""
    amin: str = ""
    amax: str = ""
    bmin: str = ""
    bmax: str = ""
    change: str = "any"
    failed: str = ""
    sort: str = "file"
    offset: int = 0
    limit: int = PAGE


def read_query(given: Mapping[str, str]) -> QuestionQuery:
    """The query of an address's parameters.

    Raises:
      InputError: one is not known, or its value is none of its kind.
    """
    known = {f.name: f.type for f in fields(QuestionQuery)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"unknown parameter '{name}'{nearest(name, known)}")
        if known[name] == "int":
            if not value.isascii() or not value.isdigit() or len(value) > 9:
                raise InputError(f"{name} = '{value[:40]}' must be a number from 0")
            values[name] = int(value)
        elif value or name not in ("change", "sort"):
            values[name] = value
    query = QuestionQuery(**values)
    if query.change not in CHANGES:
        raise InputError(
            f"change = '{query.change}' must be one of {', '.join(CHANGES)}"
            f"{nearest(query.change, CHANGES)}"
        )
    if query.sort.removeprefix("-") not in SORTS:
        raise InputError(
            f"sort = '{query.sort}' must be one of {', '.join(SORTS)}{nearest(query.sort, SORTS)}"
        )
    if query.failed not in ("", "a", "b"):
        raise InputError(f"failed = '{query.failed}' must be a or b")
    if query.limit > MOST:
        raise InputError(f"limit = {query.limit} must be at most {MOST}")
    for name in ("needed", "ak", "bk"):
        _span(name, getattr(query, name))
    for name in ("amin", "amax", "bmin", "bmax"):
        _bound(name, getattr(query, name))
    return query


def _span(name: str, text: str) -> tuple[float, float] | None:
    """Least and most of a count such as ``2``, ``1-3`` or ``4-``; None where it must be unknown."""
    if text == "unknown":
        return None
    first, dash, last = text.partition("-")
    numbers = [part for part in (first, last) if part]
    if (text and not numbers) or not all(
        part.isascii() and part.isdigit() and len(part) < 10 for part in numbers
    ):
        raise InputError(f"{name} = '{text[:40]}' must be like 2, 1-3, 4- or unknown")
    least = int(first) if first else 0
    if last:
        return least, int(last)
    return least, math.inf if dash or not first else least


def _bound(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name} = '{text[:40]}' must be a number")
    return value


# ---------------------------------------------------------------------------- which questions


def side_of(table: QuestionTable, name: str) -> Side | None:
    """The side of this name; None of the empty one.

    Raises:
      InputError: the set has no such side.
    """
    if name and name not in table.sides:
        raise InputError(f"no side '{name[:80]}'{nearest(name, table.sides)}")
    return table.sides.get(name)


def matching(table: QuestionTable, query: QuestionQuery) -> np.ndarray:
    """[Q] bool, the questions asked for.

    Raises:
      InputError: it asks for something that the set does not have.
    """
    found = np.ones(len(table), bool)
    a, b = side_of(table, query.a), side_of(table, query.b)
    for word in query.q.casefold().split():
        found &= np.fromiter((word in text for text in table.folded), bool, len(table))
    for name, codes, known in (
        ("task", table.task, table.tasks), ("type", table.type, table.types)
    ):  # fmt: skip
        if wanted := getattr(query, name):
            if wanted not in known:
                raise InputError(f"no question of {name} '{wanted[:80]}'{nearest(wanted, known)}")
            found &= codes == known.index(wanted)
    found &= _counted("needed", query.needed, table.needed)
    for letter, side in (("a", a), ("b", b)):
        spans = {n: getattr(query, n) for n in (f"{letter}k", f"{letter}min", f"{letter}max")}
        if side is None:
            if asked := [n for n, value in spans.items() if value] + (
                ["failed"] if query.failed == letter else []
            ):
                raise InputError(f"{asked[0]} asks for side {letter}, and none is given")
            continue
        found &= _counted(f"{letter}k", spans[f"{letter}k"], side.k)
        least, most = (_bound(n, spans[n]) for n in (f"{letter}min", f"{letter}max"))
        if least is not None:
            found &= side.value >= least
        if most is not None:
            found &= side.value <= most
        if query.failed == letter:
            found &= side.failed
    if query.change != "any":
        if a is None or b is None:
            raise InputError(f"change = '{query.change}' compares two sides; give a and b")
        found &= changed(a, b, query.change)
    return found


def _counted(name: str, text: str, values: np.ndarray) -> np.ndarray:
    span = _span(name, text)
    if span is None:
        return values == UNKNOWN
    if not text:
        return np.ones(len(values), bool)
    return (values >= span[0]) & (values <= span[1])


def changed(a: Side, b: Side, change: str) -> np.ndarray:
    """[Q] bool, the questions that changed so from side a to side b, both of which must say.

    Raises:
      InputError: one side has scores and the other rewards, and ``better`` or ``worse`` is asked.
    """
    both = (a.place >= 0) & (b.place >= 0) & ~a.failed & ~b.failed
    lists = both & (a.k != UNKNOWN) & (b.k != UNKNOWN)
    if change == "list":
        return lists & (a.lists != b.lists)
    if change == "same":
        return lists & (a.lists == b.lists)
    if change == "even":
        return lists & (b.k == a.k)
    if change == "longer":
        return lists & (b.k > a.k)
    if change == "shorter":
        return lists & (b.k < a.k)
    if change == "answer":
        return both & (a.answers != b.answers)
    if a.value_name != b.value_name:
        raise InputError(
            f"change = '{change}' compares scores with scores or rewards with rewards; "
            f"'{a.name}' has {a.value_name}s and '{b.name}' {b.value_name}s"
        )
    # A failure is scored as well: 0 may become 1.
    known = (a.place >= 0) & (b.place >= 0)
    return known & ((b.value > a.value) if change == "better" else (b.value < a.value))


def ordered(table: QuestionTable, query: QuestionQuery, found: np.ndarray) -> np.ndarray:
    """Places of the questions found, in the order asked for; what is not known comes last."""
    places = np.flatnonzero(found)
    name, down = query.sort.removeprefix("-"), query.sort.startswith("-")
    if name == "file":
        return places[::-1] if down else places
    values = _sorted_by(table, query, name)[places]
    order = np.argsort(-values if down else values, kind="stable")  # NaN last, either way
    return places[order]


def _sorted_by(table: QuestionTable, query: QuestionQuery, name: str) -> np.ndarray:
    """[Q] float, what is sorted by; NaN where it is unknown."""
    a, b = side_of(table, query.a), side_of(table, query.b)
    if name == "needed":
        return _floats(table.needed)
    if name == "change":
        if a is None or b is None:
            raise InputError("sort = 'change' compares two sides; give a and b")
        return b.value - a.value
    side = {"a": a, "b": b}[name[0]]
    if side is None:
        raise InputError(f"sort = '{name}' asks for side {name[0]}, and none is given")
    if name.endswith(".k"):
        return _floats(side.k)
    if name.endswith(".value"):
        return side.value
    if side.best is None or side.worst is None:
        raise InputError(f"sort = '{name}' is of sampled lists, and '{side.name}' has one each")
    return side.best - side.worst


def _floats(counts: np.ndarray) -> np.ndarray:
    return np.where(counts == UNKNOWN, np.nan, counts)
