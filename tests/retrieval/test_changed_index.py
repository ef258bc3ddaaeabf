"""Passages added and removed, against an index of what is left; and shards against one index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dynarag_jax.retrieval.index.changes as changes
from dynarag_jax.errors import InputError
from dynarag_jax.retrieval.index import (
    ChangedIndex,
    ExactIndex,
    IndexConfig,
    ShardedIndex,
    build_index,
    build_shards,
    load_ids,
    load_index,
    open_shards,
    update_index,
)

from .indexes import ENCODER, OTHER, by_hand, overlap, use, vectors


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 6), st.integers(1, 20), st.data())
def test_changes_equal_an_index_of_what_is_left(seed, base, added, k, data):
    """Few distinct scores: ties stand in corpus order, across base and additions."""
    rng = np.random.default_rng(seed)
    corpus = rng.integers(-1, 2, (base + added, 2)).astype(np.float32)
    gone = data.draw(st.sets(st.integers(0, base + added - 1), max_size=base + added - 1))
    queries = rng.integers(-1, 2, (3, 2)).astype(np.float32)
    index = ChangedIndex(ExactIndex(corpus[:base]), corpus[base:], np.array(sorted(gone), int))
    left = np.delete(corpus, sorted(gone), axis=0)
    assert index.count == len(left)
    rows = index.rows()
    assert rows is not None
    np.testing.assert_array_equal(rows.array(), left)
    for found, expected in zip(
        index.search(queries, k), ExactIndex(left).search(queries, k), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_many_removed_neighbors_do_not_empty_the_results(monkeypatch):
    """The first 60 of a query are removed: the search must look further than a margin."""
    use(monkeypatch, "quantized")
    corpus, query = vectors(1000), vectors(1, seed=1)
    order, _ = by_hand(corpus, query, 1000)
    base = build_index(corpus, at=10, queries=query, target_recall=1.0)
    index = ChangedIndex(base, None, order[0, :60])
    left = np.delete(corpus, order[0, :60], axis=0)
    assert overlap(index.search(query, 10)[0], by_hand(left, query, 10)[0]) >= 0.9
    assert index.description.endswith("; 0 passages added and searched exactly, 60 removed")
    with pytest.raises(InputError, match="every passage was removed"):
        ChangedIndex(base, None, np.arange(1000))


def saved(place: Path, corpus: np.ndarray, **config) -> list[str]:
    ids = [f"p{i}" for i in range(len(corpus))]
    build_index(corpus, **config).save(place, ids, ENCODER)
    return ids


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_updates_are_kept_on_the_disk(tmp_path, monkeypatch, kind):
    if kind == "scann":
        use(monkeypatch, "partitioned")
    corpus, queries = vectors(500), vectors(20, seed=1)
    new = vectors(30, seed=2)
    ids = saved(tmp_path / "index", corpus, kind=kind, at=20)
    before = (tmp_path / "index" / "ids.json").read_bytes()
    said = update_index(
        tmp_path / "index", ENCODER, add=new[:20], add_ids=[f"n{i}" for i in range(20)]
    )
    assert said == "20 passages added, 0 removed; changes are 4.0 % of the index"
    # p3 is replaced, n1 goes again.
    update_index(
        tmp_path / "index", ENCODER,
        add=new[20:22], add_ids=["p3", "n20"], remove_ids=["p3", "n1", "p499"],
    )  # fmt: skip
    live = [i for i in ids if i not in ("p3", "p499")]
    live += [f"n{i}" for i in range(20) if i != 1] + ["p3", "n20"]
    left = np.concatenate([np.delete(corpus, [3, 499], 0), np.delete(new[:22], 1, 0)])
    shutil.move(tmp_path / "index", tmp_path / "moved")
    assert load_ids(tmp_path / "moved") == live
    index = load_index(tmp_path / "moved", ENCODER, live)
    assert isinstance(index, ChangedIndex) and index.count == len(live) == 519
    positions, scores = index.search(queries, 20)
    assert overlap(positions, by_hand(left, queries, 20)[0]) >= 0.93
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, left[positions]), atol=1e-5)
    # Additions are found exactly: each is its own best.
    np.testing.assert_array_equal(index.search(left[498:], 1)[0][:, 0], np.arange(498, 519))
    # The index itself was not written again.
    assert (tmp_path / "moved" / "ids.json").read_bytes() == before
    assert len(list((tmp_path / "moved").glob("changes-*"))) == 1


def test_an_index_much_changed_is_built_again(tmp_path, monkeypatch):
    use(monkeypatch, "partitioned")
    corpus, new = vectors(500), vectors(60, seed=2)
    ids = saved(tmp_path / "index", corpus, at=20)
    added = [f"n{i}" for i in range(60)]
    said = update_index(tmp_path / "index", ENCODER, add=new, add_ids=added, remove_ids=["p0"])
    assert said.startswith("60 passages added, 1 removed; built again: ScaNN over 559 vectors")
    index = load_index(tmp_path / "index", ENCODER, [*ids[1:], *added])
    assert index.kind == "scann" and index.recall and index.recall.at == 20
    assert not list((tmp_path / "index").glob("changes-*"))
    # Without float32 vectors it cannot be, and says so.
    saved(tmp_path / "small", corpus, at=20, reorder_type="int8", target_recall=0.8)
    said = update_index(tmp_path / "small", ENCODER, add=new, add_ids=added)
    assert said.endswith("12.0 % of an index that keeps no float32 vectors: build it again")
    assert load_index(tmp_path / "small", ENCODER).count == 560


def test_updates_that_are_refused_change_nothing(tmp_path):
    place = tmp_path / "index"
    saved(place, vectors(50))
    before = sorted((p, p.read_bytes()) for p in place.rglob("*") if p.is_file())
    one = vectors(1, seed=2)
    refusals = [
        ("'p7' is in the index already; remove it in the", {"add": one, "add_ids": ["p7"]}),
        ("passage 'x' is not in the index", {"remove_ids": ["x"]}),
        ("passage 'p1' is not in the index", {"remove_ids": ["p1", "p1"]}),
        ("passage 'x' is in the index already", {"add": vectors(2), "add_ids": ["x", "x"]}),
        ("add: 1 vectors for 2 ids", {"add": one, "add_ids": ["x", "y"]}),
        ("8 numbers, those of the index 16", {"add": vectors(1, 8), "add_ids": ["x"]}),
        ("add: vector 0 holds NaN or infinity", {"add": one * np.nan, "add_ids": ["x"]}),
    ]  # fmt: skip
    for message, arguments in refusals:
        with pytest.raises(InputError, match=message):
            update_index(place, ENCODER, **arguments)
    with pytest.raises(InputError, match="made by the encoder eeeeeeeeeeee, not by the one given"):
        update_index(place, OTHER, remove_ids=["p1"])
    assert before == sorted((p, p.read_bytes()) for p in place.rglob("*") if p.is_file())


def test_a_kill_in_mid_update_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    place = tmp_path / "index"
    ids = saved(place, vectors(50))
    update_index(place, ENCODER, remove_ids=["p1"])

    def killed(*_):
        raise KeyboardInterrupt

    # Killed when the new changes are written and the manifest does not name them yet.
    with monkeypatch.context() as patch:
        patch.setattr(changes, "sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            update_index(place, ENCODER, remove_ids=["p2"])
    assert len(list(place.glob("changes-*"))) == 2
    assert load_index(place, ENCODER, [ids[0], *ids[2:]]).count == 49
    update_index(place, ENCODER, remove_ids=["p2"])
    assert load_ids(place) == [ids[0], *ids[3:]]
    assert len(list(place.glob("changes-*"))) == 1
    # Damage to the changes is found as any other.
    name = json.loads((place / "manifest.json").read_text())["changes"]
    (place / name / "removed.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"removed.npy: holds 0 bytes, manifest.json says"):
        load_index(place, ENCODER)


# ---------------------------------------------------------------------------- shards


def test_shards_equal_one_index(tmp_path):
    corpus, queries = vectors(103), vectors(7, seed=1)
    corpus[50:60] = corpus[0:10]  # ties across shards
    ids = [f"p{i}" for i in range(103)]
    np.save(tmp_path / "a.npy", corpus[:40])
    np.save(tmp_path / "b.npy", corpus[40:])
    rows = open_shards([tmp_path / "a.npy", tmp_path / "b.npy"])
    notes: list[tuple[int, str]] = []
    build_shards(
        tmp_path / "index", rows, ids, ENCODER, 4, done=lambda i, note: notes.append((i, note))
    )
    assert [i for i, _ in notes] == [0, 1, 2, 3] and "exact search" in notes[0][1]
    index = load_index(tmp_path / "index", ENCODER, ids)
    assert isinstance(index, ShardedIndex) and index.count == 103
    assert load_ids(tmp_path / "index") == ids
    for k in (1, 9, 60, 200):
        for found, expected in zip(
            index.search(queries, k), ExactIndex(corpus).search(queries, k), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    assert index.description.startswith("4 shards, 103 vectors of 16 numbers; each as: exact")
    assert index.describe().count("recall 1 by construction") == 4


def test_shards_that_stand_are_kept_and_others_built(tmp_path):
    corpus, ids = vectors(40), [f"p{i}" for i in range(40)]
    place, said = tmp_path / "index", {}

    def build(vectors=corpus, ids=ids, encoder=ENCODER, **config) -> set[int]:
        said.clear()
        build_shards(
            place, vectors, ids, encoder, 4, IndexConfig(**config),
            done=lambda i, note: said.update({i: note}),
        )  # fmt: skip
        return {i for i, note in said.items() if note != "stands already"}

    assert build() == {0, 1, 2, 3} and build() == set()
    shutil.rmtree(place / "shard-00002-of-00004")
    with pytest.raises(InputError, match="shard-00002-of-00004: this shard is missing; build it"):
        load_index(place, ENCODER)
    assert build() == {2} and build() == set()
    (place / "shard-00001-of-00004" / "vectors.npy").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"vectors.npy: holds 7 bytes, manifest.json says"):
        load_index(place, ENCODER)
    assert build() == {1} and build() == set()
    # Anything else that made it makes it another index.
    other = corpus.copy()
    other[35] = other[34]
    assert build(vectors=other) == {3} and build(ids=[*ids[:-1], "x"]) == {3}
    assert build(encoder=OTHER) == {0, 1, 2, 3} and build(encoder=OTHER, at=7) == {0, 1, 2, 3}
    with pytest.raises(InputError, match="made by the encoder 000000000000, not by the one given"):
        load_index(place, ENCODER)
    with pytest.raises(InputError, match=r"holds shards; update one of them, .*shard-00003"):
        update_index(place, OTHER, remove_ids=["p1"])
    update_index(place / "shard-00003-of-00004", OTHER, remove_ids=["p38"], rebuild_at=1)
    assert load_index(place, OTHER, [*ids[:38], "p39"]).count == 39
    with pytest.raises(InputError, match="3 vectors cannot be cut into 4 shards"):
        build_shards(tmp_path / "x", corpus[:3], ids[:3], ENCODER, 4)


SEARCH = """
import sys, jax, numpy as np
place, address, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(address, 2, process)
from dynarag_jax.retrieval.index import build_shards, load_index
x, q = np.load(place + "/x.npy", mmap_mode="r"), np.load(place + "/q.npy")
ids = [f"p{i}" for i in range(len(x))]
build_shards(place + "/index", x, ids, "e" * 64, 3, process=process, processes=2)
from dynarag_jax.processes import gather
gather("built", b"")
index = load_index(place + "/index", "e" * 64, ids, process=process, processes=2)
import dynarag_jax.retrieval.index.sharded as sharded
sharded._TOLD = 8 * 11 * 4  # several messages a search
found = index.search(q, 11)
np.savez(place + f"/found{process}.npz", positions=found[0], scores=found[1])
print(index.description)
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    corpus, queries = vectors(1000), vectors(30, seed=1)
    np.save(tmp_path / "x.npy", corpus)
    np.save(tmp_path / "q.npy", queries)
    address = f"localhost:{23000 + os.getpid() % 10000}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SEARCH, str(tmp_path), address, str(process)],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for process in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert [s.split(",")[1] for s in said] == [" 1 of them here", " 2 of them here"]
    expected = ExactIndex(corpus).search(queries, 11)
    for process in range(2):
        with np.load(tmp_path / f"found{process}.npz") as found:
            np.testing.assert_array_equal(found["positions"], expected[0])
            np.testing.assert_array_equal(found["scores"], expected[1])


def test_processes_that_ask_for_different_things_are_told(tmp_path):
    shards = {0: ExactIndex(vectors(5))}

    def answers(*sizes):
        return lambda key, own: [own, *(b"\0" * size for size in sizes)]

    index = ShardedIndex(shards, [5, 5], 16, 2, answers(8))
    with pytest.raises(InputError, match="2 processes must search together, with the same"):
        index.search(vectors(2), 3)
    with pytest.raises(InputError, match="1 of 2 shards are here"):
        ShardedIndex(shards, [5, 5], 16)
    with pytest.raises(InputError, match="shard 0 holds 5 vectors of 16 numbers, not 4 of 16"):
        ShardedIndex(shards, [4], 16)
