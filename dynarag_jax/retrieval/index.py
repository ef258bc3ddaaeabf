"""Search by inner product: exact in JAX, or ScaNN with its recall measured when it is built.

Vectors stand in corpus order; a search returns positions in that order. A saved index is one
directory that may be moved: ``manifest.json`` (what made it, how large it is, the settings chosen,
the recall measured, checksums), ``ids.json`` (passage ids in corpus order) and the data.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.files import PathLike, atomic_directory, read_json, sha256_file, write_json

Kind = Literal["auto", "scann", "exact"]

# Exact search scores [QUERY_BLOCK, PASSAGE_BLOCK] at a time: 64 MiB of scores.
QUERY_BLOCK, PASSAGE_BLOCK = 256, 65_536
# Corpora up to this many bytes stay on the device between searches; larger ones are streamed.
_RESIDENT = 2 << 30
# Corpus sizes from which ScaNN quantizes the vectors, and from which it also partitions them.
QUANTIZE_FROM, PARTITION_FROM = 20_000, 100_000
# Queries on which recall is measured.
_SAMPLE = 256
_FORMAT = 1


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
    """

    value: float
    at: int
    queries: int
    source: str
    target: float


@dataclass(frozen=True)
class ScannSettings:
    """How ScaNN searches.

    Attributes:
      method: ``brute_force`` (exact), ``quantized`` (all vectors, quantized, the best of them
        scored again exactly), or ``partitioned`` (the same within the nearest partitions).
      at: results a query for which ``leaves_searched`` and ``reorder`` hold; a search for more
        raises both in proportion.
      leaves: partitions.
      leaves_searched: partitions a query looks into.
      reorder: candidates a query scores again exactly.
    """

    method: Literal["brute_force", "quantized", "partitioned"]
    at: int
    leaves: int = 0
    leaves_searched: int = 0
    reorder: int = 0

    def scaled(self, k: int, count: int) -> dict[str, int]:
        """The arguments of ScaNN's search for ``k`` results among ``count`` vectors."""
        arguments = {"final_num_neighbors": k}
        factor = max(1.0, k / self.at)
        if self.reorder:
            wanted = max(k, math.ceil(self.reorder * factor))
            arguments["pre_reorder_num_neighbors"] = min(count, wanted)
        if self.leaves:
            wanted = math.ceil(self.leaves_searched * factor)
            arguments["leaves_to_search"] = min(self.leaves, wanted)
        return arguments


def check_vectors(vectors: Any, what: str, width: int | None = None) -> np.ndarray:
    """``vectors`` as a contiguous float32 array [n, d]; InputError if it cannot be searched."""
    array = np.asarray(vectors)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{what}: expected floating-point vectors [n, d], found {array.dtype} "
            f"{list(array.shape)}"
        )
    if width is not None and array.shape[1] != width:
        raise InputError(
            f"{what}: vectors have {array.shape[1]} numbers, those of the index {width}; "
            f"embed both with the same encoder"
        )
    for first in range(0, len(array), PASSAGE_BLOCK):
        finite = np.isfinite(array[first : first + PASSAGE_BLOCK]).all(axis=1)
        if not finite.all():
            row = first + int(np.argmin(finite))
            raise InputError(f"{what}: vector {row} holds NaN or infinity")
    return np.ascontiguousarray(array, np.float32)


def _ranked(positions: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort by score, ties by position, and fill up to ``k`` columns with -1 and -inf."""
    order = np.lexsort((positions, -scores), axis=-1)
    fill = ((0, 0), (0, k - order.shape[1]))
    positions = np.take_along_axis(positions.astype(np.int32), order, axis=1)
    scores = np.take_along_axis(scores.astype(np.float32), order, axis=1)
    return (
        np.pad(positions, fill, constant_values=-1),
        np.pad(scores, fill, constant_values=-np.inf),
    )


class Index(abc.ABC):
    """Passage vectors that can be searched.

    Attributes:
      kind: ``exact`` or ``scann``.
      count, width: number of vectors, and of numbers in each.
      description: one line that says how it searches, for logs.
      recall: as measured at build, None where the search is exact by construction.
    """

    kind: str
    count: int
    width: int
    description: str
    recall: Recall | None

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
        return _ranked(*self._search(queries, min(int(k), self.count)), int(k))

    @abc.abstractmethod
    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores of at most ``k`` <= count results; -1 and -inf for none."""

    @abc.abstractmethod
    def _write(self, directory: Path) -> dict[str, Any]:
        """Write the data files; return what the manifest must say of them."""

    def save(
        self,
        directory: PathLike,
        ids: Sequence[str],
        encoder_fingerprint: str,
        overwrite: bool = False,
    ) -> None:
        """Write the index as a directory, whole or not at all.

        Args:
          ids: passage ids in corpus order.
          encoder_fingerprint: of the encoder that made the vectors.

        Raises:
          InputError: ``ids`` is not as long as the index, or the directory exists and
            ``overwrite`` is false.
        """
        if len(ids) != self.count:
            raise InputError(f"{directory}: {len(ids)} ids for an index of {self.count} vectors")
        with atomic_directory(directory, overwrite) as place:
            write_json(place / "ids.json", list(ids))
            data = self._write(place)
            written = sorted(p for p in place.rglob("*") if p.is_file())
            manifest = {
                "format": _FORMAT,
                "kind": self.kind,
                "encoder": encoder_fingerprint,
                "count": self.count,
                "dim": self.width,
                "dtype": "float32",
                "ids": "ids.json",
                "recall": dataclasses.asdict(self.recall) if self.recall else None,
                **data,
                "files": {p.relative_to(place).as_posix(): sha256_file(p) for p in written},
            }
            write_json(place / "manifest.json", manifest)


# ---------------------------------------------------------------------------- exact


@functools.partial(jax.jit, static_argnames="k")
def _best_of_block(
    queries: jax.Array, block: jax.Array, valid: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Scores and rows of the best ``k`` among the first ``valid`` rows of a block."""
    # HIGHEST: accelerators would round float32 inputs, and a rounded score is not exact search.
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(jnp.arange(len(block)) < valid, scores, -jnp.inf)
    return jax.lax.top_k(scores, k)


class ExactIndex(Index):
    """Every inner product, in blocks of queries and of passages."""

    kind = "exact"
    recall = None

    def __init__(self, vectors: np.ndarray, reason: str = ""):
        """Index ``vectors`` [n, d]; ``reason`` is added to the description."""
        self._vectors = check_vectors(vectors, "index")
        self.count, self.width = self._vectors.shape
        if not self.count:
            raise InputError("index: there are no vectors; the corpus is empty")
        self.description = (
            f"exact search in JAX over {self.count:,} vectors of {self.width} numbers"
            + (f" ({reason})" if reason else "")
        )
        self._resident: list[jax.Array] | None = None
        if self._vectors.nbytes <= _RESIDENT:
            self._resident = [self._block(i) for i in range(self._blocks)]

    @property
    def _blocks(self) -> int:
        return -(-self.count // PASSAGE_BLOCK)

    def _block(self, i: int) -> jax.Array:
        block = self._vectors[i * PASSAGE_BLOCK : (i + 1) * PASSAGE_BLOCK]
        if self._blocks > 1 and len(block) < PASSAGE_BLOCK:
            # All blocks share one shape, so that the search compiles once.
            block = np.pad(block, ((0, PASSAGE_BLOCK - len(block)), (0, 0)))
        return jnp.asarray(block)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = min(QUERY_BLOCK, 2 ** math.ceil(math.log2(len(queries))))
        scores = np.full((len(queries), 0), -np.inf, np.float32)
        positions = np.zeros((len(queries), 0), np.int64)
        for i in range(self._blocks):
            block = self._resident[i] if self._resident else self._block(i)
            start = i * PASSAGE_BLOCK
            valid = min(PASSAGE_BLOCK, self.count - start)
            found = []
            for first in range(0, len(queries), rows):
                part = queries[first : first + rows]
                padded = np.pad(part, ((0, rows - len(part)), (0, 0)))
                best = _best_of_block(jnp.asarray(padded), block, valid, min(k, len(block)))
                found.append([np.asarray(x)[: len(part)] for x in best])
            new_scores, new_rows = (np.concatenate(x) for x in zip(*found, strict=True))
            scores = np.concatenate([scores, new_scores], axis=1)
            positions = np.concatenate([positions, new_rows + start], axis=1)
            # Rows of padding score -inf; the corpus holds k real ones or more, which win.
            best = np.lexsort((positions, -scores), axis=-1)[:, :k]
            scores = np.take_along_axis(scores, best, axis=1)
            positions = np.take_along_axis(positions, best, axis=1)
        return positions, scores

    def _write(self, directory: Path) -> dict[str, Any]:
        np.save(directory / "vectors.npy", self._vectors)
        return {}


# ---------------------------------------------------------------------------- ScaNN


def _import_scann() -> Any:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError:
        raise MissingExtra("scann", "retrieval", "a ScaNN index") from None
    return scann_ops_pybind


class ScannIndex(Index):
    """ScaNN (Guo et al. 2020, arXiv 1908.10396); make one with ``build_index``."""

    kind = "scann"

    def __init__(
        self,
        searcher: Any,
        count: int,
        width: int,
        settings: ScannSettings,
        recall: Recall | None = None,
    ):
        self._searcher = searcher
        self.count, self.width = count, width
        self.settings, self.recall = settings, recall

    @property
    def description(self) -> str:  # type: ignore[override]
        """One line: method, size, settings and measured recall."""
        s = self.settings
        how = {
            "brute_force": "brute force",
            "quantized": f"quantized, best {s.reorder:,} scored exactly",
            "partitioned": f"{s.leaves_searched} of {s.leaves} partitions, quantized, "
            f"best {s.reorder:,} scored exactly",
        }[s.method]
        line = f"ScaNN over {self.count:,} vectors of {self.width} numbers: {how}"
        if (r := self.recall) is not None:
            line += f"; recall@{r.at} {r.value:.4f} on {r.queries} {r.source}"
        return line

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        share = -(-len(queries) // (os.cpu_count() or 1))
        positions, scores = self._searcher.search_batched_parallel(
            queries, batch_size=min(256, share), **self.settings.scaled(k, self.count)
        )
        # Where it finds too few, ScaNN fills up with id 0 at distance NaN.
        missing = np.isnan(scores)
        return (
            np.where(missing, -1, positions.astype(np.int64)),
            np.where(missing, -np.inf, scores),
        )

    def _write(self, directory: Path) -> dict[str, Any]:
        (directory / "scann").mkdir()
        # Relative paths, so that the directory can be moved.
        self._searcher.serialize(str(directory / "scann"), relative_path=True)
        return {"settings": dataclasses.asdict(self.settings)}


def _initial_settings(count: int, at: int) -> ScannSettings:
    """Where the search for settings starts, by corpus size."""
    if count < QUANTIZE_FROM:
        return ScannSettings("brute_force", at)
    if count < PARTITION_FROM:
        return ScannSettings("quantized", at, reorder=min(count, 2 * at))
    leaves = round(math.sqrt(count))
    return ScannSettings("partitioned", at, leaves, max(1, leaves // 50), min(count, 2 * at))


def _train(scann: Any, vectors: np.ndarray, settings: ScannSettings) -> Any:
    count = len(vectors)
    builder = scann.builder(vectors, min(settings.at, count), "dot_product")
    if settings.method == "brute_force":
        return builder.score_brute_force().build()
    sample = min(count, 250_000)
    if settings.method == "partitioned":
        builder = builder.tree(
            num_leaves=settings.leaves,
            num_leaves_to_search=settings.leaves_searched,
            training_sample_size=sample,
        )
    # 0.2: the threshold of anisotropic quantization in ScaNN's own guide.
    builder = builder.score_ah(
        2, anisotropic_quantization_threshold=0.2, training_sample_size=min(sample, 100_000)
    )
    return builder.reorder(settings.reorder).build()


def _recall_meter(
    vectors: np.ndarray, at: int, queries: np.ndarray | None, target: float
) -> Callable[[Index], Recall]:
    """A function that measures an index against exact search on a fixed sample of queries.

    A result counts if its exact score reaches the exact ``at``-th best, so that equal vectors do
    not look like misses.
    """
    source = "passages" if queries is None else "queries"
    rng = np.random.default_rng(0)
    pool = (
        vectors
        if queries is None
        else check_vectors(queries, "build_index: queries", vectors.shape[1])
    )
    chosen = np.sort(rng.choice(len(pool), min(_SAMPLE, len(pool)), replace=False))
    sample = np.ascontiguousarray(pool[chosen])
    own = chosen if queries is None else np.full(len(chosen), -1)

    def best(index: Index) -> np.ndarray:
        """Exact scores of what the index finds, [q, at], best first; -inf for the query itself."""
        positions, _ = index.search(sample, at)
        found = np.take(vectors, np.maximum(positions, 0), axis=0)
        scores = np.einsum("qd,qkd->qk", sample, found)
        scores[(positions < 0) | (positions == own[:, None])] = -np.inf
        return -np.sort(-scores, axis=1)

    exact = best(ExactIndex(vectors))
    wanted = np.isfinite(exact)
    last = np.where(wanted, exact, np.inf).min(axis=1, keepdims=True)
    floor = last - 1e-6 * np.maximum(1.0, np.abs(last))

    def measure(index: Index) -> Recall:
        hits = (best(index) >= floor) & wanted
        share = hits.sum(axis=1) / np.maximum(1, wanted.sum(axis=1))
        # A corpus of one has no neighbors to miss.
        value = float(np.mean(np.where(wanted.any(axis=1), share, 1.0)))
        return Recall(value, at, len(sample), source, target)

    return measure


def _widened(s: ScannSettings, count: int) -> list[ScannSettings]:
    """The settings that search twice as many partitions, and that reorder twice as many."""
    wider = []
    if s.leaves_searched < s.leaves:
        searched = min(s.leaves, 2 * s.leaves_searched)
        wider.append(dataclasses.replace(s, leaves_searched=searched))
    if s.reorder and s.reorder < count:
        wider.append(dataclasses.replace(s, reorder=min(count, 2 * s.reorder)))
    return wider


def _build_scann(
    vectors: np.ndarray, target: float, at: int, queries: np.ndarray | None
) -> ScannIndex:
    scann = _import_scann()
    count, width = vectors.shape
    # Of passages that search, only the others count: two results are the least that say something.
    at = min(max(at, 2), count)
    measure = _recall_meter(vectors, at, queries, target)
    settings = _initial_settings(count, at)
    searcher = _train(scann, vectors, settings)

    def trial(settings: ScannSettings) -> tuple[float, ScannIndex]:
        recall = measure(ScannIndex(searcher, count, width, settings))
        return recall.value, ScannIndex(searcher, count, width, settings, recall)

    value, index = trial(settings)
    # Widen whichever of the two helps more, until the target holds; all partitions with everything
    # reordered is exact search, so this ends. The measure needs no new training.
    while value < target and (wider := _widened(index.settings, count)):
        value, index = max((trial(s) for s in wider), key=lambda pair: pair[0])
    return index


def build_index(
    vectors: np.ndarray,
    kind: Kind = "auto",
    target_recall: float = 0.95,
    at: int = 50,
    queries: np.ndarray | None = None,
) -> Index:
    """Index passage vectors for search by inner product.

    ScaNN scores everything exactly below 20,000 vectors, quantizes from there, and partitions from
    100,000. Its recall is measured against exact search, and the search is widened until it
    reaches the target. ``index.description`` says what was made. Partitions are trained by several
    threads, so that two builds may differ a little: save the index where results must repeat.

    Args:
      vectors: float [n, d], in corpus order.
      kind: ``scann``, ``exact`` (in JAX), or ``auto``: ScaNN where it is installed, else exact.
      target_recall: least share of the exact best ``at`` that the index must find, in (0, 1].
      at: how many of the best.
      queries: [q, d] to measure recall on; passages of the corpus if None.

    Raises:
      InputError: no vectors, a wrong shape, NaN, an unknown kind, or a target outside (0, 1].
      MissingExtra: ``kind`` is ``scann`` and ScaNN is absent.
    """
    vectors = check_vectors(vectors, "index")
    if not len(vectors):
        raise InputError("index: there are no vectors; the corpus is empty")
    if not 0 < target_recall <= 1:
        raise InputError(f"index: target_recall must be in (0, 1], found {target_recall}")
    if at < 1:
        raise InputError(f"index: at must be at least 1, found {at}")
    if queries is not None and not len(queries):
        raise InputError("index: there are no queries to measure recall on")
    if kind == "exact":
        return ExactIndex(vectors)
    if kind == "scann":
        return _build_scann(vectors, target_recall, at, queries)
    if kind != "auto":
        raise InputError(f"index: kind must be auto, scann or exact, found {kind!r}")
    try:
        _import_scann()
    except MissingExtra:
        return ExactIndex(vectors, reason="ScaNN is not installed")
    return _build_scann(vectors, target_recall, at, queries)


# ---------------------------------------------------------------------------- loading


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / "manifest.json"
    if not directory.is_dir():
        raise InputError(f"{directory}: no such index directory")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise InputError(
            f"{path}: field 'format' must be {_FORMAT}, found {found!r:.40}; build the index again"
        )
    kinds = {"kind": str, "encoder": str, "count": int, "dim": int, "ids": str, "files": dict}
    for field, kind in kinds.items():
        value = manifest.get(field)
        if not isinstance(value, kind):
            raise InputError(
                f"{path}: field '{field}' must be {kind.__name__}, found {value!r:.40}"
            )
    return manifest


def _check_files(directory: Path, files: dict[str, str]) -> None:
    for name, digest in files.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: this file of the index is missing; build the index again")
        if sha256_file(path) != digest:
            raise InputError(
                f"{path}: differs from the checksum in manifest.json; build the index again"
            )
    present = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    # ScaNN would read a pickle of ids that lies beside its files.
    if pickles := sorted(name for name in present if name.endswith(".pkl")):
        raise InputError(
            f"{directory / pickles[0]}: a pickle can run any code when it is read; remove it"
        )
    if strays := sorted(present - files.keys() - {"manifest.json"}):
        raise InputError(f"{directory / strays[0]}: not a file of this index; remove it")


def load_index(
    directory: PathLike, encoder_fingerprint: str, ids: Sequence[str] | None = None
) -> Index:
    """Load an index that ``Index.save`` wrote, wherever it lies now.

    Args:
      encoder_fingerprint: of the encoder that will embed the queries.
      ids: passage ids of the corpus that will be searched; compared with the index's.

    Raises:
      InputError: no index, a damaged one, one made by another encoder, or of another corpus.
      MissingExtra: it is a ScaNN index and ScaNN is absent.
    """
    place = Path(directory)
    manifest = _manifest(place)
    if manifest["encoder"] != encoder_fingerprint:
        raise InputError(
            f"{place}: made by the encoder {manifest['encoder'][:12]}, not by the one given, "
            f"{encoder_fingerprint[:12]}; build the index again"
        )
    _check_files(place, manifest["files"])
    if ids is not None:
        stored = read_json(place / manifest["ids"])
        if len(stored) != len(ids):
            raise InputError(
                f"{place}: holds {len(stored)} passages, the corpus {len(ids)}; "
                f"build the index again"
            )
        for row, (mine, given) in enumerate(zip(stored, ids, strict=True)):
            if mine != given:
                raise InputError(
                    f"{place}: passage {row} is '{mine}', in the corpus '{given}'; "
                    f"build the index again"
                )
    count, width = manifest["count"], manifest["dim"]
    if manifest["kind"] == "exact":
        index: Index = ExactIndex(np.load(place / "vectors.npy", mmap_mode="r", allow_pickle=False))
    elif manifest["kind"] == "scann":
        searcher = _import_scann().load_searcher(str(place / "scann"))
        recall = Recall(**manifest["recall"]) if manifest["recall"] else None
        settings = ScannSettings(**manifest["settings"])
        index = ScannIndex(searcher, searcher.size(), width, settings, recall)
    else:
        raise InputError(f"{place}: field 'kind' is {manifest['kind']!r}, not exact or scann")
    if (index.count, index.width) != (count, width):
        raise InputError(
            f"{place}: manifest.json says {count} vectors of {width} numbers, "
            f"the data are {index.count} of {index.width}; build the index again"
        )
    return index
