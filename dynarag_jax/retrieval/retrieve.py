"""Questions to their candidate passages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.index import Index


def check(
    questions: Sequence[Question], passages: Sequence[Passage], n: int, keep_gold: bool = False
) -> None:
    """Find what ``retrieve`` would refuse, before anything is embedded.

    Raises:
      InputError: empty corpus, ``n`` beyond the corpus, a needed passage that is not in the corpus,
        or, to be kept, more needed passages than ``n``.
    """
    if not passages:
        raise InputError("retrieve: the corpus is empty")
    if n > len(passages):
        raise InputError(
            f"retrieve: the corpus has {len(passages)} passages, fewer than the {n} asked for; ask "
            f"for fewer with --passages"
        )
    if n < 1:
        raise InputError(f"retrieve: {n} passages are asked for; ask for at least 1")
    known = {passage.id for passage in passages}
    for question in questions:
        gold = dict.fromkeys(question.gold or ())
        for needed in gold:
            if needed not in known:
                raise InputError(
                    f"retrieve: question '{question.id}' needs passage '{needed}', "
                    f"which is not in the corpus"
                )
        if keep_gold and len(gold) > n:
            raise InputError(
                f"retrieve: question '{question.id}' needs {len(gold)} passages, more than n = {n}"
            )


def retrieve(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    queries: np.ndarray,
    vectors: np.ndarray,
    index: Index,
    n: int,
    keep_gold: bool = False,
) -> list[Question]:
    """Give each question its ``n`` best passages by the inner product of their embeddings.

    Args:
      questions: their ``passages`` are replaced, and ``expert``, a list of positions in them, is
        dropped.
      passages: the corpus.
      queries: ``[len(questions), d]`` float32, the questions' embeddings.
      vectors: ``[len(passages), d]`` float32, the passages', of the same encoder.
      index: over ``vectors``.
      n: passages a question.
      keep_gold: the needed passages are always among the ``n`` (HotpotQA's distractor setting,
        arXiv 1809.09600 section 3: the question retrieves the distractors): those the retriever
        missed replace the last of the others and stand where their own score puts them.

    Returns:
      The questions, passages in the retriever's order with ``score`` the inner product; ties in
      corpus order.

    Raises:
      InputError: what ``check`` finds, an index of another size, or an approximate index that found
        fewer than ``n``.
    """
    check(questions, passages, n, keep_gold)
    if index.count != len(passages):
        raise InputError(
            f"retrieve: the index holds {index.count} vectors, the corpus {len(passages)} "
            f"passages; build the index from this corpus"
        )
    row = {passage.id: i for i, passage in enumerate(passages)}
    result = []
    for question, query, positions, scores in zip(
        questions, queries, *index.search(queries, n), strict=True
    ):
        scored = {int(p): float(s) for p, s in zip(positions, scores, strict=True) if p >= 0}
        if keep_gold:
            needed = {row[g] for g in question.gold or ()}
            for p in needed - {*scored}:
                scored[p] = float(vectors[p] @ query)
            others = sorted({*scored} - needed, key=lambda p: (-scored[p], p))
            for p in others[n - len(needed) :]:
                del scored[p]
        if len(scored) < n:
            raise InputError(
                f"retrieve: the index found {len(scored)} of {n} passages for question "
                f"'{question.id}'; build it with a higher target_recall or at, or exact"
            )
        ranking = sorted(scored, key=lambda p: (-scored[p], p))
        filled = tuple(dataclasses.replace(passages[p], score=scored[p]) for p in ranking)
        result.append(dataclasses.replace(question, passages=filled, expert=None, expert_source=""))
    return result
