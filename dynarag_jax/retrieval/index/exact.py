"""Exact search in JAX: every inner product, in blocks of queries and of passages."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.retrieval.index.base import Index
from dynarag_jax.retrieval.index.rows import Rows

# Scores [QUERY_BLOCK, PASSAGE_BLOCK] at a time: 64 MiB of them.
QUERY_BLOCK, PASSAGE_BLOCK = 256, 65_536
# Corpora up to this many bytes stay on the device between searches; larger ones are streamed.
RESIDENT = 2 << 30
# Scores among which only the largest is compared first.
GROUP = 64


@functools.partial(jax.jit, static_argnames="k")
def best_of_block(
    queries: jax.Array, block: jax.Array, valid: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Scores and rows of the best ``k`` among the first ``valid`` rows of a block.

    Ties in order of rows. Where a block is much larger than ``k``, the best ``k`` are sought in the
    ``k`` groups of rows whose largest scores are largest: each of these holds one score that stands
    before anything in another group, so nothing else can be among the best.
    """
    # HIGHEST: accelerators would round float32 inputs, and a rounded score is not exact search.
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(jnp.arange(len(block)) < valid, scores, -jnp.inf)
    if len(block) % GROUP or k * GROUP >= len(block):
        return jax.lax.top_k(scores, k)
    groups = scores.reshape(len(queries), -1, GROUP)
    # In the order of rows again, so that top_k, which takes the first of equals, keeps it.
    chosen = jnp.sort(jax.lax.top_k(groups.max(axis=-1), k)[1], axis=1)
    candidates = jnp.take_along_axis(groups, chosen[..., None], axis=1).reshape(len(queries), -1)
    best, where = jax.lax.top_k(candidates, k)
    rows = jnp.take_along_axis(chosen, where // GROUP, axis=1) * GROUP + where % GROUP
    return best, rows


class ExactIndex(Index):
    """Every inner product is computed; ties stand in corpus order."""

    kind = "exact"

    def __init__(self, vectors: Any, reason: str = "", checked: bool = False):
        """Index ``vectors`` [n, d], an array or shards of one.

        Args:
          reason: why the search is exact; added to the description.
          checked: the vectors are known to be finite.
        """
        self._rows = Rows(vectors)
        self.count, self.width = self._rows.shape
        if not self.count:
            raise InputError("index: there are no vectors; the corpus is empty")
        if not checked:
            for first, block in self._rows.blocks():
                finite = np.isfinite(block).all(axis=1)
                if not finite.all():
                    row = first + int(np.argmin(finite))
                    raise InputError(f"index: vector {row} holds NaN or infinity")
        self.reason = reason
        self.description = (
            f"exact search in JAX over {self.count:,} vectors of {self.width} numbers"
            + (f" ({reason})" if reason else "")
        )
        self._resident: list[jax.Array] | None = None

    @property
    def _blocks(self) -> int:
        return -(-self.count // PASSAGE_BLOCK)

    def _block(self, i: int) -> jax.Array:
        first = i * PASSAGE_BLOCK
        block = self._rows.block(first, min(self.count, first + PASSAGE_BLOCK))
        # All blocks of a corpus share one shape, so that the search compiles once.
        size = PASSAGE_BLOCK if self._blocks > 1 else -(-self.count // GROUP) * GROUP
        if len(block) < size:
            block = np.pad(block, ((0, size - len(block)), (0, 0)))
        return jnp.asarray(block)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._resident is None and self.stored_bytes() <= RESIDENT:
            self._resident = [self._block(i) for i in range(self._blocks)]
        rows = min(QUERY_BLOCK, 2 ** math.ceil(math.log2(len(queries))))
        scores = np.full((len(queries), 0), -np.inf, np.float32)
        positions = np.zeros((len(queries), 0), np.int64)
        for i in range(self._blocks):
            block = self._resident[i] if self._resident else self._block(i)
            start = i * PASSAGE_BLOCK
            valid = min(PASSAGE_BLOCK, self.count - start)
            blocks = []
            for first in range(0, len(queries), rows):
                part = queries[first : first + rows]
                padded = np.pad(part, ((0, rows - len(part)), (0, 0)))
                best = best_of_block(jnp.asarray(padded), block, valid, min(k, len(block)))
                blocks.append([np.asarray(x)[: len(part)] for x in best])
            new_scores, new_rows = (np.concatenate(x) for x in zip(*blocks, strict=True))
            scores = np.concatenate([scores, new_scores], axis=1)
            positions = np.concatenate([positions, new_rows + start], axis=1)
            if i:
                # Rows of padding score -inf; the corpus holds k real ones or more, which win.
                best = np.lexsort((positions, -scores), axis=-1)[:, :k]
                scores = np.take_along_axis(scores, best, axis=1)
                positions = np.take_along_axis(positions, best, axis=1)
        return positions[:, :k], scores[:, :k]

    def rows(self) -> Rows:
        """The vectors."""
        return self._rows

    def stored_bytes(self) -> int:
        """The vectors, four bytes a number."""
        return 4 * self.count * self.width

    def _write(self, directory: Path) -> dict[str, Any]:
        # Not through a memory map: where the disk is full, that would kill the process.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.width)}
        with (directory / "vectors.npy").open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for _, block in self._rows.blocks():
                stream.write(block.astype("<f4", copy=False).data)
        return {"reason": self.reason}
