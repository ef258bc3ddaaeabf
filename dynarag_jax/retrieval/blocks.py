"""Vectors kept block by block as they are made: a run that is cut off loses one block at most."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from dynarag_jax.files import atomic_write


def default_block() -> int:
    """Texts a block: minutes of work, and enough of them to be batched by length."""
    return 1024 if jax.default_backend() == "cpu" else 65_536


@dataclass(frozen=True)
class Blocks:
    """Finished blocks of an array [n, d] in a directory of their own.

    Each block also keeps the batch shapes that were in use at its end: batches are planned by
    them, so that what a continued run makes is equal, bit for bit, to one that was never stopped.

    Attributes:
      directory: names the texts and the encoder; blocks of others must lie elsewhere.
      size: texts a block.
    """

    directory: Path
    size: int

    def _path(self, first: int) -> Path:
        return self.directory / f"{first:012}.npz"

    def load(self, out: np.ndarray) -> tuple[int, set[tuple[int, int]]]:
        """Fill the beginning of ``out`` [n, d] with what is finished.

        Returns:
          How many rows that are, and the batch shapes in use there. A block that cannot be read,
          and all behind it, count as not finished.
        """
        shapes: set[tuple[int, int]] = set()
        for first in range(0, len(out), self.size):
            rows = out[first : first + self.size]
            try:
                with np.load(self._path(first)) as block:
                    vectors, used = block["vectors"], block["shapes"]
            except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
                return first, shapes
            if vectors.shape != rows.shape:
                return first, shapes
            rows[:] = vectors
            shapes = {(int(a), int(b)) for a, b in used}
        return len(out), shapes

    def save(self, first: int, vectors: np.ndarray, shapes: set[tuple[int, int]]) -> None:
        """Keep the block that begins at ``first``."""
        used = np.array(sorted(shapes), np.int64).reshape(-1, 2)
        with atomic_write(self._path(first), "wb") as stream:
            np.savez(stream, vectors=vectors, shapes=used)

    def remove(self) -> None:
        """Forget all blocks."""
        shutil.rmtree(self.directory, ignore_errors=True)
