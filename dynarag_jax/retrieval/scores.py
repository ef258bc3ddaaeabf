"""How good a retrieval is, over questions whose needed passages or answers are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from dynarag_jax.metrics.intervals import Interval, bootstrap
from dynarag_jax.metrics.ranking import (
    answer_recall_at,
    asks_for_text,
    ndcg_at,
    recall_at,
    reciprocal_rank,
)
from dynarag_jax.records import Question, passage_text

CUTOFFS = (1, 5, 10, 20, 50, 100)


def retrieval_scores(
    questions: Iterable[Question],
    most: int,
    judged: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> dict[str, Interval]:
    """Means with bootstrap intervals, each over the questions for which it can be known.

    - ``recall@k``, ``ndcg@10`` and ``mrr`` against the relevant passages: those judged above 0, or
      the questions' ``gold``. Questions that need none are left out; ``n`` tells how many counted.
    - ``answer_recall@k``: whether one of the first k passages, title included, contains an answer,
      of questions that ask for a phrase, not for yes or no.

    Args:
      questions: with passages, best first; gone through once.
      most: passages that a question has at most; larger cutoffs are left out.
      judged: relevance by question id and passage id, in place of ``gold``.
    """
    cutoffs = [k for k in CUTOFFS if k <= most]
    names = [*(f"recall@{k}" for k in cutoffs), "ndcg@10", "mrr"]
    names += [f"answer_recall@{k}" for k in cutoffs]
    values: dict[str, list[float]] = {name: [] for name in names}
    for question in questions:
        if judged is None:
            grades: Mapping[str, float] = dict.fromkeys(question.gold or (), 1.0)
        else:
            grades = judged.get(question.id, {})
        relevant = {name for name, grade in grades.items() if grade > 0}
        if relevant:
            ids = [p.id for p in question.passages]
            for k in cutoffs:
                values[f"recall@{k}"].append(recall_at(ids, relevant, k))
            values["ndcg@10"].append(ndcg_at(ids, dict(grades), 10))
            values["mrr"].append(reciprocal_rank(ids, relevant))
        if asks_for_text(question):
            texts = [passage_text(p) for p in question.passages]
            first = next(
                (k for k, t in enumerate(texts, 1) if answer_recall_at([t], question.answers, 1)),
                None,
            )
            for k in cutoffs:
                values[f"answer_recall@{k}"].append(float(first is not None and first <= k))
    return {name: bootstrap(each, seed=seed) for name, each in values.items() if each}


RECALLS = (1, 5, 20)


def recalls(questions: Iterable[Question]) -> dict[str, float]:
    """Mean recall of the needed passages in the first 1, 5 and 20, where they are known.

    A cutoff beyond the longest list is that list's length.
    """
    values, longest = [], 0
    for question in questions:
        longest = max(longest, len(question.passages))
        if question.gold:
            ids = [p.id for p in question.passages]
            values.append([recall_at(ids, question.gold, k) for k in RECALLS])
    means = np.mean(values, axis=0) if values else ()
    return {f"recall@{min(k, longest)}": float(m) for k, m in zip(RECALLS, means, strict=False)}


def scores_table(scores: Mapping[str, Interval]) -> str:
    """The scores as text: percent, the interval, the number of questions."""
    lines = [f"{'':<20}{'mean %':>8}  {'95 % interval':<16}{'questions':>10}"]
    for name, one in scores.items():
        span = f"{100 * one.low:.1f} to {100 * one.high:.1f}"
        lines.append(f"{name:<20}{100 * one.mean:>8.1f}  {span:<16}{one.n:>10}")
    return "\n".join(lines)
