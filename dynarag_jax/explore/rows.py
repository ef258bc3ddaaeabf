"""Question sets and questions as the page lists them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynarag_jax.explore.columns import Columns
from dynarag_jax.explore.sources import QuestionSet
from dynarag_jax.explore.table import QuestionTable, Side


def set_json(
    source: QuestionSet, table: QuestionTable, questions: Columns | None, notes: list[str]
) -> dict[str, Any]:
    """What the page knows of a question set: what can be asked, and what is compared at first."""
    files = source.files
    predictions = [f for f in files if f.kind == "predictions"]
    sides = list(table.sides)
    a = next((f.first for f in predictions if f.first in sides), "")
    b = next((f.last for f in predictions if f.last in sides), "")
    rollouts = [s.name for s in table.sides.values() if s.value_name == "reward"]
    if not a and not b:
        # Rounds of rollouts over the same questions: the first beside the last.
        a = rollouts[0] if rollouts else (sides[0] if sides else "")
        b = rollouts[-1] if len(rollouts) > 1 else ""
    known = table.needed[table.needed >= 0]
    return {
        "name": source.name,
        "path": str(source.questions),
        "questions": len(table),
        "asked": len(questions) if questions is not None else None,
        "tasks": table.tasks,
        "types": [t for t in table.types if t],
        "needed": sorted({int(n) for n in np.unique(known)})[:50],
        "sides": [
            {
                "name": side.name,
                "value": side.value_name,
                "stage": files[side.file].name,
                "questions": int((side.place >= 0).sum()),
            }
            for side in table.sides.values()
        ],
        "a": a,
        "b": b if b != a else "",
        "notes": notes,
    }


def row_json(table: QuestionTable, i: int, a: Side | None, b: Side | None) -> dict[str, Any]:
    """A question's line in the page's list."""
    row: dict[str, Any] = {
        "id": table.ids[i],
        "text": table.texts[i],
        "task": table.tasks[table.task[i]] if table.task[i] >= 0 else "",
        "type": table.types[table.type[i]] if table.type[i] >= 0 else "",
        "needed": _count(table.needed[i]),
        "candidates": _count(table.candidates[i]),
    }
    for letter, side in (("a", a), ("b", b)):
        if side is not None and side.place[i] >= 0:
            row[letter] = {
                "k": _count(side.k[i]),
                "value": _number(side.value[i]),
                "failed": bool(side.failed[i]),
            }
            if side.best is not None and side.worst is not None:
                row[letter] |= {"best": _number(side.best[i]), "worst": _number(side.worst[i])}
    if a is not None and b is not None and "a" in row and "b" in row:
        row["changed"] = bool(a.lists[i] != b.lists[i])
    return row


def _count(value: Any) -> int | None:
    return None if value < 0 else int(value)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
