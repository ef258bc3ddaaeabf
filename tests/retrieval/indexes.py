"""What the tests of indexes share."""

from __future__ import annotations

import numpy as np
import pytest

import dynarag_jax.retrieval.index.build as build
from dynarag_jax.retrieval.index import Index, build_index

ENCODER, OTHER = "e" * 64, "0" * 64


def vectors(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(corpus: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ corpus.T.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([len({*x} & {*y}) / len(y) for x, y in zip(a, b, strict=True)]))


def use(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Let small corpora be searched as large ones are."""
    pytest.importorskip("scann")
    monkeypatch.setattr(build, "SCANN_FROM", 100)
    monkeypatch.setattr(build, "QUANTIZE_FROM", 10**9 if method == "brute_force" else 100)
    monkeypatch.setattr(build, "PARTITION_FROM", 100 if method == "partitioned" else 10**9)


def index_of(kind: str, corpus: np.ndarray) -> Index:
    if kind == "scann":
        pytest.importorskip("scann")
    return build_index(corpus, kind=kind)
