"""Vectors to an index: its kind by corpus size, memory counted, recall measured."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.retrieval.index.base import FIRST, Index, Recall
from dynarag_jax.retrieval.index.exact import ExactIndex
from dynarag_jax.retrieval.index.memory import (
    Memory,
    estimate_exact,
    estimate_scann,
    require_memory,
)
from dynarag_jax.retrieval.index.rows import Rows, look
from dynarag_jax.retrieval.index.scann import (
    ReorderType,
    ScannIndex,
    ScannSettings,
    import_scann,
    train,
)
from dynarag_jax.retrieval.index.tuning import measure_speed, recall_meter, sample_queries, tune

Kind = Literal["auto", "scann", "exact"]

# Corpus sizes from which ScaNN pays, from which it quantizes vectors, and partitions them.
SCANN_FROM, QUANTIZE_FROM, PARTITION_FROM = 20_000, 5_000, 20_000


@dataclass(frozen=True)
class IndexConfig:
    """How an index is built."""

    kind: Kind = "auto"
    """scann, exact, or auto: exact for small corpora and where ScaNN is not installed"""
    target_recall: float = 0.95
    """least share of the exact best that the index must find, in (0, 1]"""
    at: int = 50
    """how many of the best: passages that a question will ask for"""
    first_recall: float = 0.995
    """least share of the exact best ten that must be among them, in [0, 1]: one of these missed
    costs more than one of the last; 0 asks for nothing"""
    reorder_type: ReorderType = "float32"
    """type in which ScaNN keeps vectors; bfloat16 takes half of the memory, int8 a quarter"""
    memory_gib: float = 0.0
    """refuse to build what takes more; 0 for what the machine has free"""
    sample: int = 256
    """queries on which recall is measured"""
    leaves: int = 0
    """partitions of ScaNN; 0 for a number by corpus size"""

    def check(self) -> None:
        """Raise InputError for a value that is none."""
        kinds = {
            "kind": ("auto", "scann", "exact"),
            "reorder_type": ("float32", "bfloat16", "int8"),
        }
        for name, allowed in kinds.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(
                    f"index: {name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, "
                    f"found {value!r}"
                )
        if not 0 < self.target_recall <= 1:
            raise InputError(f"index: target_recall must be in (0, 1], found {self.target_recall}")
        if not 0 <= self.first_recall <= 1:
            raise InputError(f"index: first_recall must be in [0, 1], found {self.first_recall}")
        for name in ("at", "sample"):
            if getattr(self, name) < 1:
                raise InputError(f"index: {name} must be at least 1, found {getattr(self, name)}")
        for name in ("memory_gib", "leaves"):
            if getattr(self, name) < 0:
                raise InputError(f"index: {name} must not be negative, found {getattr(self, name)}")


def first_settings(count: int, config: IndexConfig) -> ScannSettings:
    """Method and partitions by corpus size; the rest is tuned."""
    at = min(max(config.at, 2), count)
    if count < QUANTIZE_FROM:
        return ScannSettings("brute_force", at)
    kind = config.reorder_type
    if count < PARTITION_FROM and not config.leaves:
        return ScannSettings("quantized", at, reorder=min(count, 2 * at), reorder_type=kind)
    # Twice the root: about as fast as the root on text, and several times as fast where vectors
    # lie in as many clusters as there would be partitions, some of which then hold several.
    leaves = config.leaves or round(2 * math.sqrt(count))
    if leaves > count // 2:
        raise InputError(
            f"index: {leaves} partitions for {count} vectors; ask for at most {count // 2}"
        )
    return ScannSettings("partitioned", at, leaves, max(1, leaves // 20), min(count, 2 * at), kind)


def choose(count: int, config: IndexConfig) -> tuple[Literal["scann", "exact"], str]:
    """Which kind ``auto`` means for a corpus, and why."""
    if config.kind != "auto":
        return config.kind, ""
    if count < SCANN_FROM:
        return "exact", f"fewer than {SCANN_FROM:,} vectors"
    try:
        import_scann()
    except MissingExtra:
        return "exact", "ScaNN is not installed"
    return "scann", ""


def estimate(count: int, width: int, config: IndexConfig, copy: bool = False) -> Memory:
    """Memory that ``build_index`` will take for vectors [count, width]; see ``estimate_scann``.

    Raises:
      InputError: the configuration is wrong.
    """
    config.check()
    if choose(count, config)[0] == "exact":
        return estimate_exact(count, width)
    return estimate_scann(count, width, first_settings(count, config), copy)


def build_index(
    vectors: Any,
    config: IndexConfig | None = None,
    queries: np.ndarray | None = None,
    **changes: Any,
) -> Index:
    """Index passage vectors for search by inner product.

    Corpora below 20,000 vectors are searched exactly in JAX, and so is everything where ScaNN is
    not installed. ScaNN partitions the vectors and quantizes them. Its recall is measured against
    exact search, and the cheapest settings that reach the target are taken. Where none does, the
    index is exact. ``index.describe()`` says what was made, and why.

    Args:
      vectors: float [n, d], in corpus order: an array, memory-mapped or not, or a list of shards.
      config: defaults if None.
      queries: [q, d] to measure recall on; passages of the corpus if None.
      changes: fields of ``config`` to set otherwise.

    Raises:
      InputError: vectors that cannot be searched (none, wrong shapes, NaN, only zeros, all equal),
        a wrong configuration, or an index that does not fit in memory.
      MissingExtra: ``kind`` is ``scann`` and ScaNN is absent.
    """
    config = dataclasses.replace(config or IndexConfig(), **changes)
    config.check()
    if queries is not None and not len(queries):
        raise InputError("index: there are no queries to measure recall on")
    rows = Rows(vectors)
    looked = look(rows)
    count, width = rows.shape
    kind, reason = choose(count, config)
    memory = estimate(count, width, config, copy=not rows.one_array)
    require_memory(memory, config.memory_gib * 2**30, f"{kind} search over {count:,} vectors")
    index: Index
    if kind == "exact":
        index = ExactIndex(rows, reason, checked=True)
    else:
        index = _build_scann(rows, config, queries)
    index.duplicates, index.vectors = looked.duplicates, looked.fingerprint
    index.config = dataclasses.asdict(config)
    return index


def _build_scann(rows: Rows, config: IndexConfig, queries: np.ndarray | None) -> Index:
    count, width = rows.shape
    settings = first_settings(count, config)
    import_scann()
    sample, own_rows, source = sample_queries(rows, queries, config.sample)
    # Of passages that search, only the others count: two results are the least that say something.
    targets = config.target_recall, config.first_recall
    measure = recall_meter(rows, sample, own_rows, source, settings.at, *targets)
    index = ScannIndex(train(rows.array(), settings), count, width, settings)
    if settings.method == "brute_force":
        index.recall, reached = measure(index), True
    else:
        index, reached = tune(index, measure)
    assert index.recall is not None
    if not reached:
        return ExactIndex(
            rows,
            f"with {_widest(index.settings)} ScaNN {_shortfall(index.recall)}",
            checked=True,
        )
    index.speed = measure_speed(index, sample, settings.at)
    return index


def _widest(settings: ScannSettings) -> str:
    where = "all partitions searched and " if settings.leaves else ""
    return f"{where}{settings.reorder:,} candidates scored again in {settings.reorder_type}"


def _shortfall(found: Recall) -> str:
    if found.value < found.target:
        return f"reached recall@{found.at} {found.value:.4f}, not {found.target:g}"
    best = min(FIRST, found.at)
    return f"found {found.first:.4f} of the best {best}, not {found.first_target:g}"
