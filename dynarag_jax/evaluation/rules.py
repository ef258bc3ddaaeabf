"""Rules without training for how many passages to read, from scores of the candidates.

Each takes one question's scores, f64[N], higher for better, and gives a list of 1-based positions,
best first; candidates of equal scores keep their order. ``tuning`` sets their parameters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import Chosen


def _checked(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"a rule needs one finite score a candidate, found {values.tolist()}")
    return values


def _best_first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")


def _first(order: np.ndarray, k: int) -> Chosen:
    return tuple(int(i) + 1 for i in order[:k])


def fixed_k(scores: ArrayLike, k: int) -> Chosen:
    """The ``k`` best."""
    return _first(_best_first(_checked(scores)), k)


def score_threshold(scores: ArrayLike, threshold: float) -> Chosen:
    """All whose score is at least ``threshold``; none where none is."""
    values = _checked(scores)
    return _first(_best_first(values), int((values >= threshold).sum()))


def largest_gap(scores: ArrayLike, more: int = 0, tail: float = 0.1) -> Chosen:
    """The best before the largest gap between successive scores (arXiv 2506.08479).

    Args:
      more: passages taken beyond the gap.
      tail: share of the lowest scores before which no gap is looked for; the first of equal gaps
        is taken, and at least one passage.
    """
    values = _checked(scores)
    order = _best_first(values)
    falling = values[order]
    looked = max(1, int(np.ceil((1 - tail) * (len(values) - 1))))
    gaps = (falling[:-1] - falling[1:])[:looked]
    k = int(gaps.argmax()) + 1 if len(gaps) else len(values)
    return _first(order, k + more)


def score_clusters(scores: ArrayLike, clusters: int = 2) -> Chosen:
    """The best of ``clusters`` groups into which the sorted scores fall (after arXiv 2511.14769).

    The groups are those of the least sum of squared distances to their means, over all divisions
    (Fisher 1958). The paper leaves how it clusters to the choice of its users.

    Args:
      clusters: where there are no more candidates than this, only the best is taken.
    """
    values = _checked(scores)
    order = _best_first(values)
    n = len(values)
    if n <= clusters:
        return _first(order, min(n, 1) if clusters > 1 else n)
    falling = values[order] - values.mean()
    sums = np.concatenate([[0.0], np.cumsum(falling)])
    squares = np.concatenate([[0.0], np.cumsum(falling**2)])

    def spread(start: int, stop: int) -> float:
        total = sums[stop] - sums[start]
        return squares[stop] - squares[start] - total * total / (stop - start)

    # cost[i]: the least of the scores from i on in so many groups; the first group is chosen last.
    cost = [spread(i, n) for i in range(n)]
    for groups in range(2, clusters):
        cost = [
            min((spread(i, j) + cost[j] for j in range(i + 1, n - groups + 2)), default=np.inf)
            for i in range(n)
        ]
    if clusters < 2:
        return _first(order, n)
    ends = range(1, n - clusters + 2)
    return _first(order, min(ends, key=lambda stop: spread(0, stop) + cost[stop]))


def cumulative_mass(scores: ArrayLike, share: float, temperature: float = 1.0) -> Chosen:
    """The fewest best whose probabilities, softmax(scores / temperature), sum to ``share``."""
    values = _checked(scores)
    if not len(values):
        return ()
    order = _best_first(values)
    weights = np.exp((values[order] - values.max()) / temperature)
    mass = np.cumsum(weights) / weights.sum()
    return _first(order, int(np.searchsorted(mass, share - 1e-12)) + 1)


def less_redundancy(
    scores: ArrayLike,
    similarity: ArrayLike,
    lengths: Sequence[int],
    redundancy: float,
    budget: int,
) -> Chosen:
    """Relevance less redundancy under a budget of tokens, greedily (after arXiv 2512.25052).

    The value of a list is the sum of its scores less ``redundancy`` times the sum of the
    similarities of its pairs. Of the candidates that fit, the one that adds most is taken, until
    none adds anything.

    Args:
      scores: here scaled to [0, 1] over the candidates.
      similarity: of candidates among each other, f64[N, N].
      lengths: tokens of each candidate.
      budget: tokens of a list at most; 0 for no limit.
    """
    values, alike = _checked(scores), np.asarray(similarity, np.float64)
    width = np.ptp(values) if len(values) else 0.0
    relevance = (values - values.min()) / width if width else np.ones_like(values)
    sizes = np.asarray(lengths)
    left = float(budget) if budget else np.inf
    chosen: list[int] = []
    free = np.ones(len(values), bool)
    gain = relevance.copy()
    while True:
        fitting = free & (sizes <= left) & (gain > 0)
        if not fitting.any():
            return tuple(i + 1 for i in chosen)
        best = int(np.where(fitting, gain, -np.inf).argmax())
        chosen.append(best)
        free[best] = False
        left -= sizes[best]
        gain -= redundancy * alike[best]


def word_similarity(texts: Sequence[str]) -> np.ndarray:
    """Cosines of the texts' word counts, f64[N, N]; 0 for texts without a word."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    places = {word: i for i, word in enumerate(dict.fromkeys(w for c in counts for w in c))}
    table = np.zeros((len(texts), len(places)))
    for row, own in zip(table, counts, strict=True):
        for word, count in own.items():
            row[places[word]] = count
    norms = np.linalg.norm(table, axis=1)
    table /= np.where(norms, norms, 1.0)[:, None]
    return table @ table.T
