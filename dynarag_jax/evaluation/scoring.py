"""One question, one system: the benchmark's metrics of the answer, and what the list is worth.

Every question has a row for every system. A question that has no prediction, failed, or was
answered with nothing scores 0 and says so in its ``state``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import Prediction, prediction_to_json
from dynarag_jax.metrics.benchmarks import BENCHMARKS, headline_of, score_prediction
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.metrics.ranking import (
    answer_recall_at,
    asks_for_text,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    set_f1,
    set_scores,
)
from dynarag_jax.records import Question, passage_text

State = Literal["answered", "empty", "failed", "missing"]
STATES: tuple[State, ...] = ("answered", "empty", "failed", "missing")
CUTOFFS = (5, 10, 20)

Answerer = Callable[[Question, str | None], dict[str, float]]
"""From a question and an answer, None where there is none, to metrics in [0, 1]."""


@dataclass(frozen=True)
class Row:
    """What one system's prediction of one question is worth.

    Attributes:
      dataset: name of the benchmark, or of the form of answers where there is none.
      type: the question's.
      state: whether there was an answer; None where the system gives none at all.
      answer: metrics of the answer, the headline first; empty where the system gives none at all.
      lists: metrics of the list: those that apply to the question.
      k: passages in the list; None where it is unknown.
      tokens: of the passages that the generator read; None where it is unknown.
      thought_tokens: written before the list; None where the system does not think.
    """

    id: str
    system: str
    dataset: str
    type: str = ""
    state: State | None = "answered"
    answer: dict[str, float] = field(default_factory=dict)
    lists: dict[str, float] = field(default_factory=dict)
    k: int | None = None
    tokens: float | None = None
    thought_tokens: float | None = None

    def figures(self) -> dict[str, float]:
        """All numbers of the row by name."""
        sizes = {"k": self.k, "tokens": self.tokens, "thought_tokens": self.thought_tokens}
        return self.answer | self.lists | {n: float(v) for n, v in sizes.items() if v is not None}


# ---------------------------------------------------------------------------- datasets


def dataset_of(question: Question, given: str = "") -> str:
    """The benchmark that a question belongs to: its own word for it, else ``given``.

    A name is never guessed, from a path least of all. Benchmarks that are not known here count as
    none: their questions are scored by the form of their answers.
    """
    named = question.extra.get("dataset")
    named = named if isinstance(named, str) else ""
    return named if named in BENCHMARKS else given


_FORMS: Mapping[str, str] = {
    "short": "short answers",
    "label": "labels",
    "paragraph": "paragraphs",
}


def group_of(question: Question, given: str = "") -> str:
    """The heading under which a question stands in tables."""
    named = question.extra.get("dataset")
    if isinstance(named, str) and named:
        return named
    return given or _FORMS[question.task]


def require_positive(where: str, name: str, values: tuple[int, ...]) -> None:
    """Refuse numbers of passages below 1.

    Raises:
      InputError: one is.
    """
    if bad := [k for k in values if k < 1]:
        raise InputError(f"{where}: {name} = {bad[0]} must be at least 1")


def check_dataset(name: str) -> None:
    """Raise InputError if ``name`` is neither empty nor a benchmark."""
    if name:
        headline_of(name)


def by_benchmark(given: str = "", metrics: MetricsConfig = MetricsConfig()) -> Answerer:
    """The metrics of each question's benchmark; ``given`` for those that name none."""
    return lambda question, answer: score_prediction(
        question, answer or "", dataset_of(question, given), metrics.normalizer(question)
    )


# ---------------------------------------------------------------------------- lists


def list_scores(
    question: Question, ranking: Sequence[str], cutoffs: Iterable[int] = CUTOFFS
) -> dict[str, float]:
    """Ranking and set metrics of a list of passage ids, best first, those that apply.

    Needed passages count whether or not they are among the candidates, so that what retrieval
    missed is missed here, too. ``recall@k``, ``precision@k``, ``ndcg@k`` and ``mrr`` apply to
    questions that need some passage, ``set_f1`` and its parts to all whose needed passages are
    known, ``answer_recall@k`` to those asking for a phrase. At a cutoff beyond the end of a list,
    its ranks are empty.
    """
    scores: dict[str, float] = {}
    cutoffs = tuple(cutoffs)
    if question.gold is not None:
        sets = set_scores(ranking, question.gold)
        scores |= {"set_f1": sets.f1, "set_precision": sets.precision, "set_recall": sets.recall}
    if question.gold:
        for k in cutoffs:
            scores[f"recall@{k}"] = recall_at(ranking, question.gold, k)
        for k in cutoffs:
            scores[f"precision@{k}"] = precision_at(ranking, question.gold, k)
        for k in cutoffs:
            scores[f"ndcg@{k}"] = ndcg_at(ranking, question.gold, k)
        scores["mrr"] = reciprocal_rank(ranking, question.gold)
    if question.passages and asks_for_text(question):
        texts = {p.id: passage_text(p) for p in question.passages}
        read = [texts[i] for i in ranking]
        for k in cutoffs:
            scores[f"answer_recall@{k}"] = answer_recall_at(read, question.answers, k)
    return scores


def reached(cutoffs: Iterable[int], questions: Iterable[Question]) -> tuple[int, ...]:
    """The cutoffs that some question has candidates for, else the smallest.

    Beyond the last candidate nothing can be found, and recall stays what it is. All cutoffs, where
    the questions have no candidates: what was ranked is not known.
    """
    cutoffs = tuple(cutoffs)
    most = max((len(q.passages) for q in questions), default=0)
    within = tuple(k for k in cutoffs if not most or k <= most)
    return within or tuple(sorted(cutoffs)[:1])


# ---------------------------------------------------------------------------- rows


def state_of(prediction: Prediction | None) -> State:
    """Whether a question was answered."""
    if prediction is None:
        return "missing"
    if prediction.failed:
        return "failed"
    if prediction.answer is None:
        return "missing"
    return "answered" if prediction.answer.strip() else "empty"


def score_system(
    questions: Sequence[Question],
    system: str,
    predictions: Mapping[str, Prediction],
    *,
    dataset: str = "",
    cutoffs: Iterable[int] = CUTOFFS,
    answerer: Answerer | None = None,
) -> list[Row]:
    """A row for every question, in their order.

    Args:
      predictions: the system's, by question id; those of other questions are left aside.
      dataset: the benchmark of questions that name none.
      answerer: scores answers; by each question's benchmark unless given.

    Raises:
      InputError: the benchmark is not known, a question lacks what its metrics read, or a list does
        not fit its question.
    """
    check_dataset(dataset)
    cutoffs = tuple(cutoffs)
    if any(k < 1 for k in cutoffs):
        raise InputError(f"cutoffs = {' '.join(map(str, cutoffs))}: each must be at least 1")
    answerer = answerer or by_benchmark(dataset)
    answered = [predictions[q.id] for q in questions if q.id in predictions]
    answers = any(p.answer is not None for p in answered)
    lists = any(p.has_list() for p in answered)
    rows = []
    for question in questions:
        prediction = predictions.get(question.id)
        state = state_of(prediction)
        text = (
            prediction.answer if prediction is not None and state in ("answered", "empty") else None
        )
        ranking = prediction.ranking(question) if prediction is not None else None
        scores = list_scores(question, ranking or (), cutoffs) if lists else {}
        if ranking is None:  # no list is not the empty list, which may be right
            scores = dict.fromkeys(scores, 0.0)
        rows.append(
            Row(
                id=question.id,
                system=system,
                dataset=group_of(question, dataset),
                type=question.type,
                state=state if answers else None,
                answer=answerer(question, text) if answers else {},
                lists=scores,
                k=None if ranking is None else len(ranking),
                tokens=None if prediction is None else prediction.tokens,
                thought_tokens=None if prediction is None else prediction.thought_tokens,
            )
        )
    return rows


def row_to_json(row: Row) -> dict[str, Any]:
    """The JSON object of a row."""
    return {k: v for k, v in vars(row).items() if v is not None and v != {} and v != ""}


# ---------------------------------------------------------------------------- scored lines


def scored_line(
    prediction: Prediction, question: Question, system: str, answerer: Answerer
) -> dict[str, Any]:
    """A prediction's line with its headline metric, its set F1, and how many passages it needed.

    What is not known of the question is None.
    """
    ranking, needed = prediction.ranking(question), question.gold_list()
    gold = question.gold
    return prediction_to_json(prediction, question, system) | {
        "score": next(iter(answerer(question, prediction.answer).values())),
        "set_f1": None if gold is None or ranking is None else set_f1(ranking, gold),
        "needed": None if needed is None else len(needed),
    }


def row_of_line(line: Mapping[str, Any]) -> Row:
    """The row of a line that ``scored_line`` made; every dataset is one."""
    return Row(
        id=line["id"],
        system=line["system"],
        dataset="",
        type=line["type"],
        state="failed" if line.get("failed") else "answered" if line["answer"].strip() else "empty",
        answer={"score": line["score"]},
        lists={} if line["set_f1"] is None else {"set_f1": line["set_f1"]},
        k=line["k"],
        tokens=line["tokens"],
        thought_tokens=line.get("thought_tokens"),
    )
