"""One question in full, from its lines in the files: what the page shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import prediction_from_json
from dynarag_jax.explore.columns import Columns
from dynarag_jax.files import parse_object
from dynarag_jax.records import Question, question_from_json
from dynarag_jax.rollout_records import Rollout, rollout_from_json


class RecordsChanged(InputError):
    """A file is no longer what was read; it is being read again."""


def line_at(columns: Columns, paths: list[Path], place: int) -> tuple[dict[str, Any], str]:
    """A record's line, and what to call it in messages.

    Raises:
      RecordsChanged: another record stands there now, or none.
    """
    part = int(columns.arrays["part"][place]) if "part" in columns.arrays else 0
    path, offset = paths[part], int(columns.arrays["offset"][place])
    where = f"{path}, at byte {offset}"
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            value = parse_object(stream.read(int(columns.arrays["length"][place])), where)
    except (OSError, InputError):
        value = {}
    if str(value.get("id")) != columns.strings["id"][place]:
        raise RecordsChanged(f"{path}: changed since it was read; it is being read again")
    return value, where


def question_json(question: Question) -> dict[str, Any]:
    """A question and its candidates."""
    gold = question.gold
    return {
        "answers": list(question.answers),
        "task": question.task,
        "type": question.type,
        "needed": None if gold is None else list(question.gold_list() or ()),
        "absent": 0 if gold is None else len(set(gold) - {p.id for p in question.passages}),
        "expert": None
        if question.expert is None
        else {"list": list(question.expert), "source": question.expert_source},
        "passages": [
            {"id": p.id, "title": p.title, "text": p.text, "score": p.score}
            for p in question.passages
        ],
    }


def read_question(columns: Columns, path: Path, place: int) -> Question:
    """The question at a place of its file."""
    return question_from_json(*line_at(columns, [path], place))


def read_rollout(columns: Columns, paths: list[Path], place: int) -> Rollout:
    """The rollout at a place of its files."""
    return rollout_from_json(*line_at(columns, paths, place))


def rollout_json(rollout: Rollout) -> dict[str, Any]:
    """The lists sampled for a question, the best reward first."""
    return {
        "shown": rollout.shown,
        "policy": rollout.policy,
        "reference": rollout.reference,
        "same": rollout.policy == rollout.reference,
        "lists": [
            {
                "list": list(t.list),
                "count": t.count,
                "answer": t.answer,
                "terms": t.terms,
                "reward": t.reward,
                "missing": list(t.missing),
                "logp": t.logp,
                "reference_logp": t.reference_logp,
                "logps": list(t.logps),
                "weight": t.weight,
            }
            for t in sorted(rollout.trajectories, key=lambda t: (bool(t.missing), -t.reward))
        ],
    }


def prediction_json(
    columns: Columns, paths: list[Path], place: int, question: Question | None
) -> dict[str, Any]:
    """What a system chose and answered for a question, with a note where its ids do not agree."""
    value, where = line_at(columns, paths, place)
    one = prediction_from_json(value, where)
    positions = one.list
    note = ""
    if question is not None:
        at: Mapping[str, int] = {p.id: i for i, p in enumerate(question.passages, 1)}
        if positions is None and one.chosen is not None and all(c in at for c in one.chosen):
            positions = tuple(at[c] for c in one.chosen)
        elif positions is not None and one.chosen is not None:
            there = [question.passages[i - 1].id for i in positions if i <= len(at)]
            if there != list(one.chosen):
                note = "its passages have other ids in the question file now: that file was changed"
    return {
        "list": None if positions is None else list(positions),
        "answer": one.answer,
        "tokens": one.tokens,
        "read": one.read if one.read is not None else value.get("read"),
        "failed": one.failed,
        "score": value.get("score"),
        "set_f1": value.get("set_f1"),
        "note": note,
    }
