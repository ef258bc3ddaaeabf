"""The questions of a set as columns side by side: searched, filtered, sorted, counted for plots.

A *side* is what chose a list for each question: a system of an evaluation, or the lists sampled in
a rollout, of which the one sampled most often stands for the question. Two sides are compared,
``a`` (before) and ``b`` (after).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dynarag_jax.explore.columns import UNKNOWN, Columns


@dataclass(frozen=True)
class Side:
    """One side's column for every question of a table, in its order.

    Attributes:
      name: as the page and its addresses call it.
      value_name: score, of the answer; or reward, the mean over the sampled lists.
      place: [Q], the record's place in its file's columns; -1 where there is none.
      k: [Q], passages in the list; -1 where it is unknown.
      value: [Q], NaN where it is unknown.
      lists, answers: [Q], digests.
      failed: [Q], whether no list could be written or no answer given.
      best, worst: [Q], of a rollout the highest and the lowest reward.
      columns: of the file; a rollout's sampled lists are among them.
      file: place of the record file in its set.
    """

    name: str
    value_name: str
    place: np.ndarray
    k: np.ndarray
    value: np.ndarray
    lists: np.ndarray
    answers: np.ndarray
    failed: np.ndarray
    file: int
    columns: Columns
    best: np.ndarray | None = None
    worst: np.ndarray | None = None


@dataclass(frozen=True)
class QuestionTable:
    """The questions of a set that something was recorded of.

    Attributes:
      ids, texts, folded: of each question; the last for search, with its id.
      place: [Q], its place in the question file's columns; -1 where the file lacks it.
      task, type: [Q], codes of ``tasks`` and ``types``; -1 where the file lacks the question.
      needed, candidates: [Q], -1 where unknown.
      sides: by name, in the order of the stages.
    """

    ids: list[str]
    texts: list[str]
    folded: list[str]
    place: np.ndarray
    task: np.ndarray
    type: np.ndarray
    needed: np.ndarray
    candidates: np.ndarray
    tasks: list[str]
    types: list[str]
    sides: dict[str, Side] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def join(
    questions: Columns | None, files: Sequence[tuple[str, str, Columns | None]]
) -> QuestionTable:
    """Put a set's columns side by side.

    Args:
      questions: None where the file is gone.
      files: (name, kind, columns) of each record file; columns None where it cannot be read.
    """
    asked = questions.strings["id"] if questions is not None else []
    recorded: dict[str, None] = {}
    for _, _, columns in files:
        if columns is not None:
            recorded |= dict.fromkeys(columns.strings["id"])
    ids = [name for name in asked if name in recorded]
    known = set(ids)
    ids += [name for name in recorded if name not in known]
    at = {name: i for i, name in enumerate(ids)}
    where = {name: i for i, name in enumerate(asked)}
    place = np.array([where.get(name, -1) for name in ids], np.int64).reshape(-1)

    def taken(name: str, otherwise: int) -> np.ndarray:
        if questions is None or not len(questions):
            return np.full(len(ids), otherwise, np.int32)
        return np.where(place < 0, otherwise, questions.arrays[name][place]).astype(np.int32)

    texts = [questions.strings["text"][i] if questions and i >= 0 else "" for i in place.tolist()]
    names = questions.names if questions is not None else {"task": [], "type": []}
    table = QuestionTable(
        ids, texts, [f"{t}\n{i}".casefold() for t, i in zip(texts, ids, strict=True)], place,
        taken("task", -1), taken("type", -1), taken("needed", UNKNOWN),
        taken("candidates", UNKNOWN), names["task"], names["type"],
    )  # fmt: skip
    for number, (name, kind, columns) in enumerate(files):
        if columns is None:
            continue
        rows = np.array([at[i] for i in columns.strings["id"]], np.int64)
        if kind == "rollouts":
            _add(table, _free(table, name), "reward", number, columns, rows, np.arange(len(rows)))
            continue
        for code, system in enumerate(columns.names["system"]):
            own = np.flatnonzero(columns.arrays["system"] == code)
            _add(table, _free(table, system or name), "score", number, columns, rows[own], own)
    return table


def _free(table: QuestionTable, name: str) -> str:
    """A side's name, with a number where the set has one of that name."""
    found, count = name, 1
    while found in table.sides:
        count += 1
        found = f"{name} ({count})"
    return found


def _add(
    table: QuestionTable,
    name: str,
    value: str,
    file: int,
    columns: Columns,
    rows: np.ndarray,
    own: np.ndarray,
) -> None:
    """Add a side: the records ``own`` of a file, which are of the questions ``rows``."""
    count, arrays = len(table), columns.arrays

    def spread(values: np.ndarray, otherwise: object) -> np.ndarray:
        column = np.full(count, otherwise, values.dtype)
        column[rows] = values
        return column

    rollout = value == "reward"
    table.sides[name] = Side(
        name, value,
        place=spread(own, -1),
        k=spread(arrays["k"][own], UNKNOWN),
        value=spread(arrays["mean" if rollout else "score"][own], np.nan),
        lists=spread(arrays["list"][own], 0),
        answers=spread(arrays["answer"][own], 0),
        failed=spread(np.zeros(len(own), bool) if rollout else arrays["failed"][own], False),
        file=file,
        columns=columns,
        best=spread(arrays["best"][own], np.nan) if rollout else None,
        worst=spread(arrays["worst"][own], np.nan) if rollout else None,
    )  # fmt: skip
