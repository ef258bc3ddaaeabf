"""What every index is: vectors in corpus order that can be searched, saved and described."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike
from dynarag_jax.retrieval.index.manifest import write_index
from dynarag_jax.retrieval.index.rows import Rows, check_vectors

# Recall is measured, too, of so many of the best, which matter more than those after them.
FIRST = 10


BOUND = 1.645
"""standard errors below the mean that a one-sided bound of 95 % lies"""


@dataclass(frozen=True)
class Recall:
    """Recall of exact search's best, as measured when the index was built.

    Attributes:
      value: mean share of the exact best ``at`` that the index finds, in [0, 1].
      at: how many of the best.
      queries: on how many queries.
      source: ``queries`` given to ``build_index``, or ``passages`` of the corpus, where each one
        counts for nothing in its own search, so that ``at`` - 1 are to be found.
      target: what was asked for.
      first: the same of the exact best ``FIRST``: the mean share of them among the ``at`` found.
      first_target: what was asked for of these.
      error, first_error: standard errors of ``value`` and ``first`` over the queries.
    """

    value: float
    at: int
    queries: int
    source: str
    target: float
    first: float
    first_target: float
    error: float = 0.0
    first_error: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether both targets are reached."""
        return self.value >= self.target and self.first >= self.first_target

    @property
    def holds_beyond(self) -> bool:
        """Whether both are reached on other queries, too, by one-sided bounds of 95 %.

        Of many settings the cheapest one that reaches a target on a sample is one that the sample
        flatters.
        """
        value, first = self.value - BOUND * self.error, self.first - BOUND * self.first_error
        return value >= self.target and first >= self.first_target


@dataclass(frozen=True)
class Speed:
    """How fast an index answered when it was built, on the machine that built it.

    Attributes:
      single_ms: milliseconds a query, one at a time; the median.
      batched: queries a second, the whole sample at once.
      threads: processors of the machine.
      at: results a query.
    """

    single_ms: float
    batched: float
    threads: int
    at: int


def ranked(positions: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort by score, ties by position; exactly ``k`` columns, filled up with -1 and -inf."""
    # Most answers come in order and without ties: a query alone would wait for the sort.
    if scores.shape[1] > k or not (scores[:, 1:] < scores[:, :-1]).all():
        order = np.lexsort((positions, -scores), axis=-1)[:, :k]
        rows = np.arange(len(order))[:, None]
        positions, scores = positions[rows, order], scores[rows, order]
    positions = positions.astype(np.int32, copy=False)
    scores = scores.astype(np.float32, copy=False)
    if scores.shape[1] == k:
        return positions, scores
    fill = ((0, 0), (0, k - scores.shape[1]))
    return (
        np.pad(positions, fill, constant_values=-1),
        np.pad(scores, fill, constant_values=-np.inf),
    )


class Index(abc.ABC):
    """Passage vectors that can be searched.

    Attributes:
      kind: ``exact``, ``scann``, ``sharded`` or ``changed``.
      count, width: number of vectors, and of numbers in each.
      description: one line that says how it searches, for logs.
      recall: as measured at build, None where the search is exact by construction.
      speed: as measured at build, None where it was not.
      duplicates: vectors that equal an earlier one, None where nobody counted.
      vectors: fingerprint of the vectors it was built from, None where nobody took it.
      config: what it was built with, as ``IndexConfig`` names it; kept for building it again.
    """

    kind: str
    count: int
    width: int
    description: str
    recall: Recall | None = None
    speed: Speed | None = None
    duplicates: int | None = None
    vectors: str | None = None
    config: dict[str, Any] | None = None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` vectors of largest inner product with each query, best first.

        Args:
          queries: float [q, d].
          k: how many, at least 1.

        Returns:
          positions int32 [q, k] and scores float32 [q, k]; ties in corpus order; -1 and -inf where
          the index found fewer.

        Raises:
          InputError: wrong shape or type, NaN, or k below 1.
        """
        queries = check_vectors(queries, "search", self.width)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InputError(f"search: k must be an integer of at least 1, found {k!r}")
        if not len(queries):
            return np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)
        return ranked(*self._search(queries, min(int(k), self.count)), int(k))

    @abc.abstractmethod
    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores of at most ``k`` <= count results; -1 and -inf for none."""

    @abc.abstractmethod
    def _write(self, directory: Path) -> dict[str, Any]:
        """Write the data files; return what the manifest must say of them."""

    @abc.abstractmethod
    def stored_bytes(self) -> int:
        """About how much its data files take on the disk."""

    def rows(self) -> Rows | None:
        """The vectors as they were given, in float32; None where the index does not keep them."""
        return None

    def describe(self) -> str:
        """Several lines for people: how it searches, recall and speed measured, what is odd."""
        lines = [self.description]
        if (r := self.recall) is not None:
            lines.append(
                f"recall@{r.at} {r.value:.4f} of the {r.target:g} asked for, {r.first:.4f} of the "
                f"{r.first_target:g} for the best {min(FIRST, r.at)}, measured against exact "
                f"search on {r.queries} {_SOURCES[r.source]}"
            )
        elif self.kind == "exact":
            lines.append("recall 1 by construction")
        if (s := self.speed) is not None:
            lines.append(
                f"{s.single_ms:.2f} ms a query alone, {s.batched:,.0f} queries a second in batches "
                f"(top {s.at}, {s.threads} processors, measured when it was built)"
            )
        if self.duplicates:
            lines.append(
                f"{self.duplicates:,} of {self.count:,} vectors equal an earlier one: passages of "
                f"equal text"
            )
        return "\n".join(lines)

    def save(
        self,
        directory: PathLike,
        ids: Sequence[str],
        encoder: str,
        overwrite: bool = False,
    ) -> None:
        """Write the index as a directory, whole or not at all.

        Args:
          ids: passage ids in corpus order.
          encoder: fingerprint of the encoder that made the vectors.

        Raises:
          InputError: ``ids`` is not as long as the index, the directory exists and ``overwrite``
            is false, or the disk has no room.
        """
        if len(ids) != self.count:
            raise InputError(f"{directory}: {len(ids)} ids for an index of {self.count} vectors")
        facts = {
            "kind": self.kind,
            "encoder": encoder,
            "count": self.count,
            "dim": self.width,
            "dtype": "float32",
            "recall": dataclasses.asdict(self.recall) if self.recall else None,
            "speed": dataclasses.asdict(self.speed) if self.speed else None,
            "duplicates": self.duplicates,
            "vectors": self.vectors,
            "config": self.config,
        }
        write_index(directory, ids, facts, self._write, self.stored_bytes(), overwrite)


_SOURCES = {
    "queries": "of the queries given",
    "passages": "passages of the corpus, for want of queries",
}
