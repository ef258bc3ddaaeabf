"""ScaNN against exact search: what is tuned, what is claimed, what is too large."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

import dynarag_jax.retrieval.index.memory as estimates
from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.retrieval.index import (
    ExactIndex,
    IndexConfig,
    Recall,
    ScannIndex,
    ScannSettings,
    build_index,
    estimate,
)
from dynarag_jax.retrieval.index.build import first_settings
from dynarag_jax.retrieval.index.rows import Rows
from dynarag_jax.retrieval.index.scann import ReorderType, train
from dynarag_jax.retrieval.index.tuning import bytes_read, recall_meter, sample_queries

from .indexes import by_hand, overlap, use, vectors


@pytest.fixture
def no_scann(monkeypatch):
    for name in ("scann", "scann.scann_ops.py"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_scann_auto_is_exact_and_says_so(no_scann, monkeypatch):
    monkeypatch.setattr("dynarag_jax.retrieval.index.build.SCANN_FROM", 5)
    index = build_index(vectors(5))
    assert isinstance(index, ExactIndex)
    assert index.description == (
        "exact search in JAX over 5 vectors of 16 numbers (ScaNN is not installed)"
    )
    with pytest.raises(MissingExtra, match=r"pip install 'dynarag_jax\[retrieval\]'"):
        build_index(vectors(5), kind="scann")


def test_auto_is_exact_for_small_corpora_and_says_so(monkeypatch):
    index = build_index(vectors(50))
    assert index.describe() == (
        "exact search in JAX over 50 vectors of 16 numbers (fewer than 20,000 vectors)\n"
        "recall 1 by construction"
    )
    use(monkeypatch, "quantized")
    large = build_index(vectors(500))
    assert isinstance(large, ScannIndex) and large.recall and large.speed
    assert large.description.startswith("ScaNN over 500 vectors of 16 numbers: quantized, best ")
    assert f"recall@50 {large.recall.value:.4f} on 256 passages" in large.description
    lines = large.describe().splitlines()
    assert lines[1].endswith("on 256 passages of the corpus, for want of queries")
    assert f"{large.speed.single_ms:.2f} ms a query alone" in lines[2]


def test_brute_force_equals_exact():
    pytest.importorskip("scann")
    corpus, queries = vectors(2000, 24), vectors(300, 24, seed=1)
    expected, values = by_hand(corpus, queries, 20)
    index = build_index(corpus, kind="scann")
    positions, scores = index.search(queries, 20)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, values, atol=1e-5)
    # One query at a time goes another way.
    alone = [index.search(q[None], 20) for q in queries[:20]]
    np.testing.assert_array_equal(np.concatenate([p for p, _ in alone]), expected[:20])


@pytest.mark.parametrize("method", ["quantized", "partitioned"])
def test_the_search_is_widened_until_the_target_holds(monkeypatch, method):
    use(monkeypatch, method)
    # Unclustered data: the hardest, where a narrow search finds too little.
    corpus, queries = vectors(3000, 32), vectors(200, 32, seed=1)
    easy, hard = (
        build_index(corpus, target_recall=target, at=20, queries=queries, first_recall=0)
        for target in (0.5, 0.97)
    )
    expected, _ = by_hand(corpus, queries, 20)
    for index, target in ((easy, 0.5), (hard, 0.97)):
        assert isinstance(index, ScannIndex) and index.settings.method == method
        # The recall that is claimed is the recall that there is, but for scores equal in float32.
        found = overlap(index.search(queries, 20)[0], expected)
        assert index.recall and index.recall.value == pytest.approx(found, abs=1e-3)
        first = overlap(index.search(queries, 20)[0], expected[:, :10])
        assert index.recall.first == pytest.approx(first, abs=1e-3)
        told = Recall(index.recall.value, 20, 200, "queries", target, index.recall.first, 0)
        errors = {"error": index.recall.error, "first_error": index.recall.first_error}
        assert index.recall == dataclasses.replace(told, **errors) and index.recall.holds
        # It holds beyond the sample: the target lies below a one-sided bound of 95 %.
        each = [overlap(index.search(queries[i : i + 1], 20)[0], expected[i : i + 1])
                for i in range(200)]  # fmt: skip
        assert index.recall.error == pytest.approx(np.std(each) / np.sqrt(200), abs=1e-3)
        assert index.recall.holds_beyond
        assert found - 1.645 * np.std(each) / np.sqrt(200) >= target - 1e-3
        # What it finds, it scores exactly.
        positions, scores = index.search(queries, 20)
        inner = np.einsum("qd,qkd->qk", queries, corpus[positions])
        np.testing.assert_allclose(scores, inner, atol=1e-5)
    assert isinstance(easy, ScannIndex) and isinstance(hard, ScannIndex)
    assert bytes_read(easy.settings, 3000, 32) < bytes_read(hard.settings, 3000, 32)
    # No wider than it must be: a little narrower, and the target is missed.
    narrower = (
        dataclasses.replace(hard.settings, leaves_searched=hard.settings.leaves_searched // 2)
        if method == "partitioned"
        else dataclasses.replace(hard.settings, reorder=hard.settings.reorder // 2)
    )
    assert overlap(hard.tuned(narrower).search(queries, 20)[0], expected) < 0.97
    # A search for more than it was tuned for widens in proportion.
    assert overlap(hard.search(queries, 100)[0], by_hand(corpus, queries, 100)[0]) > 0.9


def test_the_best_ten_have_a_target_of_their_own(monkeypatch):
    use(monkeypatch, "partitioned")
    corpus, queries = vectors(3000, 32), vectors(200, 32, seed=1)
    loose, strict = (
        build_index(corpus, target_recall=0.6, at=40, queries=queries, first_recall=first)
        for first in (0, 0.98)
    )
    best = by_hand(corpus, queries, 10)[0]
    assert overlap(loose.search(queries, 40)[0], best) < 0.98
    assert overlap(strict.search(queries, 40)[0], best) >= 0.98
    assert strict.recall and f"{strict.recall.first:.4f} of the 0.98 for the best 10" in (
        strict.describe()
    )
    index = build_index(corpus, target_recall=0.5, at=3, first_recall=1, reorder_type="int8")
    assert isinstance(index, ExactIndex)
    assert " of the best 3, not 1)" in index.description


def test_a_target_out_of_reach_falls_to_exact_and_says_so(monkeypatch):
    use(monkeypatch, "partitioned")
    corpus = vectors(600, 32)
    # Scores rounded to eight bits put near-equals in another order.
    index = build_index(corpus, target_recall=1.0, at=10, reorder_type="int8")
    assert isinstance(index, ExactIndex)
    assert "with all partitions searched and " in index.description
    assert "candidates scored again in int8 ScaNN reached recall@10 0.9" in index.description
    assert index.description.endswith(", not 1)")


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_vectors_kept_in_fewer_bits(monkeypatch, kind):
    use(monkeypatch, "partitioned")
    corpus, queries = vectors(2000, 32), vectors(100, 32, seed=1)
    index = build_index(corpus, at=20, queries=queries, target_recall=0.9, reorder_type=kind)
    assert isinstance(index, ScannIndex) and index.settings.reorder_type == kind
    assert f"scored again in {kind}" in index.description
    positions, scores = index.search(queries, 20)
    assert overlap(positions, by_hand(corpus, queries, 20)[0]) >= 0.9
    inner = np.einsum("qd,qkd->qk", queries, corpus[positions])
    # bfloat16 keeps 8 bits of each number, int8 a scale per dimension.
    assert 1e-6 < np.abs(scores - inner).max() < 0.01


def test_two_builds_make_the_same_files(monkeypatch, tmp_path):
    use(monkeypatch, "partitioned")
    corpus = vectors(3000, 32)
    manifests = []
    for place in (tmp_path / "a", tmp_path / "b"):
        build_index(corpus, at=20).save(place, [str(i) for i in range(3000)], "e")
        manifests.append(json.loads((place / "manifest.json").read_text()))
        del manifests[-1]["speed"]
    assert manifests[0] == manifests[1] and len(manifests[0]["files"]) > 5


def test_a_passage_does_not_count_as_its_own_neighbor():
    """An index that finds every passage itself and nothing else has a recall of 0."""
    corpus = vectors(300)
    rows = Rows(corpus)
    measure = recall_meter(rows, *sample_queries(rows, None, 256), 10, 0.95)

    class OnlyItself(ExactIndex):
        def _search(self, queries, k):
            positions, scores = super()._search(queries, 1)
            return positions, scores

    assert measure(OnlyItself(corpus)).value == 0.0
    assert measure(ExactIndex(corpus)).value == 1.0


def test_duplicates_in_the_corpus_do_not_count_as_misses(monkeypatch):
    use(monkeypatch, "quantized")
    index = build_index(np.repeat(vectors(3), 200, axis=0), at=50)
    assert index.recall and index.recall.value == 1.0 and index.duplicates == 597


def test_scann_padding_is_masked():
    """One partition searched holds fewer than asked for; ScaNN then repeats id 0 with NaN."""
    pytest.importorskip("scann")
    corpus, queries = vectors(1000), vectors(10, seed=1)
    settings = ScannSettings("partitioned", 400, leaves=10, leaves_searched=1, reorder=400)
    searcher = train(corpus, settings)
    raw, distances = searcher.search_batched(queries, 400, 400, 1)
    missing = np.isnan(distances)
    assert missing.any() and (raw[missing] == 0).all()
    index = ScannIndex(searcher, 1000, 16, settings)
    positions, scores = index.search(queries, 400)
    np.testing.assert_array_equal((positions == -1).sum(axis=1), missing.sum(axis=1))
    assert ((positions == -1) == (scores == -np.inf)).all()
    for row in positions:
        assert len({*row[row >= 0]}) == (row >= 0).sum()
    # A query alone gets a shorter answer from ScaNN, and the same one from us.
    for i, query in enumerate(queries):
        np.testing.assert_array_equal(index.search(query[None], 400)[0][0], positions[i])


def test_first_settings_follow_the_size():
    sizes = (4_999, 5_000, 19_999, 20_000, 1_000_000)
    methods = [first_settings(n, IndexConfig()).method for n in sizes]
    assert methods == ["brute_force", "quantized", "quantized", "partitioned", "partitioned"]
    assert first_settings(1_000_000, IndexConfig(leaves=77)).leaves == 77


# ---------------------------------------------------------------------------- memory


def test_memory_of_all_of_wikipedia():
    """21 million vectors of 768 numbers, by hand: 64.5 GB in float32, 4.0 GB of codes, twice."""
    count, width = 21_000_000, 768
    codes = 2 * count * width / 4
    sizes: dict[ReorderType, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
    for kind, size in sizes.items():
        memory = estimate(count, width, IndexConfig("scann", reorder_type=kind))
        assert memory.parts["vectors scored again"] == count * width * size
        assert memory.parts["codes"] == codes
        assert (
            memory.search
            == memory.disk
            == pytest.approx(count * width * size + codes + 8 * count + 4 * 9165 * width, rel=1e-3)
        )
        # The vectors, each one's difference from its center, codes twice, and the samples of 128
        # vectors for each of 9,165 partitions and twice 100,000.
        samples = 4 * width * (128 * 9165 + 200_000)
        assert memory.build == pytest.approx(2 * 4 * count * width + 2 * codes + samples, rel=1e-3)
    joined = estimate(count, width, IndexConfig("scann"), copy=True)
    assert joined.build - memory.build == 4 * count * width


def test_what_does_not_fit_is_refused_before_it_is_built(monkeypatch):
    use(monkeypatch, "partitioned")
    with pytest.raises(InputError) as caught:
        build_index(vectors(500), memory_gib=1e-4)
    message = str(caught.value)
    assert message.startswith("index: scann search over 500 vectors takes 0.01 GiB to build")
    assert "0.00 GiB are the limit set: split it into more shards" in message
    monkeypatch.setattr(estimates, "machine_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"0.00 GiB are free here: split it into more shards"):
        build_index(vectors(500))
    monkeypatch.setattr(estimates, "machine_memory", lambda: None)
    assert build_index(vectors(500)).count == 500


def test_this_machine_has_memory():
    free = estimates.machine_memory()
    assert free is not None and free > 1 << 20


PEAK = """
import sys, numpy as np
from dynarag_jax.retrieval.index.build import IndexConfig, estimate, first_settings
from dynarag_jax.retrieval.index.scann import import_scann, train
def status(field):
    line = next(x for x in open("/proc/self/status") if x.startswith(field))
    return 1024 * int(line.split()[1])
count, width, config = int(sys.argv[1]), 128, IndexConfig("scann", reorder_type="int8")
x = np.random.default_rng(0).standard_normal((count, width), np.float32)
import_scann()
before = status("VmRSS")
train(x, first_settings(count, config))
print(status("VmHWM") - before, estimate(count, width, config).build)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [19_000, 200_000])
def test_memory_taken_is_the_memory_estimated(count):
    """Without partitions and with them: the peak of a process that builds one index."""
    pytest.importorskip("scann")
    said = subprocess.run(
        [sys.executable, "-c", PEAK, str(count)], check=True, capture_output=True, text=True
    ).stdout
    taken, estimated = map(int, said.split())
    assert 0.75 * estimated < taken < 1.05 * estimated
