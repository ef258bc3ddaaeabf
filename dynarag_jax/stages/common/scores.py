"""A scorer over questions, with its progress shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.launch.context import Context
from dynarag_jax.records import Question
from dynarag_jax.retrieval import relevance
from dynarag_jax.retrieval.kept_scores import ScoreStore


def score_once(
    context: Context,
    scorer: relevance.PairScorer,
    output: Path,
    what: str,
    questions: Sequence[Question],
) -> dict[str, list[float]]:
    """The scores of every candidate by question id; ``output`` keeps them, a line a question.

    What the scorer said of these texts in an earlier stage of the run is taken over.
    """
    with (
        context.progress(sum(len(q.passages) for q in questions), what) as bar,
        ScoreStore(context.directory, scorer) as store,
    ):
        return relevance.score_once(scorer, questions, output, bar.update, store)
