"""The vectors of an index: one array, or the shards that embedding wrote, without a copy of them.

A corpus of 21 million passages is 64 GB of vectors. They are looked at in blocks, and only what is
looked at is brought into memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError

BLOCK = 65_536
# Rows hashed at a time: the products take eight bytes a number.
_HASHED = 4096


def check_vectors(vectors: Any, what: str, width: int | None = None) -> np.ndarray:
    """``vectors`` as a contiguous float32 array [n, d]; InputError if it cannot be searched."""
    array = np.asarray(vectors)
    _check_shape(array, what, width)
    # A sum is not finite if a number is not: a query alone is checked at once.
    if len(array) == 1 and math.isfinite(array.sum()):
        return np.ascontiguousarray(array, np.float32)
    for first in range(0, len(array), BLOCK):
        _check_finite(array[first : first + BLOCK], what, first)
    return np.ascontiguousarray(array, np.float32)


def _check_shape(array: np.ndarray, what: str, width: int | None) -> None:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(
            f"{what}: expected floating-point vectors [n, d], found {array.dtype} "
            f"{list(array.shape)}"
        )
    if width is not None and array.shape[1] != width:
        raise InputError(
            f"{what}: vectors have {array.shape[1]} numbers, those of the index {width}; "
            f"embed both with the same encoder"
        )


def _check_finite(block: np.ndarray, what: str, first: int) -> None:
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        raise InputError(f"{what}: vector {first + int(np.argmin(finite))} holds NaN or infinity")


class Rows:
    """Rows of one or several arrays [n_i, d], as if they were one array [n, d].

    Attributes:
      parts: the arrays, in memory or memory-mapped.
      shape: (n, d).
    """

    def __init__(self, vectors: Any, what: str = "index"):
        """``vectors``: an array [n, d], a Rows, or a list of arrays that share d.

        Raises:
          InputError: not floating-point, not of two dimensions, or of several widths.
        """
        if isinstance(vectors, Rows):
            self.parts: list[np.ndarray] = vectors.parts
        else:
            # A list of numbers or of rows is an array; a list of such arrays is shards.
            shards = isinstance(vectors, list | tuple) and any(np.ndim(p) == 2 for p in vectors)
            self.parts = [np.asanyarray(p) for p in (vectors if shards else [vectors])]
        width = None
        for number, part in enumerate(self.parts):
            where = what if len(self.parts) == 1 else f"{what}: shard {number}"
            _check_shape(part, where, None)
            if width is not None and part.shape[1] != width:
                raise InputError(
                    f"{where}: vectors have {part.shape[1]} numbers, those of shard 0 {width}; "
                    f"embed all shards with the same encoder"
                )
            width = part.shape[1]
        self.starts = np.cumsum([0, *(len(p) for p in self.parts)])
        self.shape = (int(self.starts[-1]), int(width or 0))

    def __len__(self) -> int:
        return self.shape[0]

    def block(self, first: int, last: int) -> np.ndarray:
        """Rows ``first`` to ``last`` as a contiguous float32 array; a view where that is one."""
        parts = [
            part[max(0, first - start) : max(0, last - start)]
            for part, start in zip(self.parts, self.starts, strict=False)
            if start < last and start + len(part) > first
        ]
        if len(parts) == 1:
            return np.ascontiguousarray(parts[0], np.float32)
        whole = np.concatenate(parts) if parts else np.zeros((0, self.shape[1]))
        return np.ascontiguousarray(whole, np.float32)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
        """``(first row, rows)`` for the whole, ``size`` rows at a time."""
        for first in range(0, len(self), size):
            yield first, self.block(first, min(len(self), first + size))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows named, [..., d] float32, in any order and with repetitions."""
        rows = np.asarray(rows)
        out = np.empty((*rows.shape, self.shape[1]), np.float32)
        for part, start in zip(self.parts, self.starts, strict=False):
            mine = (rows >= start) & (rows < start + len(part))
            if mine.any():
                out[mine] = part[rows[mine] - start]
        return out

    def cut(self, first: int, last: int) -> Rows:
        """Rows ``first`` to ``last``, without copying them."""
        return Rows(
            [
                part[max(0, first - start) : max(0, last - start)]
                for part, start in zip(self.parts, self.starts, strict=False)
                if start < last and start + len(part) > first
            ]
            or [np.zeros((0, self.shape[1]), np.float32)]
        )

    @property
    def one_array(self) -> bool:
        """Whether the rows lie in one float32 array, which need not be copied."""
        part = self.parts[0]
        return len(self.parts) == 1 and part.dtype == np.float32 and part.flags.c_contiguous

    def array(self) -> np.ndarray:
        """All rows as one contiguous float32 array: a copy unless ``one_array``."""
        return self.block(0, len(self))


@dataclass(frozen=True)
class Looked:
    """What one pass over the vectors found.

    Attributes:
      duplicates: vectors that are equal to an earlier one.
      fingerprint: of all vectors in their order.
    """

    duplicates: int
    fingerprint: str


def look(rows: Rows, what: str = "index") -> Looked:
    """Check all vectors in one pass.

    Equal vectors are counted, since passages of equal text have them; they are an error only where
    all are equal.

    Raises:
      InputError: there are none, one holds NaN, infinity or only zeros, or all are equal.
    """
    count, width = rows.shape
    if not count:
        raise InputError(f"{what}: there are no vectors; the corpus is empty")
    weights = np.random.default_rng(0).integers(1, 1 << 63, width, np.uint64) | np.uint64(1)
    hashes = np.empty(count, np.uint64)
    for first, block in rows.blocks(_HASHED):
        _check_finite(block, what, first)
        if not (empty := block.any(axis=1)).all():
            raise InputError(
                f"{what}: vector {first + int(np.argmin(empty))} is all zeros, which no encoder "
                f"makes of a text; embed the corpus again"
            )
        hashes[first : first + len(block)] = (block.view(np.uint32) * weights).sum(axis=1)
    distinct = len(np.unique(hashes))
    if distinct == 1 and count > 1:
        raise InputError(
            f"{what}: all {count:,} vectors are equal; the encoder or its weights are broken"
        )
    return Looked(count - distinct, hashlib.sha256(hashes.tobytes()).hexdigest())


def open_shards(paths: Sequence[Path], width: int | None = None) -> Rows:
    """Shards of vectors in .npy files, mapped into memory.

    Raises:
      InputError: a file is missing, cut off, no array of vectors, or of another width.
    """
    parts = []
    for path in map(Path, paths):
        try:
            part = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file of vectors") from None
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{path}: cut off or no .npy file ({error}); embed this shard again"
            ) from None
        _check_shape(part, str(path), width)
        parts.append(part)
    if not parts:
        raise InputError("index: there are no shards of vectors")
    return Rows(parts)
