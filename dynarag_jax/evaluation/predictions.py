"""Predictions as files: what systems answered, and which passages they read.

One object a line, keyed by the question's id:

    {"id": "q1", "answer": "Paris"}
    {"id": "q1", "system": "top-5", "list": [3, 1], "answer": "Paris", "tokens": 212}
    {"id": "q2", "system": "top-5", "list": [2], "answer": "", "failed": "its prompt is too long"}

``list`` holds 1-based positions in the question's candidates, ``chosen`` passage ids, best first;
either will do, and so will none, or a list without an answer (what ``eval.rerank`` writes). Lines
without ``system`` belong to one named like their file. Of a policy that thinks before it lists, a
line holds ``thought``, ``thought_tokens`` and how many of its thoughts were ``thoughts_cut``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.fields import Fields
from dynarag_jax.files import PathLike, read_jsonl
from dynarag_jax.records import Question, valid_list
from dynarag_jax.rollout_records import Thought


@dataclass(frozen=True)
class Prediction:
    """What one system made of one question.

    Attributes:
      where: file and line.
      answer: None where the line holds none.
      list: positions of the chosen passages, from 1; None where they are not told so.
      chosen: ids of the chosen passages; None where they are not told so.
      tokens: of the passages that the generator read.
      read: passages of the list that the generator's prompt had room for; None where it was all.
      failed: why there is no answer; empty where nothing failed.
      thought_tokens: written before the list; None where the system does not think.
    """

    id: str
    where: str = ""
    answer: str | None = None
    list: tuple[int, ...] | None = None
    chosen: tuple[str, ...] | None = None
    tokens: float | None = None
    read: int | None = None
    failed: str = ""
    thought_tokens: float | None = None

    def has_list(self) -> bool:
        """Whether the line says which passages were chosen, be it none."""
        return self.list is not None or self.chosen is not None

    def ranking(self, question: Question) -> tuple[str, ...] | None:
        """Ids of the chosen passages, best first; None where they are unknown.

        Raises:
          InputError: the list does not fit the question's candidates.
        """
        if self.chosen is not None:
            known = {p.id for p in question.passages}
            if known and (alien := [c for c in self.chosen if c not in known]):
                raise InputError(
                    f"{self.where}: field 'chosen' names '{alien[0]}', which is no candidate of "
                    f"question '{self.id}'; give the questions that the lists were made from"
                )
            return self.chosen
        if self.list is None:
            return None
        if wrong := valid_list(self.list, len(question.passages)):
            raise InputError(
                f"{self.where}: field 'list' {wrong}; question '{self.id}' has "
                f"{len(question.passages)} candidates here: give the questions that the lists "
                f"were made from"
            )
        return tuple(question.passages[i - 1].id for i in self.list)


Predictions = dict[str, dict[str, Prediction]]
"""By system, then by question id."""


def prediction_from_json(value: dict[str, Any], where: str) -> Prediction:
    """Read one prediction; InputError naming ``where`` and the field."""
    fields = Fields(where, value)
    prediction = Prediction(
        id=fields.string("id"),
        where=where,
        answer=fields.string("answer", blank=True) if fields.has("answer") else None,
        list=fields.integers("list") if fields.has("list") else None,
        chosen=fields.strings("chosen") if fields.has("chosen") else None,
        tokens=fields.number("tokens"),
        failed=fields.string("failed", default="", blank=True),
        thought_tokens=fields.number("thought_tokens"),
    )
    if prediction.answer is None and not prediction.has_list() and not prediction.failed:
        if "answer" in value:  # null: there is none
            return prediction
        fields.string("answer")  # says that it is missing, and what was meant
    return prediction


def thoughts_to_json(thoughts: Sequence[Thought]) -> dict[str, Any]:
    """What a line says of the thoughts before its list; nothing where there are none."""
    if not thoughts:
        return {}
    return {
        "thought": "\n\n".join(one.text for one in thoughts),
        "thought_tokens": sum(len(one.tokens) for one in thoughts),
        "thoughts_cut": sum(one.cut for one in thoughts),
    }


def prediction_to_json(prediction: Prediction, question: Question, system: str) -> dict[str, Any]:
    """A prediction's line of a file, with what a reader of the file alone wants to know."""
    line: dict[str, Any] = {"id": prediction.id, "system": system}
    if prediction.list is not None:
        line |= {
            "type": question.type,
            "list": list(prediction.list),
            "chosen": [question.passages[i - 1].id for i in prediction.list],
        }
    line["answer"] = prediction.answer
    if prediction.list is not None:
        line |= {"k": len(prediction.list), "tokens": prediction.tokens}
    if prediction.thought_tokens is not None:
        line["thought_tokens"] = prediction.thought_tokens
    if prediction.read is not None:
        line["read"] = prediction.read
    return line | ({"failed": prediction.failed} if prediction.failed else {})


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")


def split_name(source: str) -> tuple[str, str]:
    """``NAME=PATH`` as a name and a path; the name is empty where none is given."""
    name, equals, path = source.partition("=")
    return (name, path) if equals and not Path(source).exists() else ("", source)


def read_predictions(sources: Sequence[tuple[str, PathLike]]) -> Predictions:
    """Read files of predictions; a system may be spread over several of them.

    Args:
      sources: (name, path); a name that is not empty stands for the file's only system, or before
        the names of its systems.

    Raises:
      InputError: a line is no prediction, or two are of the same system and question.
    """
    predictions: Predictions = {}
    stems = Counter(_stem(Path(path)) for _, path in sources)
    for name, given in sources:
        path = Path(given)
        stem = _stem(path)
        default = name or (stem if stems[stem] == 1 else f"{path.parent.name}/{stem}")
        of_file: Predictions = {}
        for number, value in read_jsonl(path):
            where = f"{path}:{number}"
            prediction = prediction_from_json(value, where)
            system = Fields(where, value).string("system", default=default)
            _add(of_file.setdefault(system, {}), prediction, system)
        if name and len(of_file) == 1:
            of_file = dict(zip([name], of_file.values(), strict=True))
        elif name:
            of_file = {f"{name}: {system}": rows for system, rows in of_file.items()}
        for system, rows in of_file.items():
            into = predictions.setdefault(system, {})
            for prediction in rows.values():
                _add(into, prediction, system)
    if not predictions:
        raise InputError(f"{sources[0][1] if sources else 'predictions'}: no predictions")
    return predictions


def _add(rows: dict[str, Prediction], prediction: Prediction, system: str) -> None:
    if prediction.id in rows:
        raise InputError(
            f"{prediction.where}: question '{prediction.id}' is answered twice by system "
            f"'{system}', first in {rows[prediction.id].where}; keep one, or name the files "
            f"apart: NAME=FILE"
        )
    rows[prediction.id] = prediction


def extra_ids(questions: Mapping[str, Question], rows: Mapping[str, Prediction]) -> list[str]:
    """Predictions of questions that were not asked, in the order of the file."""
    return [i for i in rows if i not in questions]
