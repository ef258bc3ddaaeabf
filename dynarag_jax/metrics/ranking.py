"""Ranking metrics over passage ids, set metrics of a chosen list, and the sizes of lists.

The ranked metrics take ids best first. An id that repeats counts once, at its best rank, so that no
score exceeds 1. They follow trec_eval; a question without relevant passages scores 0, as there, and
a table over questions of which some need nothing should average those that need something.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.metrics.answers import normalize
from dynarag_jax.metrics.matching import has_answer
from dynarag_jax.records import Question


def _top(ranked: Iterable[Hashable], k: int | None) -> list[Hashable]:
    if k is not None and k < 1:
        raise InputError(f"the cutoff k must be at least 1, found {k}")
    return list(dict.fromkeys(ranked))[:k]


def recall_at(ranked: Iterable[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Share of the relevant ids among the first ``k``; 0 where nothing is relevant."""
    wanted = set(relevant)
    if not wanted:
        return 0.0
    return sum(i in wanted for i in _top(ranked, k)) / len(wanted)


def precision_at(ranked: Iterable[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Share of relevant ids among the first ``k`` ranks; a rank left empty counts as a miss."""
    wanted = set(relevant)
    return sum(i in wanted for i in _top(ranked, k)) / k


def ndcg_at(
    ranked: Iterable[Hashable],
    relevant: Mapping[Hashable, float] | Collection[Hashable],
    k: int,
) -> float:
    """Normalized discounted cumulative gain of the first ``k`` (Järvelin and Kekäläinen 2002).

    Gain rel / log2(1 + rank), trec_eval's linear form. ``relevant`` maps ids to graded relevance,
    or is a collection of ids of relevance 1. Negative relevance gains nothing.
    """
    graded = isinstance(relevant, Mapping)
    gains = {i: max(relevant[i], 0.0) for i in relevant} if graded else dict.fromkeys(relevant, 1.0)

    def discounted(values: Iterable[float]) -> float:
        return sum(value / math.log2(rank + 1) for rank, value in enumerate(values, 1))

    ideal = discounted(sorted(gains.values(), reverse=True)[:k])
    got = discounted(gains.get(i, 0.0) for i in _top(ranked, k))
    return got / ideal if ideal > 0 else 0.0


def reciprocal_rank(
    ranked: Iterable[Hashable], relevant: Collection[Hashable], k: int | None = None
) -> float:
    """1 / rank of the first relevant id (within ``k`` if given), or 0; its mean is MRR."""
    wanted = set(relevant)
    ranks = (rank for rank, i in enumerate(_top(ranked, k), 1) if i in wanted)
    return 1 / next(ranks, math.inf)


def asks_for_text(question: Question) -> bool:
    """Whether a passage can be said to contain the answer: a phrase, and not yes or no."""
    if question.task != "short":
        return False
    return any(normalize(a) not in ("", "yes", "no", "noanswer") for a in question.answers)


def answer_recall_at(passages: Sequence[str], answers: Sequence[str], k: int) -> float:
    """1.0 if some of the first ``k`` passage texts contains an answer (``has_answer``), else 0.0.

    This is the top-k accuracy of DPR (Karpukhin et al. 2020).
    """
    if k < 1:
        raise InputError(f"the cutoff k must be at least 1, found {k}")
    return float(any(has_answer(passage, answers) for passage in passages[:k]))


# ---------------------------------------------------------------------------- sets


@dataclass(frozen=True)
class SetScores:
    """Precision, recall and F1 of a chosen set against the needed one, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def set_scores(chosen: Iterable[Hashable], needed: Iterable[Hashable]) -> SetScores:
    """Precision, recall and F1 of the chosen ids against the needed ids, order ignored.

    Choosing nothing where nothing is needed is right: 1 for all three. Where only one of the two
    sets is empty all three are 0.
    """
    a, b = set(chosen), set(needed)
    if not a and not b:
        return SetScores(1.0, 1.0, 1.0)
    shared = len(a & b)
    return SetScores(
        precision=shared / len(a) if a else 0.0,
        recall=shared / len(b) if b else 0.0,
        f1=2 * shared / (len(a) + len(b)),
    )


def set_f1(chosen: Iterable[Hashable], needed: Iterable[Hashable]) -> float:
    """The F1 of ``set_scores``."""
    return set_scores(chosen, needed).f1


# ---------------------------------------------------------------------------- sizes


@dataclass(frozen=True)
class Sizes:
    """How many passages the lists hold: the mean k and its spread over questions.

    Attributes:
      mean: mean k.
      sd: standard deviation over questions (population form).
      low, median, high: the smallest, middle and largest k.
      counts: ``counts[k]`` questions had k passages.
    """

    mean: float
    sd: float
    low: int
    median: float
    high: int
    counts: tuple[int, ...]


def sizes(ks: Sequence[int]) -> Sizes:
    """Mean and spread of the list lengths ``ks``, one for each question.

    Raises:
      InputError: ``ks`` is empty or holds a negative number.
    """
    if len(ks) == 0:
        raise InputError("no lists to describe: the set of questions is empty")
    values = np.asarray(ks, dtype=np.int64)
    if values.min() < 0:
        raise InputError(f"a list length must not be negative, found {values.min()}")
    return Sizes(
        mean=float(values.mean()),
        sd=float(values.std()),
        low=int(values.min()),
        median=float(np.median(values)),
        high=int(values.max()),
        counts=tuple(int(c) for c in np.bincount(values)),
    )


def size_matrix(needed: Sequence[int], chosen: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """``counts[needed k][chosen k]`` over questions, for the report's matrices.

    Raises:
      InputError: the two differ in length or hold a negative number.
    """
    if len(needed) != len(chosen):
        raise InputError(f"{len(needed)} needed sizes but {len(chosen)} chosen sizes")
    if len(needed) == 0:
        return ()
    if min(*needed, *chosen) < 0:
        raise InputError(f"a list length must not be negative, found {min(*needed, *chosen)}")
    counts = np.zeros((max(needed) + 1, max(chosen) + 1), dtype=np.int64)
    np.add.at(counts, (np.asarray(needed), np.asarray(chosen)), 1)
    return tuple(tuple(int(c) for c in row) for row in counts)
