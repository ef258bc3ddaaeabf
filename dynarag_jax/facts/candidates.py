"""Candidates of questions whose needed passages are known: those, and the most confusable ones.

This is HotpotQA's distractor setting (Yang et al. 2018, section 2). There, a question retrieves its
distractors. A question alone rarely brings anything close to the later passages of a chain, which
share no name with it, so that they would stand out among the candidates. Here the distractors are
what retrieval finds near the question *and* near each needed passage, in equal measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage, Question

# Vectors [B, d] and a count k -> corpus rows [B, k], best first; a negative row is no result.
Search = Callable[[np.ndarray, int], np.ndarray]


def attach_candidates(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    question_vectors: np.ndarray,
    passage_vectors: np.ndarray,
    search: Search,
    n: int = 8,
) -> list[Question]:
    """Give each question ``n`` candidates: its needed passages and the most confusable others.

    Others are taken in turn from the ranking of the question and from the ranking of each needed
    passage, best first, until there are ``n``. Candidates stand in the order of their score, the
    inner product of question and passage vector, best first; ties keep the corpus's order.

    Args:
      questions: with ``gold`` known.
      passages: the corpus.
      question_vectors: ``[len(questions), d]``.
      passage_vectors: ``[len(passages), d]``, from the same encoder.
      search: the retriever: vectors ``[B, d]`` and ``k`` to corpus rows ``[B, k]``, best first.
      n: candidates per question.

    Returns:
      The questions with ``passages`` set, each passage with its score.

    Raises:
      InputError: gold is unknown, is not in the corpus or is more than ``n``, or the corpus has
        fewer than ``n`` passages.
    """
    if len(passages) < n:
        raise InputError(f"candidates: {n} are asked for, and the corpus has {len(passages)}")
    row = {passage.id: i for i, passage in enumerate(passages)}
    for question in questions:
        if question.gold is None:
            raise InputError(f"candidates: question '{question.id}' has no field 'gold'")
        for needed in question.gold:
            if needed not in row:
                raise InputError(
                    f"candidates: question '{question.id}' needs passage '{needed}', "
                    "which is not in the corpus"
                )
        if len(question.gold) > n:
            raise InputError(
                f"candidates: question '{question.id}' needs {len(question.gold)} passages, "
                f"more than the {n} candidates asked for"
            )
    # n results, and one more since a passage finds itself, hold enough that are not yet taken.
    k = min(n + 1, len(passages))
    by_question = np.asarray(search(question_vectors, k)) if len(questions) else np.zeros((0, k))
    wanted = sorted({row[g] for question in questions for g in question.gold or ()})
    by_passage = (
        dict(zip(wanted, np.asarray(search(passage_vectors[wanted], k)), strict=True))
        if wanted
        else {}
    )
    result = []
    for question, vector, ranking in zip(questions, question_vectors, by_question, strict=True):
        needed = [row[g] for g in question.gold or ()]
        rankings = [ranking, *(by_passage[i] for i in needed)]
        chosen = dict.fromkeys(needed)
        for place in range(k):
            for source in rankings:
                if len(chosen) < n and source[place] >= 0:
                    chosen.setdefault(int(source[place]))
        if len(chosen) < n:
            raise InputError(
                f"candidates: retrieval found only {len(chosen)} of {n} candidates for question "
                f"'{question.id}'; search more of the index"
            )
        rows = sorted(chosen)
        scores = passage_vectors[rows] @ vector
        result.append(
            dataclasses.replace(
                question,
                passages=tuple(
                    dataclasses.replace(passages[rows[i]], score=float(scores[i]))
                    for i in np.argsort(-scores, kind="stable")
                ),
            )
        )
    return result
