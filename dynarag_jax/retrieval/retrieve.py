"""Questions to their candidate passages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.embed import embed, passage_text
from dynarag_jax.retrieval.index import Index


def _check(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    row: dict[str, int],
    index: Index,
    n: int,
    keep_gold: bool,
) -> None:
    if not passages:
        raise InputError("retrieve: the corpus is empty")
    if index.count != len(passages):
        raise InputError(
            f"retrieve: the index holds {index.count} vectors, the corpus {len(passages)} "
            f"passages; build the index from this corpus"
        )
    if not 1 <= n <= len(passages):
        raise InputError(
            f"retrieve: n = {n} passages a question, must be from 1 to the corpus's {len(passages)}"
        )
    for question in questions:
        gold = dict.fromkeys(question.gold or ())
        for needed in gold:
            if needed not in row:
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
    encoder: LoadedEncoder,
    index: Index,
    n: int,
    keep_gold: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Question]:
    """Fill each question with the ``n`` passages that the retriever finds most similar.

    Args:
      questions: their ``passages`` are replaced, and ``expert``, a list of positions in them, is
        dropped.
      passages: the corpus, in the order of the index.
      encoder: the one that made the index's vectors.
      n: passages a question.
      keep_gold: the needed passages are always among the ``n`` (HotpotQA's distractor setting,
        arXiv 1809.09600): those the retriever missed replace the last of the others and stand
        where their own score puts them.
      progress: called with the number of questions embedded so far.

    Returns:
      The questions, passages in the retriever's order with ``score`` the inner product; ties in
      corpus order.

    Raises:
      InputError: empty corpus, an index of another size, ``n`` beyond the corpus, a needed passage
        that is not in the corpus, more needed passages than ``n``, or an approximate index that
        found fewer than ``n``.
    """
    row = {passage.id: i for i, passage in enumerate(passages)}
    _check(questions, passages, row, index, n, keep_gold)
    vectors = embed(
        encoder, [q.text for q in questions], prompt=encoder.query_prompt, progress=progress
    )
    positions, scores = index.search(vectors, n)
    found = [
        {int(p): float(s) for p, s in zip(*pair, strict=True) if p >= 0}
        for pair in zip(positions, scores, strict=True)
    ]
    if keep_gold:
        _keep_gold(questions, passages, row, encoder, vectors, found, n)
    result = []
    for question, scored in zip(questions, found, strict=True):
        if len(scored) < n:
            raise InputError(
                f"retrieve: the index found {len(scored)} of {n} passages for question "
                f"'{question.id}'; build it with a higher target_recall or at, or exact"
            )
        ranking = sorted(scored, key=lambda p: (-scored[p], p))
        filled = tuple(dataclasses.replace(passages[p], score=scored[p]) for p in ranking)
        result.append(dataclasses.replace(question, passages=filled, expert=None, expert_source=""))
    return result


def _keep_gold(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    row: dict[str, int],
    encoder: LoadedEncoder,
    vectors: np.ndarray,
    found: list[dict[int, float]],
    n: int,
) -> None:
    """Bring the needed passages that were missed into ``found``, at the cost of the last others."""
    needed = [{row[g] for g in question.gold or ()} for question in questions]
    missed = sorted(
        {p for gold, scored in zip(needed, found, strict=True) for p in gold - {*scored}}
    )
    # Indexes need not keep their vectors; the few that are wanted here are made again.
    texts = [passage_text(passages[p]) for p in missed]
    again = dict(zip(missed, embed(encoder, texts, prompt=encoder.passage_prompt), strict=True))
    for vector, gold, scored in zip(vectors, needed, found, strict=True):
        for p in gold - {*scored}:
            scored[p] = float(vector @ again[p])
        others = sorted((p for p in scored if p not in gold), key=lambda p: (-scored[p], p))
        for p in others[n - len(gold) :]:
            del scored[p]
