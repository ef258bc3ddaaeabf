"""Many texts of unequal length through a model: buckets that cost least, results as they come."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.sharding import named

# Batches handed to the devices before the first result is fetched.
_IN_FLIGHT = 3
# What one more batch shape may cost in padding elsewhere, in floating-point operations: about half
# of what a device does while it compiles a shape, since a shape serves the calls to come as well.
_SHAPE_FLOP = {"cpu": 7e10}
_SHAPE_FLOP_ACCELERATOR = 2e13

# One row of tokens a text; several columns where a model reads more than one number a token.
Rows = Sequence[Sequence[int]]


class Bucket(NamedTuple):
    """Texts padded to one length: which, and the fixed shape [rows, length] of their batches."""

    texts: np.ndarray
    rows: int
    length: int


def _candidate_lengths(longest: int) -> list[int]:
    """Padded lengths to choose from: multiples of 4, then of a 32nd to a 16th of the length."""
    lengths, step = [4], 4
    while lengths[-1] < longest:
        lengths.append(lengths[-1] + step)
        step = max(4, 2 ** (lengths[-1].bit_length() - 5))
    return lengths


def plan(
    lengths: np.ndarray,
    limit: int,
    batch_tokens: int,
    devices: int,
    overhead: float,
    compiled: set[tuple[int, int]],
) -> list[Bucket]:
    """Divide texts into the buckets that cost least.

    The cost is all padded word pieces, empty rows included, plus ``overhead`` for every shape that
    is not in ``compiled`` yet; the optimum over all divisions by length, by dynamic programming.

    Args:
      lengths: word pieces of each text, [n].
      limit: no bucket is longer; at least ``lengths.max()``.
      batch_tokens: word pieces of a full batch, padding included.
      devices: rows are a multiple of this.
      overhead: cost of a new shape, in word pieces.
      compiled: shapes (rows, length) that are free.
    """
    order = np.argsort(lengths, kind="stable")
    ends = [min(c, limit) for c in _candidate_lengths(limit)]
    below = np.searchsorted(lengths[order], ends, side="right")

    def rows(length: int, count: int) -> int:
        # Powers of two, so that calls of various sizes share their shapes.
        needed = 2 ** math.ceil(math.log2(math.ceil(count / devices)))
        return min(full_rows(length, batch_tokens, devices), devices * needed)

    def cost(length: int, count: int) -> float:
        shape = (rows(length, count), length)
        padded = math.ceil(count / shape[0]) * shape[0] * length
        return padded + (0 if shape in compiled else overhead)

    # best[j]: cost of all texts up to ends[j - 1], and where the last bucket starts.
    best: list[tuple[float, int]] = [(0.0, 0)]
    starts = [0, *(int(b) for b in below)]
    for j in range(1, len(starts)):
        best.append(
            min(
                (best[i][0] + (cost(ends[j - 1], c) if (c := starts[j] - starts[i]) else 0.0), i)
                for i in range(j)
            )
        )
    buckets, j = [], len(ends)
    while j:
        i = best[j][1]
        if count := starts[j] - starts[i]:
            length = ends[j - 1]
            buckets.append(Bucket(order[starts[i] : starts[j]], rows(length, count), length))
        j = i
    return buckets[::-1]


def full_rows(length: int, batch_tokens: int, devices: int) -> int:
    """Texts in a full batch of a padded length: a power of two on every device."""
    return devices * 2 ** int(math.log2(max(1, batch_tokens // length // devices)))


def default_batch_tokens(platform: str = "") -> int:
    """Tokens of a full batch on one device of a platform; empty is this machine's."""
    if (platform or jax.default_backend()) == "cpu":
        return max(1024, 512 * (os.cpu_count() or 1))
    return 65_536


class Batches:
    """A jitted function over texts, in batches of few shapes, divided among a mesh's devices.

    Args:
      run: (tokens [B, T], lengths [B], further columns [B, T] ...) to an array [B, ...].
      longest: no text has more tokens.
      weights: multiplications a token takes, to weigh padding against one more compilation.
      batch_tokens: tokens of a full batch per device, padding included; None fits the machine.

    Raises:
      InputError: ``batch_tokens`` is below 1.
    """

    def __init__(
        self,
        run: Callable[..., jax.Array],
        mesh: Mesh,
        longest: int,
        weights: float,
        batch_tokens: int | None = None,
    ):
        self.run, self.mesh, self.longest = run, mesh, longest
        self.tokens = default_batch_tokens() if batch_tokens is None else batch_tokens
        if self.tokens < 1:
            raise InputError(f"batch_tokens must be at least 1, found {self.tokens}")
        flop = _SHAPE_FLOP.get(jax.default_backend(), _SHAPE_FLOP_ACCELERATOR)
        self._overhead = flop / (2 * weights)
        self.compiled: set[tuple[int, int]] = set()
        """batch shapes (rows, length) in use so far"""

    def shapes(self, lengths: Sequence[int]) -> set[tuple[int, int]]:
        """The batch shapes that texts of these lengths would run in, were none compiled yet."""
        sizes = np.array(lengths)
        buckets = plan(sizes, self.longest, self.tokens, self.mesh.size, self._overhead, set())
        return {(bucket.rows, bucket.length) for bucket in buckets}

    def settle(self, lengths: Sequence[int], columns: int) -> Iterator[tuple[int, int]]:
        """Compile batches of these padded lengths, and use no other shapes from then on.

        For who answers requests as they come, and must not compile while somebody waits.

        Args:
          lengths: of which the last must be ``longest``; multiples of 4 (of 8 and more beyond 128).
          columns: of what ``run`` reads, the tokens among them.

        Yields:
          each shape (rows, length) when it is compiled.

        Raises:
          ValueError: no batch of one of these lengths is ever planned.
        """
        ends = {min(c, self.longest) for c in _candidate_lengths(self.longest)}
        if wrong := set(lengths) - ends:
            raise ValueError(f"no batch is ever {min(wrong)} tokens long")
        wanted = []
        for length in lengths:
            full = max(1, self.tokens // length // self.mesh.size)
            most = int(math.log2(full))
            wanted += [(self.mesh.size * 2**power, length) for power in range(most + 1)]
        for rows, length in wanted:
            padded = [np.zeros((rows, length), np.int32) for _ in range(columns)]
            self._put_and_run(np.ones(rows, np.int32), padded).block_until_ready()
            self.compiled.add((rows, length))
            yield rows, length
        self.compiled = set(wanted)
        self._overhead = math.inf

    def _put_and_run(self, used: np.ndarray, padded: Sequence[np.ndarray]) -> jax.Array:
        by_rows = (named(self.mesh, ("batch", None)), named(self.mesh, ("batch",)))
        tokens, *others = (jax.device_put(column, by_rows[0]) for column in padded)
        with jax.set_mesh(self.mesh):
            return self.run(tokens, jax.device_put(used, by_rows[1]), *others)

    def through(self, columns: Sequence[Rows]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (which texts, their results), in the order in which batches finish."""
        lengths = np.array([len(row) for row in columns[0]])
        if not lengths.size:
            return
        buckets = plan(
            lengths, self.longest, self.tokens, self.mesh.size, self._overhead, self.compiled
        )
        waiting: deque[tuple[np.ndarray, jax.Array]] = deque()

        def fetch() -> tuple[np.ndarray, np.ndarray]:
            which, result = waiting.popleft()
            return which, np.asarray(result)[: len(which)]

        for which, used, padded in _batches(columns, buckets):
            self.compiled.add(padded[0].shape)
            waiting.append((which, self._put_and_run(used, padded)))
            if len(waiting) >= _IN_FLIGHT:
                yield fetch()
        while waiting:
            yield fetch()


def _batches(
    columns: Sequence[Rows], buckets: Sequence[Bucket]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """Yield (which texts, lengths [rows], columns [rows, T]); the last rows may be empty."""
    for bucket in buckets:
        for first in range(0, len(bucket.texts), bucket.rows):
            which = bucket.texts[first : first + bucket.rows]
            padded = [np.zeros((bucket.rows, bucket.length), np.int32) for _ in columns]
            lengths = np.zeros(bucket.rows, np.int32)
            for row, text in enumerate(which):
                lengths[row] = len(columns[0][text])
                for array, column in zip(padded, columns, strict=True):
                    array[row, : lengths[row]] = column[text]
            yield which, lengths, padded
