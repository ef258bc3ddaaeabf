"""ScaNN (Guo et al. 2020, arXiv 1908.10396): quantized search, in partitions of large corpora."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.retrieval.index.base import Index, Recall, Speed
from dynarag_jax.retrieval.index.rows import Rows

ReorderType = Literal["float32", "bfloat16", "int8"]
Method = Literal["brute_force", "quantized", "partitioned"]

# Dimensions a code of four bits stands for, and vectors it is trained on.
BLOCK_WIDTH, CODE_SAMPLE = 2, 100_000
# Training vectors a partition: with fewer, partitions follow the noise of the sample.
PER_LEAF = 128
# SOAR (arXiv 2404.00774) puts each vector into a second partition whose center errs in another
# direction; the weight of that direction, as in its paper's experiments.
SOAR, PLACES = 1.5, 2
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class ScannSettings:
    """How ScaNN searches.

    Attributes:
      method: ``brute_force`` (exact), ``quantized`` (all vectors, quantized, the best of them
        scored again), or ``partitioned`` (the same within the nearest partitions).
      at: results a query for which ``leaves_searched`` and ``reorder`` hold; a search for more
        raises both in proportion.
      leaves: partitions.
      leaves_searched: partitions a query looks into.
      reorder: candidates a query scores again.
      reorder_type: type of the vectors that are scored again; with float32 scores are exact.
    """

    method: Method
    at: int
    leaves: int = 0
    leaves_searched: int = 0
    reorder: int = 0
    reorder_type: ReorderType = "float32"

    def scaled(self, k: int, count: int) -> tuple[int, int, int]:
        """ScaNN's results, candidates and partitions for ``k`` results among ``count`` vectors.

        -1 where the method has none.
        """
        factor = max(1.0, k / self.at)
        reorder, leaves = -1, -1
        if self.reorder:
            reorder = min(count, max(k, math.ceil(self.reorder * factor)))
        if self.leaves:
            leaves = min(self.leaves, math.ceil(self.leaves_searched * factor))
        return k, reorder, leaves


def import_scann() -> Any:
    """The module that builds and loads; MissingExtra where ScaNN is absent."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError:
        raise MissingExtra("scann", "retrieval", "a ScaNN index") from None
    return scann_ops_pybind


def train(vectors: np.ndarray, settings: ScannSettings) -> Any:
    """Build ScaNN's searcher over float32 vectors [n, d], of which it keeps what it needs.

    Partitions start from k-means++, which ScaNN seeds alike in every build; its default, random
    centers, is different each time, whatever the threads. So equal vectors make equal files.
    """
    scann = import_scann()
    count = len(vectors)
    builder = scann.builder(vectors, min(settings.at, count), "dot_product")
    if settings.method == "brute_force":
        return builder.score_brute_force().build()
    if settings.method == "partitioned":
        builder = builder.tree(
            num_leaves=settings.leaves,
            num_leaves_to_search=settings.leaves_searched,
            training_sample_size=min(count, PER_LEAF * settings.leaves),
            random_init=False,
            soar_lambda=SOAR,
        )
    # 0.2: the threshold of anisotropic quantization in ScaNN's own guide.
    builder = builder.score_ah(
        BLOCK_WIDTH,
        anisotropic_quantization_threshold=0.2,
        training_sample_size=min(count, CODE_SAMPLE),
    )
    return builder.reorder(settings.reorder, _reorder_types()[settings.reorder_type]).build()


def _reorder_types() -> dict[str, Any]:
    from scann.scann_ops.py.scann_builder import ReorderType as Kinds

    return {"float32": Kinds.FLOAT32, "bfloat16": Kinds.BFLOAT16, "int8": Kinds.INT8}


class ScannIndex(Index):
    """A ScaNN searcher with the settings that were tuned for it; make one with ``build_index``."""

    kind = "scann"

    def __init__(
        self,
        searcher: Any,
        count: int,
        width: int,
        settings: ScannSettings,
        recall: Recall | None = None,
        speed: Speed | None = None,
        directory: Path | None = None,
    ):
        """``directory`` is where a saved index lies, which may hold its vectors."""
        self._searcher = searcher
        self.count, self.width = count, width
        self.settings, self.recall, self.speed = settings, recall, speed
        self._directory = directory

    def tuned(self, settings: ScannSettings) -> ScannIndex:
        """The same searcher under other settings; partitions and types must be the same."""
        return ScannIndex(self._searcher, self.count, self.width, settings)

    @property
    def description(self) -> str:  # type: ignore[override]
        """One line: method, size, settings and measured recall."""
        s = self.settings
        again = f"best {s.reorder:,} scored " + (
            "exactly" if s.reorder_type == "float32" else f"again in {s.reorder_type}"
        )
        how = {
            "brute_force": "brute force",
            "quantized": f"quantized, {again}",
            "partitioned": f"{s.leaves_searched} of {s.leaves} partitions, quantized, {again}",
        }[s.method]
        line = f"ScaNN over {self.count:,} vectors of {self.width} numbers: {how}"
        if (r := self.recall) is not None:
            line += f"; recall@{r.at} {r.value:.4f} on {r.queries} {r.source}"
        return line

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        wanted = self.settings.scaled(k, self.count)
        if len(queries) == 1:
            # A query alone gets a shorter answer where ScaNN finds too few.
            found, scores = self._searcher.search(queries[0], *wanted)
            return found[None], scores[None]
        share = -(-len(queries) // (os.cpu_count() or 1))
        positions, scores = self._searcher.search_batched_parallel(
            queries, *wanted, batch_size=min(256, share)
        )
        # A batch it fills up with id 0 at distance NaN.
        missing = np.isnan(scores)
        if missing.any():
            positions = np.where(missing, -1, positions.astype(np.int64))
            scores = np.where(missing, -np.inf, scores)
        return positions, scores

    def rows(self) -> Rows | None:
        """The float32 vectors of a saved index that keeps them."""
        if self._directory is None or not (path := self._directory / "dataset.npy").is_file():
            return None
        return Rows(np.load(path, mmap_mode="r", allow_pickle=False))

    def stored_bytes(self) -> int:
        """Vectors to score again, codes, and partitions."""
        s, numbers = self.settings, self.count * self.width
        if s.method == "brute_force":
            return 4 * numbers
        places = PLACES if s.leaves else 1
        codes = places * self.count * math.ceil(self.width / BLOCK_WIDTH / 2)
        return numbers * ITEM_BYTES[s.reorder_type] + codes

    def _write(self, directory: Path) -> dict[str, Any]:
        folder = directory / "scann"
        folder.mkdir()
        # Relative paths, so that the directory can be moved.
        self._searcher.serialize(str(folder), relative_path=True)
        # ScaNN does not say that a write failed.
        written = sum(p.stat().st_size for p in folder.iterdir())
        if written < self.stored_bytes():
            raise InputError(
                f"{directory}: ScaNN wrote {written:,} bytes of about {self.stored_bytes():,}; the "
                f"disk is full"
            )
        return {"settings": dataclasses.asdict(self.settings)}
