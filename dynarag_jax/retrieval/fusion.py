"""Several rankings of one question made one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynarag_jax.errors import InputError

# Positions and their scores, best first.
Ranking = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fusion:
    """How the rankings of embeddings and of BM25 become one."""

    method: Literal["reciprocal_rank", "weighted"] = "reciprocal_rank"
    """reciprocal_rank: sum of 1 / (k + rank) (Cormack et al. 2009); weighted: sum of scores, each
    ranking's scaled to [0, 1] by its own lowest and highest"""
    k: int = 60
    """of reciprocal_rank: how little the first ranks stand out; the default is the authors'"""
    weight: float = 0.5
    """of the embeddings, from 0 to 1; BM25 has the rest"""
    depth: int = 100
    """how many of each ranking are looked at, at least as many as are asked for"""

    def __post_init__(self) -> None:
        if self.k < 0 or self.depth < 1:
            raise InputError(
                f"fusion: k = {self.k} must not be negative, depth = {self.depth} must be at "
                f"least 1"
            )
        if not 0 <= self.weight <= 1:
            raise InputError(f"fusion: weight = {self.weight} must lie in [0, 1]")


def fuse(rankings: Sequence[Ranking], weights: Sequence[float], fusion: Fusion, n: int) -> Ranking:
    """The ``n`` best of several rankings of one question.

    A passage that a ranking lacks gets nothing from it: 1 / (k + rank) of no rank, or the lowest
    scaled score, 0.

    Args:
      rankings: positions (-1 where there is none) and scores, best first.
      weights: one a ranking.

    Returns:
      positions int64 [m] and scores float64 [m], m at most ``n``; ties by position.
    """
    total: dict[int, float] = {}
    for (positions, scores), weight in zip(rankings, weights, strict=True):
        there = positions >= 0
        positions, scores = positions[there], np.asarray(scores[there], np.float64)
        if fusion.method == "reciprocal_rank":
            values = 1 / (fusion.k + 1 + np.arange(len(positions)))
        else:
            low, high = (scores.min(), scores.max()) if len(scores) else (0.0, 0.0)
            # One score alone, or all alike: they are the highest.
            values = (scores - low) / (high - low) if high > low else np.ones(len(scores))
        for position, value in zip(positions.tolist(), values.tolist(), strict=True):
            total[position] = total.get(position, 0.0) + weight * value
    best = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:n]
    return (
        np.array([position for position, _ in best], np.int64),
        np.array([score for _, score in best], np.float64),
    )
