"""Scoring files: questions and predictions in, rows of every system out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import Predictions, extra_ids, read_predictions
from dynarag_jax.evaluation.scoring import (
    CUTOFFS,
    Answerer,
    Row,
    group_of,
    reached,
    score_system,
)
from dynarag_jax.files import PathLike
from dynarag_jax.metrics.benchmarks import BENCHMARKS
from dynarag_jax.records import Question


@dataclass(frozen=True)
class Scored:
    """What was read, and the rows made of it.

    Attributes:
      rows: of each system, in the order of the questions. A system has rows of the datasets that it
        answered some question of, and there of every question.
      extra: of each system, how many predictions are of no question that was asked.
      unknown: datasets named by questions of which no benchmark is known: they are scored by the
        form of their answers.
    """

    questions: list[Question]
    predictions: Predictions
    rows: dict[str, list[Row]]
    extra: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What a reader of the tables must know of the files."""
        notes = [
            f"{count:,} predictions of '{system}' are of no question that was asked: left aside."
            for system, count in self.extra.items()
            if count
        ]
        notes += [
            f"No benchmark is known by the name '{name}': its questions are scored by the form of "
            f"their answers."
            for name in self.unknown
        ]
        return notes

    def flat(self) -> list[Row]:
        """The rows of all systems."""
        return [row for rows in self.rows.values() for row in rows]


def read_question_files(paths: Iterable[PathLike]) -> list[Question]:
    """The questions of several files.

    Raises:
      InputError: a file holds none, or an id stands in two of them.
    """
    questions: list[Question] = []
    seen: dict[str, PathLike] = {}
    for path in paths:
        of_file = read_questions(path)
        if not of_file:
            raise InputError(f"{path}: no questions")
        for question in of_file:
            if question.id in seen:
                raise InputError(
                    f"{path}: the id '{question.id}' is also in {seen[question.id]}; score the "
                    f"files one by one, or make their ids differ"
                )
            seen[question.id] = path
        questions += of_file
    return questions


def score_predictions(
    questions: Sequence[Question],
    predictions: Predictions,
    *,
    dataset: str = "",
    cutoffs: Iterable[int] = CUTOFFS,
    answerer: Answerer | None = None,
) -> Scored:
    """Rows of every system; see ``score_system`` for the arguments.

    Cutoffs beyond all questions' candidates are left out.

    Raises:
      InputError: a system answers none of the questions, or as for ``score_system``.
    """
    cutoffs = reached(cutoffs, questions)
    by_id = {q.id: q for q in questions}
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(group_of(question, dataset), []).append(question)
    rows: dict[str, list[Row]] = {}
    for system, predicted in predictions.items():
        if by_id.keys().isdisjoint(predicted):
            first = next(iter(predicted.values()))
            raise InputError(
                f"{first.where}: system '{system}' answers none of the questions: their ids look "
                f"like '{next(iter(by_id))}', the predictions' like '{first.id}'"
            )
        rows[system] = [
            row
            for group in groups.values()
            if any(q.id in predicted for q in group)
            for row in score_system(
                group, system, predicted, dataset=dataset, cutoffs=cutoffs, answerer=answerer
            )
        ]
    named = [q.extra.get("dataset") for q in questions]
    unknown = [n for n in named if isinstance(n, str) and n and n not in BENCHMARKS]
    return Scored(
        list(questions),
        predictions,
        rows,
        {system: len(extra_ids(by_id, predicted)) for system, predicted in predictions.items()},
        tuple(dict.fromkeys(unknown)),
    )


def score_files(
    question_paths: Iterable[PathLike],
    sources: Sequence[tuple[str, PathLike]],
    *,
    dataset: str = "",
    cutoffs: Iterable[int] = CUTOFFS,
    answerer: Answerer | None = None,
) -> Scored:
    """As ``score_predictions``, of files; ``sources`` are those of ``read_predictions``."""
    questions = read_question_files(question_paths)
    return score_predictions(
        questions,
        read_predictions(sources),
        dataset=dataset,
        cutoffs=cutoffs,
        answerer=answerer,
    )
