"""Lists out of scores of the candidates: by a pointwise scorer, or by a judge's grades."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dynarag_jax.files import PathLike, read_jsonl
from dynarag_jax.parts import SharedRows
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.records import Question, passage_text
from dynarag_jax.retrieval.relevance import above
from dynarag_jax.rewards.judge import Asked, Judge

JUDGED = 64
"""Questions whose passages are graded together."""

RELEVANCE = """\
How useful is a passage for answering a question?

Question: {question}
Passage: {answer}

Give full marks to a passage that answers the question or states a fact that an answer needs, and \
the lowest to one that does not help. A passage on the same subject that states nothing of use \
does not help.
Reply with one line and nothing else: Score: a number from {lowest} to {highest}"""
"""What a judge is asked about a passage."""

Scored = Mapping[str, Sequence[float] | None]
"""The scores of a question's candidates by its id; None where one of them is missing."""


def lists_by_scores(
    questions: Sequence[Question], scored: Scored, source: str, threshold: float, limit: int
) -> list[Question]:
    """The questions with the paper's lists: candidates above a threshold, best first.

    A question whose scores are missing has no list: the one without may be the best.
    """
    labeled = []
    for question in questions:
        scores = scored[question.id]
        labeled.append(
            replace(question, expert=None, expert_source="", expert_thought="")
            if scores is None
            else replace(
                question,
                expert=above(scores, threshold, limit),
                expert_source=f"{source}, above {threshold:g}",
            )
        )
    return labeled


def judge_passages(
    judge: Judge,
    questions: Sequence[Question],
    output: PathLike,
    progress: Callable[[int], object] = lambda n: None,
) -> Scored:
    """A judge's grades of every candidate; ``output`` keeps them, a line a question.

    In a run of several processes each asks of its share of the questions, and gets all grades.
    """
    team = ProcessTeam(None)
    # What stands of an attempt that was cut off is made anew: missing grades are asked for again.
    with SharedRows(output, team, afresh=True) as rows:
        for every, group in team.groups(questions, JUDGED):
            requests = [Asked(q.text, (), passage_text(p)) for q in group for p in q.passages]
            grades = iter(judge.score(requests))
            for question in group:
                scores = [next(grades).score for _ in question.passages]
                rows.append({"id": question.id, "scores": None if None in scores else scores})
            progress(sum(len(q.passages) for q in every))
        rows.finish(question.id for question in questions)
    return {row["id"]: row["scores"] for _, row in read_jsonl(output)}
