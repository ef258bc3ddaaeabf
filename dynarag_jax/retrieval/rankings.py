"""Rankings of passages: by embeddings, with the needed ones kept, without the question itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.fusion import Ranking
from dynarag_jax.retrieval.index import Index
from dynarag_jax.retrieval.shards import Vectors
from dynarag_jax.retrieval.store import Store

Identical = Literal["auto", "always", "never"]
"""Whether a passage that has the question's id is left out of its candidates: auto does it where
the passage is the question's text, too."""


def rows_by_id(passages: Sequence[Passage]) -> Callable[[str], int | None]:
    """From a passage's id to its row in the corpus; None for what is not there."""
    if isinstance(passages, Store):
        return passages.row
    return {passage.id: row for row, passage in enumerate(passages)}.get


def check(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    n: int,
    keep_gold: bool = False,
    row: Callable[[str], int | None] | None = None,
) -> int:
    """Find what cannot be retrieved, before anything is embedded.

    Args:
      row: of ``rows_by_id``, where it is at hand.

    Returns:
      How many questions need a passage that is not in the corpus.

    Raises:
      InputError: empty corpus, ``n`` beyond the corpus, or, to be kept, a needed passage that is
        not in the corpus or more needed passages than ``n``.
    """
    if not len(passages):
        raise InputError("retrieve: the corpus is empty")
    if n > len(passages):
        raise InputError(
            f"retrieve: the corpus has {len(passages)} passages, fewer than the {n} asked for; ask "
            f"for fewer with --passages"
        )
    if n < 1:
        raise InputError(f"retrieve: {n} passages are asked for; ask for at least 1")
    row = row or rows_by_id(passages)
    lacking = 0
    for question in questions:
        gold = dict.fromkeys(question.gold or ())
        lost = [needed for needed in gold if row(needed) is None]
        lacking += bool(lost)
        if keep_gold and lost:
            raise InputError(
                f"retrieve: question '{question.id}' needs passage '{lost[0]}', which is not in "
                f"the corpus, and keep_gold is to keep it"
            )
        if keep_gold and len(gold) > n:
            raise InputError(
                f"retrieve: question '{question.id}' needs {len(gold)} passages, more than n = {n}"
            )
    return lacking


def nearest(
    questions: Sequence[Question], queries: np.ndarray, index: Index, count: int, n: int
) -> list[Ranking]:
    """Each question's ``n`` best rows by embeddings, ties in corpus order.

    Args:
      count: passages of the corpus.

    Raises:
      InputError: the index is of another size, or found fewer than ``n``.
    """
    if index.count != count:
        raise InputError(
            f"retrieve: the index holds {index.count} vectors, the corpus {count} "
            f"passages; build the index from this corpus"
        )
    ranked = []
    for question, positions, scores in zip(questions, *index.search(queries, n), strict=True):
        there = positions >= 0
        if there.sum() < n:
            raise InputError(
                f"retrieve: the index found {there.sum()} of {n} passages for question "
                f"'{question.id}'; build it with a higher target_recall or at, or exact"
            )
        order = np.lexsort((positions, -scores))
        ranked.append((positions[order], scores[order]))
    return ranked


def with_gold(
    questions: Sequence[Question],
    rankings: Sequence[Ranking],
    queries: np.ndarray,
    vectors: np.ndarray | Vectors,
    row: Callable[[str], int | None],
    n: int,
) -> list[Ranking]:
    """Rankings by embeddings that always hold the needed passages.

    HotpotQA's distractor setting (arXiv 1809.09600 section 3), where the question retrieves the
    distractors: needed passages that the retriever missed replace the last of the others and stand
    where their own score puts them.
    """
    result = []
    for question, (positions, scores), query in zip(questions, rankings, queries, strict=True):
        scored = {int(p): float(s) for p, s in zip(positions, scores, strict=True)}
        needed = {place for g in question.gold or () if (place := row(g)) is not None}
        lost = sorted(needed - {*scored})
        if lost:
            rows = np.array(lost)
            gold_vectors = vectors.rows(rows) if isinstance(vectors, Vectors) else vectors[rows]
            scored |= dict(zip(lost, (gold_vectors @ query).tolist(), strict=True))
        others = sorted({*scored} - needed, key=lambda p: (-scored[p], p))
        for p in others[n - len(needed) :]:
            del scored[p]
        ranking = sorted(scored, key=lambda p: (-scored[p], p))
        result.append((np.array(ranking), np.array([scored[p] for p in ranking])))
    return result


def fill(question: Question, ranking: Ranking, passages: Sequence[Passage]) -> Question:
    """The question with the passages of a ranking, best first, and their scores.

    Its ``expert``, a list of positions in the passages it had, is dropped.
    """
    found = tuple(
        dataclasses.replace(passages[int(p)], score=float(s))
        for p, s in zip(*ranking, strict=True)
        if p >= 0
    )
    return dataclasses.replace(
        question, passages=found, expert=None, expert_source="", expert_thought=""
    )


def own_rows(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    row: Callable[[str], int | None],
    ignore: Identical,
) -> tuple[list[int | None], int]:
    """The passages that are the questions themselves, to be left out of their candidates.

    In ArguAna and its like, queries are passages of the corpus under their own ids, and each finds
    itself first; BEIR's evaluation leaves out hits that have the query's id.

    Args:
      ignore: see ``Identical``.

    Returns:
      For each question the row to leave out, or None; and how many questions share their id with a
      passage of another text, which stays.
    """
    rows: list[int | None] = []
    others = 0
    for question in questions:
        place = row(question.id) if ignore != "never" else None
        if place is not None and ignore == "auto":
            passage, text = passages[place], _bare(question.text)
            same = text in (_bare(passage.text), _bare(f"{passage.title} {passage.text}"))
            others += not same
            place = place if same else None
        rows.append(place)
    return rows, others


def _bare(text: str) -> str:
    return " ".join(text.lower().split())


def without(ranking: Ranking, left_out: int | None, n: int) -> Ranking:
    """The first ``n`` of a ranking, without one passage."""
    positions, scores = ranking
    if left_out is not None:
        kept = positions != left_out
        positions, scores = positions[kept], scores[kept]
    return positions[:n], scores[:n]
