"""Indexes that are saved, moved, damaged, and loaded again."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.retrieval.index import build_index, load_ids, load_index, open_shards

from .indexes import ENCODER, OTHER, by_hand, overlap, use, vectors


def saved(kind: str, directory: Path, monkeypatch) -> tuple[Path, np.ndarray, list[str]]:
    if kind != "exact":
        use(monkeypatch, kind)
    corpus, ids = vectors(500), [f"p{i}" for i in range(500)]
    index = build_index(corpus, kind="exact" if kind == "exact" else "scann", at=10)
    index.save(directory, ids, ENCODER)
    return directory, corpus, ids


@pytest.mark.parametrize("kind", ["exact", "brute_force", "quantized", "partitioned"])
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
    assert manifest["speed"]["single_ms"] > 0 and manifest["config"]["at"] == 10
    for name, facts in manifest["files"].items():
        data = (place / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert files == {*manifest["files"], "manifest.json"}


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    index = build_index(vectors(5), kind="exact")
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
    whole = {n: (place / n).read_bytes() for n in files}
    change(
        place,
        files={
            n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in whole.items()
        },
    )


def refused(place: Path, message: str, encoder: str = ENCODER, ids=None) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_index(place, encoder, ids)
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)


def test_what_does_not_belong_together_is_refused(tmp_path, monkeypatch):
    place, _, ids = saved("exact", tmp_path / "index", monkeypatch)
    refused(place, "made by the encoder eeeeeeeeeeee, not by the one given, 000000000000", OTHER)
    refused(place, "holds 500 passages, the corpus 499", ids=ids[:-1])
    refused(place, "passage 3 is 'p3', in the corpus 'x'", ids=[*ids[:3], "x", *ids[4:]])
    assert load_index(place, ENCODER, ids).count == 500 and load_ids(place) == ids
    refused(tmp_path / "nowhere", "no such index directory")
    refused(tmp_path, "manifest.json: no such file")


def test_damage_is_found(tmp_path, monkeypatch):
    place, corpus, _ = saved("exact", tmp_path / "index", monkeypatch)
    data = place / "vectors.npy"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + b"\x01")
    refused(place, "vectors.npy: differs from the checksum in manifest.json")
    data.write_bytes(whole[:-100])
    refused(place, f"vectors.npy: holds {len(whole) - 100:,} bytes, manifest.json says")
    # Sizes are compared even where checksums are not.
    with pytest.raises(InputError, match="it was cut off or changed, build the index again"):
        load_index(place, ENCODER, checksums=False)
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
    refused(place, "field 'format' must be 3, found 99")
    (place / "manifest.json").write_text("[]")
    refused(place, "field 'format' must be 3, found []")
    (place / "manifest.json").write_text("{")
    refused(place, "not valid JSON")


def test_a_pickle_slipped_into_the_index_is_not_read(tmp_path, monkeypatch):
    place, _, _ = saved("brute_force", tmp_path / "index", monkeypatch)
    (place / "notes.txt").write_text("mine")
    refused(place, "notes.txt: not a file of this index; remove it")
    (place / "notes.txt").unlink()
    # ScaNN reads this file if it is there, whatever the manifest says.
    (place / "scann" / "scann_docids.pkl").write_bytes(pickle.dumps(["p0"]))
    refused(place, "scann_docids.pkl: a pickle can run any code when it is read; remove it")
    files = json.loads((place / "manifest.json").read_text())["files"]
    change(place, files=files | {"scann/scann_docids.pkl": {}})
    reseal(place)
    refused(place, "scann_docids.pkl: a pickle can run any code when it is read; remove it")


def test_a_scann_index_needs_scann(tmp_path, monkeypatch):
    place, _, _ = saved("brute_force", tmp_path / "index", monkeypatch)
    for name in ("scann", "scann.scann_ops.py"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match="a ScaNN index needs the package 'scann'"):
        load_index(place, ENCODER)


def test_a_scann_index_of_another_width_is_refused(tmp_path, monkeypatch):
    """A query of the manifest's width would read beyond ScaNN's vectors."""
    place, _, _ = saved("partitioned", tmp_path / "index", monkeypatch)
    change(place, dim=17)
    refused(place, "manifest.json says 17 numbers a vector, the data have 16")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    index, ids = build_index(vectors(500)), [str(i) for i in range(500)]
    small = shutil.disk_usage(tmp_path)._replace(free=20_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: small)
        with pytest.raises(InputError, match=r"takes about 0.0 MiB, the disk has 0.0 MiB"):
            index.save(tmp_path / "index", ids, ENCODER)

    def full(directory: Path) -> dict:
        (directory / "vectors.npy").write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index, "_write", full)
    with pytest.raises(InputError, match="the disk ran full, nothing was kept") as caught:
        index.save(tmp_path / "index", ids, ENCODER)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_write_that_scann_does_not_report_is_found(tmp_path, monkeypatch):
    use(monkeypatch, "partitioned")
    index = build_index(vectors(500))

    class Silent:
        def serialize(self, directory: str, relative_path: bool) -> None:
            (Path(directory) / "dataset.npy").write_bytes(b"some")

    monkeypatch.setattr(index, "_searcher", Silent())
    with pytest.raises(InputError, match="ScaNN wrote 4 bytes of about 36,000; the disk is full"):
        index.save(tmp_path / "index", [str(i) for i in range(500)], ENCODER)
    assert not list(tmp_path.iterdir())


def test_shards_of_vectors_from_files(tmp_path):
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for i, path in enumerate(paths):
        np.save(path, vectors(10, seed=i))
    rows = open_shards(paths)
    assert rows.shape == (30, 16) and isinstance(rows.parts[0], np.memmap)
    np.testing.assert_array_equal(rows.block(10, 20), vectors(10, seed=1))
    with pytest.raises(InputError, match=r"0.npy: vectors have 16 numbers, those of the index 8"):
        open_shards(paths, 8)
    whole = paths[1].read_bytes()
    for size in (len(whole) - 1, 40, 0):
        paths[1].write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"1.npy: cut off or no .npy file") as caught:
            open_shards(paths)
        assert "\n" not in str(caught.value)
    np.save(paths[1], np.arange(3))
    with pytest.raises(InputError, match=r"1.npy: expected floating-point vectors \[n, d\]"):
        open_shards(paths)
    paths[1].unlink()
    with pytest.raises(InputError, match=r"1.npy: no such file of vectors"):
        open_shards(paths)
