"""Exact search against numpy, and vectors that are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dynarag_jax.retrieval.index.build as build
import dynarag_jax.retrieval.index.exact as exact
from dynarag_jax.errors import InputError
from dynarag_jax.retrieval.index import (
    ExactIndex,
    Rows,
    build_index,
)

from .indexes import by_hand, index_of, vectors

# ---------------------------------------------------------------------------- exact


@pytest.mark.parametrize("count", [1, 7, 100])
def test_exact_search_equals_numpy(count):
    corpus, queries = vectors(count), vectors(20, seed=1)
    k = min(count, 10)
    positions, scores = ExactIndex(corpus).search(queries, k)
    expected, values = by_hand(corpus, queries, k)
    assert positions.dtype == np.int32 and scores.dtype == np.float32
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, values, atol=1e-6)


@pytest.mark.parametrize("resident", [True, False])
def test_blocks_of_passages_and_queries_change_nothing(monkeypatch, resident):
    corpus, queries = vectors(100), vectors(21, seed=1)
    expected = by_hand(corpus, queries, 40)
    monkeypatch.setattr(exact, "PASSAGE_BLOCK", 32)
    monkeypatch.setattr(exact, "QUERY_BLOCK", 8)
    if not resident:
        monkeypatch.setattr(exact, "RESIDENT", 0)
    positions, scores = ExactIndex(corpus).search(queries, 40)
    np.testing.assert_array_equal(positions, expected[0])
    np.testing.assert_allclose(scores, expected[1], atol=1e-6)
    # All scores negative: the zeros that fill the last block must not win.
    positions, scores = ExactIndex(np.abs(corpus)).search(-np.abs(queries), 100)
    assert (np.sort(positions, axis=1) == np.arange(100)).all() and (scores < 0).all()


def test_ties_stand_in_corpus_order(monkeypatch):
    corpus = np.repeat(vectors(4), 10, axis=0)
    for block in (exact.PASSAGE_BLOCK, 16):
        monkeypatch.setattr(exact, "PASSAGE_BLOCK", block)
        positions, _ = ExactIndex(corpus).search(vectors(4)[2:3], 10)
        np.testing.assert_array_equal(positions[0], np.arange(20, 30))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 130, 1000]), st.sampled_from([1, 5]))
def test_groups_of_scores_change_nothing(seed, count, k):
    """Few distinct scores, so that ties cross the borders of groups: the order is the corpus's."""
    rng = np.random.default_rng(seed)
    corpus = rng.integers(-1, 2, (count, 2)).astype(np.float32)
    corpus[0] = 1
    queries = rng.integers(-1, 2, (4, 2)).astype(np.float32)
    k = min(k, count)
    positions, scores = ExactIndex(corpus).search(queries, k)
    expected, values = by_hand(corpus, queries, k)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(scores, values)


def test_shards_of_vectors_are_one_corpus():
    corpus, queries = vectors(100), vectors(5, seed=1)
    parts = [corpus[:30], corpus[30:31].astype(np.float64), corpus[31:31], corpus[31:]]
    rows = Rows(parts)
    assert rows.shape == (100, 16) and not rows.one_array and Rows(corpus).one_array
    np.testing.assert_array_equal(rows.array(), corpus)
    np.testing.assert_array_equal(rows.block(29, 33), corpus[29:33])
    np.testing.assert_array_equal(rows.cut(10, 50).cut(15, 30).array(), corpus[25:40])
    which = np.array([[99, 0], [30, 29]])
    np.testing.assert_array_equal(rows.take(which), corpus[which])
    # One array is looked at, not copied.
    assert np.shares_memory(Rows(corpus).array(), corpus)
    assert np.shares_memory(Rows([corpus]).cut(3, 9).array(), corpus)
    index = build_index(parts, kind="exact")
    np.testing.assert_array_equal(index.search(queries, 9)[0], by_hand(corpus, queries, 9)[0])
    with pytest.raises(InputError, match="index: shard 1: vectors have 8 numbers, those of shard"):
        build_index([corpus, vectors(3, 8)])


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_fewer_than_k_are_filled_up(kind):
    index = index_of(kind, vectors(3))
    positions, scores = index.search(vectors(2, seed=1), 5)
    assert (np.sort(positions[:, :3]) == np.arange(3)).all()
    assert np.isfinite(scores[:, :3]).all()
    assert (positions[:, 3:] == -1).all() and (scores[:, 3:] == -np.inf).all()
    empty = index.search(np.zeros((0, 16), np.float32), 5)
    assert empty[0].shape == empty[1].shape == (0, 5)


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_queries_that_are_refused(kind):
    index = index_of(kind, vectors(3))
    with pytest.raises(InputError, match=r"found float32 \[16\]"):
        index.search(vectors(1)[0], 2)
    with pytest.raises(InputError, match="vectors have 8 numbers, those of the index 16"):
        index.search(vectors(2, 8), 2)
    with pytest.raises(InputError, match=r"found int64 \[1, 16\]"):
        index.search(np.zeros((1, 16), np.int64), 2)
    bad = vectors(3)
    bad[1, 4] = np.nan
    with pytest.raises(InputError, match="search: vector 1 holds NaN or infinity"):
        index.search(bad, 2)
    for k in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="k must be an integer of at least 1, found"):
            index.search(vectors(1), k)  # type: ignore[arg-type]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_bad_vector_is_named_in_any_block(monkeypatch, shards):
    monkeypatch.setattr("dynarag_jax.retrieval.index.rows._HASHED", 4)
    bad = vectors(11)
    bad[9, 0] = np.inf
    with pytest.raises(InputError, match=r"^index: vector 9 holds NaN or infinity$"):
        build_index(np.array_split(bad, shards), kind="exact")
    bad[9] = 0
    with pytest.raises(InputError, match=r"^index: vector 9 is all zeros, which no encoder makes"):
        build_index(np.array_split(bad, shards), kind="exact")
    bad[:] = bad[0]
    with pytest.raises(InputError, match=r"^index: all 11 vectors are equal; the encoder or"):
        build_index(np.array_split(bad, shards), kind="exact")


def test_equal_vectors_are_counted_and_said():
    corpus = np.concatenate([vectors(20), vectors(20)[5:8]])
    index = build_index(corpus)
    assert index.duplicates == 3
    assert "3 of 23 vectors equal an earlier one" in index.describe()
    assert "equal" not in build_index(vectors(20)).describe()
    # What was built of the same vectors says so, however they were cut.
    again = build_index(np.array_split(corpus, 4))
    assert again.vectors == index.vectors != build_index(corpus[::-1]).vectors


def test_corpora_and_settings_that_are_refused():
    for kind in ("exact", "auto"):
        with pytest.raises(InputError, match="there are no vectors; the corpus is empty"):
            build_index(np.zeros((0, 4), np.float32), kind=kind)
        with pytest.raises(InputError, match=r"expected floating-point vectors \[n, d\]"):
            build_index(np.zeros(4, np.float32), kind=kind)
        with pytest.raises(InputError, match="index: vector 0 holds NaN or infinity"):
            build_index(np.full((2, 4), np.inf, np.float32), kind=kind)
    wrong = {
        "kind must be auto, scann or exact, found 'faiss'": {"kind": "faiss"},
        "reorder_type must be float32, bfloat16 or int8, found 'int4'": {"reorder_type": "int4"},
        "target_recall must be in (0, 1], found 0.0": {"target_recall": 0.0},
        "target_recall must be in (0, 1], found 1.1": {"target_recall": 1.1},
        "first_recall must be in [0, 1], found 1.1": {"first_recall": 1.1},
        "at must be at least 1, found 0": {"at": 0},
        "sample must be at least 1, found 0": {"sample": 0},
        "memory_gib must not be negative, found -1": {"memory_gib": -1},
        "there are no queries to measure recall on": {"queries": vectors(0)},
        "2 partitions for 3 vectors; ask for at most 1": {"leaves": 2},
    }
    for message, changes in wrong.items():
        small = {"kind": "scann"} if "leaves" in changes else {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "QUANTIZE_FROM", 1)
            with pytest.raises(InputError, match=re.escape(f"index: {message}")):
                build_index(vectors(3), **small, **changes)
