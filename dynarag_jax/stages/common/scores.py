"""A scorer over questions, resumable: what stands in the scores' file is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.files import JsonlAppender, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.records import Question
from dynarag_jax.retrieval.relevance import Scorer, score_questions


def score_once(
    context: Context, scorer: Scorer, output: Path, what: str, questions: Sequence[Question]
) -> dict[str, list[float]]:
    """The scores of every candidate by question id; ``output`` keeps them, a line a question."""
    with (
        JsonlAppender(output) as rows,
        context.progress(sum(len(q.passages) for q in questions), what) as bar,
    ):
        bar.update(sum(len(q.passages) for q in questions if q.id in rows.done))
        todo = [q for q in questions if q.id not in rows.done]
        for question, scores in score_questions(scorer, todo):
            rows.append({"id": question.id, "scores": [round(float(s), 6) for s in scores]})
            bar.update(len(scores))
    return {row["id"]: row["scores"] for _, row in read_jsonl(output)}
