"""Exact search against numpy, ScaNN against exact search, and indexes that are saved and moved."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import dynarag_jax.retrieval.index as module
from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.retrieval.index import (
    ExactIndex,
    Recall,
    ScannIndex,
    ScannSettings,
    build_index,
    load_index,
)

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


@pytest.fixture
def no_scann(monkeypatch):
    for name in ("scann", "scann.scann_ops.py"):
        monkeypatch.setitem(sys.modules, name, None)


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
    monkeypatch.setattr(module, "PASSAGE_BLOCK", 32)
    monkeypatch.setattr(module, "QUERY_BLOCK", 8)
    if not resident:
        monkeypatch.setattr(module, "_RESIDENT", 0)
    positions, scores = ExactIndex(corpus).search(queries, 40)
    np.testing.assert_array_equal(positions, expected[0])
    np.testing.assert_allclose(scores, expected[1], atol=1e-6)
    # All scores negative: the zeros that fill the last block must not win.
    positions, scores = ExactIndex(np.abs(corpus)).search(-np.abs(queries), 100)
    assert (np.sort(positions, axis=1) == np.arange(100)).all() and (scores < 0).all()


def test_ties_stand_in_corpus_order(monkeypatch):
    corpus = np.repeat(vectors(4), 10, axis=0)
    for block in (module.PASSAGE_BLOCK, 16):
        monkeypatch.setattr(module, "PASSAGE_BLOCK", block)
        positions, _ = ExactIndex(corpus).search(vectors(4)[2:3], 10)
        np.testing.assert_array_equal(positions[0], np.arange(20, 30))


def index_of(kind: str, corpus: np.ndarray):
    if kind == "scann":
        pytest.importorskip("scann")
    return build_index(corpus, kind=kind)  # type: ignore[arg-type]


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


def test_a_bad_vector_is_named_in_any_block(monkeypatch):
    monkeypatch.setattr(module, "PASSAGE_BLOCK", 4)
    bad = vectors(11)
    bad[9, 0] = np.inf
    with pytest.raises(InputError, match="index: vector 9 holds NaN or infinity"):
        build_index(bad, kind="exact")


def test_corpora_and_settings_that_are_refused():
    for kind in ("exact", "auto"):
        with pytest.raises(InputError, match="there are no vectors; the corpus is empty"):
            build_index(np.zeros((0, 4), np.float32), kind=kind)
        with pytest.raises(InputError, match=r"expected floating-point vectors \[n, d\]"):
            build_index(np.zeros(4, np.float32), kind=kind)
        with pytest.raises(InputError, match="index: vector 0 holds NaN or infinity"):
            build_index(np.full((2, 4), np.inf, np.float32), kind=kind)
    with pytest.raises(InputError, match="kind must be auto, scann or exact, found 'faiss'"):
        build_index(vectors(3), kind="faiss")  # type: ignore[arg-type]
    for target in (0.0, 1.1):
        with pytest.raises(InputError, match=r"target_recall must be in \(0, 1\], found"):
            build_index(vectors(3), target_recall=target)
    with pytest.raises(InputError, match="at must be at least 1, found 0"):
        build_index(vectors(3), at=0)
    with pytest.raises(InputError, match="there are no queries to measure recall on"):
        build_index(vectors(3), queries=vectors(0))


# ---------------------------------------------------------------------------- ScaNN, or none


def test_without_scann_auto_is_exact_and_says_so(no_scann):
    index = build_index(vectors(5))
    assert isinstance(index, ExactIndex)
    assert index.description == (
        "exact search in JAX over 5 vectors of 16 numbers (ScaNN is not installed)"
    )
    with pytest.raises(MissingExtra, match=r"pip install 'dynarag_jax\[retrieval\]'"):
        build_index(vectors(5), kind="scann")


def test_with_scann_auto_is_scann_and_says_so():
    pytest.importorskip("scann")
    index = build_index(vectors(500))
    assert isinstance(index, ScannIndex)
    assert index.description == (
        "ScaNN over 500 vectors of 16 numbers: brute force; recall@50 1.0000 on 256 passages"
    )
    exact = build_index(vectors(500), kind="exact")
    assert exact.description == "exact search in JAX over 500 vectors of 16 numbers"


def test_brute_force_equals_exact():
    pytest.importorskip("scann")
    corpus, queries = vectors(2000, 24), vectors(300, 24, seed=1)
    expected, values = by_hand(corpus, queries, 20)
    positions, scores = build_index(corpus, kind="scann").search(queries, 20)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, values, atol=1e-5)


@pytest.mark.parametrize("method", ["quantized", "partitioned"])
def test_the_search_is_widened_until_the_target_holds(monkeypatch, method):
    pytest.importorskip("scann")
    monkeypatch.setattr(module, "QUANTIZE_FROM", 1000)
    monkeypatch.setattr(module, "PARTITION_FROM", 1000 if method == "partitioned" else 10**9)
    # Unclustered data: the hardest, where the first settings find too little.
    corpus, queries = vectors(3000, 32), vectors(200, 32, seed=1)
    first = module._initial_settings(3000, 20)
    assert first.method == method
    easy = build_index(corpus, "scann", target_recall=0.01, at=20, queries=queries)
    assert isinstance(easy, ScannIndex) and easy.settings == first
    index = build_index(corpus, "scann", target_recall=0.97, at=20, queries=queries)
    assert isinstance(index, ScannIndex) and index.recall and easy.recall
    assert index.settings.method == method and index.settings != first
    expected, _ = by_hand(corpus, queries, 20)
    # The recall that is claimed is the recall that there is, but for scores equal in float32.
    for each in (easy, index):
        found = overlap(each.search(queries, 20)[0], expected)
        assert each.recall and each.recall.value == pytest.approx(found, abs=1e-3)
    assert easy.recall.value < 0.97 <= index.recall.value
    assert index.recall == Recall(index.recall.value, 20, 200, "queries", 0.97)
    # What it finds, it scores exactly.
    positions, scores = index.search(queries, 20)
    exact = np.einsum("qd,qkd->qk", queries, corpus[positions])
    np.testing.assert_allclose(scores, exact, atol=1e-5)
    # A search for more than it was tuned for widens in proportion.
    assert overlap(index.search(queries, 100)[0], by_hand(corpus, queries, 100)[0]) > 0.9


def test_a_target_of_one_is_reached(monkeypatch):
    pytest.importorskip("scann")
    monkeypatch.setattr(module, "QUANTIZE_FROM", 500)
    monkeypatch.setattr(module, "PARTITION_FROM", 500)
    corpus = vectors(600, 32)
    index = build_index(corpus, "scann", target_recall=1.0, at=10)
    assert index.recall and index.recall.value == 1.0 and index.recall.source == "passages"
    # Every passage finds all its true neighbors.
    assert overlap(index.search(corpus[:256], 10)[0], by_hand(corpus, corpus[:256], 10)[0]) > 0.9


def test_a_passage_does_not_count_as_its_own_neighbor(monkeypatch):
    """An index that finds every passage itself and nothing else has a recall of 0."""
    corpus = vectors(300)
    measure = module._recall_meter(corpus, 10, None, 0.95)

    class OnlyItself(ExactIndex):
        def _search(self, queries, k):
            positions, scores = super()._search(queries, 1)
            return positions, scores

    assert measure(OnlyItself(corpus)).value == 0.0
    assert measure(ExactIndex(corpus)).value == 1.0


def test_duplicates_in_the_corpus_do_not_count_as_misses():
    pytest.importorskip("scann")
    index = build_index(np.repeat(vectors(3), 200, axis=0), kind="scann", at=50)
    assert index.recall and index.recall.value == 1.0


def test_scann_padding_is_masked():
    """One partition searched holds fewer than asked for; ScaNN then repeats id 0 with NaN."""
    scann = pytest.importorskip("scann.scann_ops.py.scann_ops_pybind")
    corpus, queries = vectors(1000), vectors(10, seed=1)
    settings = ScannSettings("partitioned", 400, leaves=10, leaves_searched=1, reorder=400)
    searcher = module._train(scann, corpus, settings)
    raw, distances = searcher.search_batched(queries, 400, 400, 1)
    missing = np.isnan(distances)
    assert missing.any() and (raw[missing] == 0).all()
    positions, scores = ScannIndex(searcher, 1000, 16, settings).search(queries, 400)
    np.testing.assert_array_equal((positions == -1).sum(axis=1), missing.sum(axis=1))
    assert ((positions == -1) == (scores == -np.inf)).all()
    for row in positions:
        assert len({*row[row >= 0]}) == (row >= 0).sum()


def test_initial_settings_follow_the_size():
    sizes = (19_999, 20_000, 99_999, 100_000, 1_000_000)
    methods = [module._initial_settings(n, 50).method for n in sizes]
    assert methods == ["brute_force", "quantized", "quantized", "partitioned", "partitioned"]
    assert module._initial_settings(1_000_000, 50).leaves == 1000


# ---------------------------------------------------------------------------- saved and loaded


def saved(kind: str, directory: Path, monkeypatch) -> tuple[Path, np.ndarray, list[str]]:
    if kind != "exact":
        pytest.importorskip("scann")
        monkeypatch.setattr(module, "QUANTIZE_FROM", 400 if kind != "scann" else 10**9)
        monkeypatch.setattr(module, "PARTITION_FROM", 400 if kind == "partitioned" else 10**9)
    corpus, ids = vectors(500), [f"p{i}" for i in range(500)]
    index = build_index(corpus, "exact" if kind == "exact" else "scann", at=10)
    index.save(directory, ids, ENCODER)
    return directory, corpus, ids


@pytest.mark.parametrize("kind", ["exact", "scann", "quantized", "partitioned"])
def test_a_moved_index_searches_as_before(tmp_path, monkeypatch, kind):
    place, corpus, ids = saved(kind, tmp_path / "a" / "index", monkeypatch)
    before = load_index(place, ENCODER, ids)
    queries = vectors(30, seed=1)
    expected = before.search(queries, 10)
    moved = tmp_path / "b" / "elsewhere"
    moved.parent.mkdir()
    shutil.move(place, moved)
    after = load_index(moved, ENCODER, ids)
    for a, b in zip(after.search(queries, 10), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert overlap(expected[0], by_hand(corpus, queries, 10)[0]) > 0.9
    assert (after.kind, after.count, after.width) == (before.kind, 500, 16)
    assert after.description == before.description and after.recall == before.recall
    # No path of the machine that made it is stored.
    for path in moved.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_the_manifest_says_what_the_index_is(tmp_path, monkeypatch):
    place, _, ids = saved("partitioned", tmp_path / "index", monkeypatch)
    manifest = json.loads((place / "manifest.json").read_text())
    assert json.loads((place / manifest["ids"]).read_text()) == ids
    figures = {k: manifest[k] for k in ("encoder", "count", "dim", "dtype", "kind")}
    assert figures == {
        "encoder": ENCODER,
        "count": 500,
        "dim": 16,
        "dtype": "float32",
        "kind": "scann",
    }
    assert manifest["recall"]["value"] >= manifest["recall"]["target"] == 0.95
    assert manifest["settings"]["method"] == "partitioned"
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest
    files = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert files == {*manifest["files"], "manifest.json"}


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    index = build_index(vectors(5), "exact")
    with pytest.raises(InputError, match="4 ids for an index of 5 vectors"):
        index.save(tmp_path / "index", list("abcd"), ENCODER)
    assert not list(tmp_path.iterdir())
    index.save(tmp_path / "index", list("abcde"), ENCODER)
    with pytest.raises(InputError, match="index: exists already"):
        index.save(tmp_path / "index", list("abcde"), ENCODER)
    index.save(tmp_path / "index", list("fghij"), OTHER, overwrite=True)
    assert load_index(tmp_path / "index", OTHER, list("fghij")).count == 5
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def change(place: Path, **values) -> None:
    path = place / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reseal(place: Path) -> None:
    """Make the checksums true again after a file was changed on purpose."""
    files = json.loads((place / "manifest.json").read_text())["files"]
    change(place, files={n: hashlib.sha256((place / n).read_bytes()).hexdigest() for n in files})


def refused(place: Path, message: str, encoder: str = ENCODER, ids=None) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_index(place, encoder, ids)
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)


def test_what_does_not_belong_together_is_refused(tmp_path, monkeypatch):
    place, _, ids = saved("exact", tmp_path / "index", monkeypatch)
    refused(place, "made by the encoder eeeeeeeeeeee, not by the one given, 000000000000", OTHER)
    refused(place, "holds 500 passages, the corpus 499", ids=ids[:-1])
    refused(place, "passage 3 is 'p3', in the corpus 'x'", ids=[*ids[:3], "x", *ids[4:]])
    assert load_index(place, ENCODER, ids).count == 500
    refused(tmp_path / "nowhere", "no such index directory")
    refused(tmp_path, "manifest.json: no such file")


def test_damage_is_found(tmp_path, monkeypatch):
    place, corpus, _ = saved("exact", tmp_path / "index", monkeypatch)
    data = place / "vectors.npy"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + b"\x01")
    refused(place, "vectors.npy: differs from the checksum in manifest.json")
    data.unlink()
    refused(place, "vectors.npy: this file of the index is missing")
    np.save(data, corpus[:-1])
    reseal(place)
    refused(place, "manifest.json says 500 vectors of 16 numbers, the data are 499 of 16")
    data.write_bytes(whole)
    reseal(place)
    change(place, kind="faiss")
    refused(place, "field 'kind' is 'faiss', not exact or scann")
    change(place, kind=None)
    refused(place, "field 'kind' must be str, found None")
    change(place, format=99)
    refused(place, "field 'format' must be 1, found 99")
    (place / "manifest.json").write_text("[]")
    refused(place, "field 'format' must be 1, found []")
    (place / "manifest.json").write_text("{")
    refused(place, "not valid JSON")


def test_a_pickle_slipped_into_the_index_is_not_read(tmp_path, monkeypatch):
    place, _, _ = saved("scann", tmp_path / "index", monkeypatch)
    (place / "notes.txt").write_text("mine")
    refused(place, "notes.txt: not a file of this index; remove it")
    (place / "notes.txt").unlink()
    # ScaNN reads this file if it is there, whatever the manifest says.
    (place / "scann" / "scann_docids.pkl").write_bytes(pickle.dumps(["p0"]))
    refused(place, "scann_docids.pkl: a pickle can run any code when it is read; remove it")
    files = json.loads((place / "manifest.json").read_text())["files"]
    change(place, files=files | {"scann/scann_docids.pkl": ""})
    reseal(place)
    refused(place, "scann_docids.pkl: a pickle can run any code when it is read; remove it")


def test_a_scann_index_needs_scann(tmp_path, monkeypatch, request):
    place, _, _ = saved("scann", tmp_path / "index", monkeypatch)
    request.getfixturevalue("no_scann")
    with pytest.raises(MissingExtra, match="a ScaNN index needs the package 'scann'"):
        load_index(place, ENCODER)
