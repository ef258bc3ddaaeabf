"""Recall against exact search, and the cheapest settings of ScaNN that reach a target."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from dynarag_jax.retrieval.index.base import FIRST, Index, Recall, Speed
from dynarag_jax.retrieval.index.exact import ExactIndex
from dynarag_jax.retrieval.index.rows import Rows, check_vectors
from dynarag_jax.retrieval.index.scann import (
    BLOCK_WIDTH,
    ITEM_BYTES,
    PLACES,
    ScannIndex,
    ScannSettings,
)

Meter = Callable[[Index], Recall]

# Candidates scored again, as multiples of the results asked for.
REORDER = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# A vector scored again lies anywhere in memory, codes of a partition one after the other; measured
# on two CPUs, a byte of the first takes 1.7 times as long.
SCATTERED = 1.7
# Queries timed one at a time.
TIMED = 64


def sample_queries(
    rows: Rows, queries: np.ndarray | None, size: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Queries to measure with: [q, d], each one's own row in the corpus or -1, and their source.

    A sample of the queries given; of the corpus where none are.
    """
    rng = np.random.default_rng(0)
    if queries is not None:
        pool = check_vectors(queries, "build_index: queries", rows.shape[1])
        chosen = np.sort(rng.choice(len(pool), min(size, len(pool)), replace=False))
        return pool[chosen], np.full(len(chosen), -1), "queries"
    chosen = np.sort(rng.choice(len(rows), min(size, len(rows)), replace=False))
    return rows.take(chosen), chosen, "passages"


def recall_meter(
    rows: Rows,
    sample: np.ndarray,
    own: np.ndarray,
    source: str,
    at: int,
    target: float,
    first_target: float = 0.0,
) -> Meter:
    """A function that measures an index against exact search on ``sample``.

    A result counts if its exact score reaches the exact ``at``-th best (the ``FIRST``-th, for
    recall of the first), so that equal vectors do not look like misses.
    """

    def best(index: Index) -> np.ndarray:
        """Exact scores of what the index finds, [q, at], best first; -inf for the query itself."""
        positions, _ = index.search(sample, at)
        vectors = rows.take(np.maximum(positions, 0))
        scores = np.einsum("qd,qkd->qk", sample, vectors)
        scores[(positions < 0) | (positions == own[:, None])] = -np.inf
        return -np.sort(-scores, axis=1)

    exact = best(ExactIndex(rows, checked=True))

    def share(found: np.ndarray, of: int) -> tuple[float, float]:
        """The mean over the queries, and its standard error."""
        wanted = np.isfinite(exact[:, :of])
        last = np.where(wanted, exact[:, :of], np.inf).min(axis=1, keepdims=True)
        floor = last - 1e-6 * np.maximum(1.0, np.abs(last))
        hits = np.minimum((found >= floor).sum(axis=1), wanted.sum(axis=1))
        # A corpus of one has no neighbors to miss.
        each = np.where(wanted.any(axis=1), hits / np.maximum(1, wanted.sum(1)), 1)
        return float(each.mean()), float(each.std() / math.sqrt(len(each)))

    def measure(index: Index) -> Recall:
        nearest = best(index)
        (value, error), (first, first_error) = share(nearest, at), share(nearest, FIRST)
        return Recall(
            value, at, len(sample), source, target, first, first_target, error, first_error
        )

    return measure


def measure_speed(index: Index, sample: np.ndarray, at: int) -> Speed:
    """Time single queries and one batch; both after a search that warms up."""

    def seconds(queries: np.ndarray) -> float:
        began = time.perf_counter()
        index.search(queries, at)
        return time.perf_counter() - began

    seconds(sample[:1])
    single = statistics.median(seconds(sample[i : i + 1]) for i in range(min(TIMED, len(sample))))
    seconds(sample)
    return Speed(single * 1e3, len(sample) / seconds(sample), os.cpu_count() or 1, at)


def bytes_read(settings: ScannSettings, count: int, width: int) -> float:
    """What a query reads: codes of the partitions it looks into, and vectors scored again."""
    share = PLACES * settings.leaves_searched / settings.leaves if settings.leaves else 1.0
    codes = share * count * width / BLOCK_WIDTH / 2
    centers = 4 * settings.leaves * width
    again = SCATTERED * settings.reorder * width * ITEM_BYTES[settings.reorder_type]
    return codes + centers + again


def _reorders(at: int, count: int) -> Iterator[int]:
    # Beyond these, scoring everything exactly costs about as much.
    most = min(count, max(20 * at, count // 20))
    levels = [min(most, round(at * times)) for times in REORDER]
    yield from dict.fromkeys([*levels, most] if levels[-1] < most else levels)


def tune(index: ScannIndex, measure: Meter) -> tuple[ScannIndex, bool]:
    """The settings that read the fewest bytes among those that reach the target with certainty.

    For each number of candidates to score again, the fewest partitions that reach the target are
    found by doubling and bisection; recall grows with both. Looking stops where it would read more
    than the best so far. Bytes are counted, not time, so that a busy machine chooses alike.

    Returns:
      The index with its recall, and whether the target holds. If it does not, that recall is of all
      partitions searched and the most candidates scored again.
    """
    start, count, width = index.settings, index.count, index.width

    def cost(reorder: int, leaves: int) -> float:
        settings = dataclasses.replace(start, reorder=reorder, leaves_searched=leaves)
        return bytes_read(settings, count, width)

    def trial(reorder: int, leaves: int) -> ScannIndex:
        tried = index.tuned(dataclasses.replace(start, reorder=reorder, leaves_searched=leaves))
        tried.recall = measure(tried)
        return tried

    def holds(found: ScannIndex) -> bool:
        return found.recall is not None and found.recall.holds_beyond

    def narrowest(reorder: int, most: int) -> ScannIndex | None:
        """With the fewest partitions, at most ``most``; None if those do not reach the target."""
        low, high = 0, min(most, max(1, start.leaves // 32))
        while not holds(candidate_index := trial(reorder, high)):
            if high == most:
                return None
            low, high = high, min(most, 2 * high)
        while high - low > max(1, low // 16):
            middle = (low + high) // 2
            candidate = trial(reorder, middle)
            if holds(candidate):
                candidate_index, high = candidate, middle
            else:
                low = middle
        return candidate_index

    best: ScannIndex | None = None
    tried = 0
    # From the middle outwards: what is found first bounds what is looked at afterwards.
    for reorder in sorted(
        _reorders(start.at, count), key=lambda r: abs(math.log(r / start.at / 3))
    ):
        most = start.leaves
        if best is not None:
            spare = bytes_read(best.settings, count, width) - cost(reorder, 0)
            each = (cost(reorder, most) - cost(reorder, 0)) / most if most else 0.0
            most = min(most, math.ceil(spare / each) - 1) if each else 0
            if spare <= 0 or (start.leaves and most < 1):
                continue
        elif reorder < tried:
            continue  # a larger number of candidates did not reach the target either
        if (found := narrowest(reorder, most)) is not None:
            best = found
        elif best is None:
            tried = reorder
    return (best, True) if best else (trial(tried, start.leaves), False)
