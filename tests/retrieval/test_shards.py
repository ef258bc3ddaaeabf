"""Vectors in shards: whatever is killed, in however many processes, the bytes are the same."""

from __future__ import annotations

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.embed import Embedder, PassageTexts, embed, embed_shards
from dynarag_jax.retrieval.shards import Plan, finish, open_vectors, shard_path, standing

from .conftest import WORDS


def plan_of(encoder, texts, **more) -> Plan:
    return Plan(encoder.fingerprint, "texts", len(texts), encoder.config.width, size=8, **more)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    # Later shards have longer texts than the first.
    return [" ".join(rng.choice(WORDS, rng.integers(1, 4 + i // 3))) for i in range(30)]


@pytest.fixture(scope="module")
def embedder(tiny):
    return Embedder(tiny, batch_tokens=64, devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny, embedder, texts):
    directory = tmp_path_factory.mktemp("whole")
    plan = plan_of(tiny, texts)
    embed_shards(embedder, texts, "", directory, plan)
    finish(directory, plan)
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_shards_hold_the_vectors(whole, tiny, texts):
    expected = embed(tiny, texts)
    found = open_vectors(whole, tiny.fingerprint, "texts", check=True)
    assert [part.shape for part in found.parts] == [(8, 24)] * 3 + [(6, 24)]
    np.testing.assert_allclose(found.array(), expected, atol=1e-5)
    places = np.array([29, 0, 8, 7, 0])
    np.testing.assert_array_equal(found.rows(places), found.array()[places])
    assert [first for first, _ in found.blocks()] == [0, 8, 16, 24]
    # Anything that reads safetensors reads a shard.
    np.testing.assert_array_equal(
        load_file(shard_path(whole, 1))["vectors"], np.asarray(found.parts[1])
    )


def test_bfloat16_takes_half(tmp_path, tiny, embedder, texts, whole):
    plan = plan_of(tiny, texts, dtype="bfloat16")
    embed_shards(embedder, texts, "", tmp_path, plan)
    finish(tmp_path, plan)
    found = open_vectors(tmp_path)
    assert found.parts[0].dtype == ml_dtypes.bfloat16
    full = open_vectors(whole).array()
    np.testing.assert_array_equal(found.array(), full.astype(ml_dtypes.bfloat16).astype("f4"))


@pytest.mark.parametrize("after", [1, 9, 17, 26])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(
    tmp_path, tiny, embedder, texts, whole, after
):
    plan, seen = plan_of(tiny, texts), 0

    def stop(count: int) -> None:
        nonlocal seen
        seen += count
        if seen >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_shards(embedder, texts, "", tmp_path, plan, progress=stop)
    stood = standing(tmp_path, plan)
    assert len(stood) == min(after // 8, 3)
    with pytest.raises(InputError, match=r"no manifest.json; embedding has not finished"):
        open_vectors(tmp_path)
    again = Embedder(tiny, batch_tokens=64, devices=jax.devices()[:2])
    counts = []
    embed_shards(again, texts, "", tmp_path, plan, progress=counts.append)
    assert sum(counts) == 30 - 8 * len(stood)
    finish(tmp_path, plan)
    assert contents(tmp_path) == contents(whole)


def test_processes_that_share_the_shards_make_the_same_bytes(
    tmp_path, tiny, embedder, texts, whole
):
    plan = plan_of(tiny, texts)
    for process in (1, 0):
        embed_shards(embedder, texts, "", tmp_path, plan, lambda s, p=process: s % 2 == p)
        assert len(standing(tmp_path, plan)) == 2 * (2 - process)
    finish(tmp_path, plan)
    assert contents(tmp_path) == contents(whole)


def test_damage_is_named(tmp_path, tiny, embedder, texts, whole):
    plan = plan_of(tiny, texts)
    for name, data in contents(whole).items():
        (tmp_path / name).write_bytes(data)
    path = shard_path(tmp_path, 2)
    data = path.read_bytes()
    for broken, says in [
        (data[:-8], r"damaged safetensors file: .* embed again"),
        (data[:40], r"damaged safetensors file: .* embed again"),
        (b"", r"damaged safetensors file: .* embed again"),
        (shard_path(whole, 3).read_bytes(), r"holds F32 \[6, 24\], expected F32 \[8, 24\]"),
    ]:
        path.write_bytes(broken)
        with pytest.raises(InputError, match=f"00002.safetensors: {says}"):
            open_vectors(tmp_path)
        with pytest.raises(InputError, match=f"00002.safetensors: {says}"):
            embed_shards(embedder, texts, "", tmp_path, plan)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    open_vectors(tmp_path)
    with pytest.raises(InputError, match=r"00002.safetensors: differs from its checksum"):
        open_vectors(tmp_path, check=True)
    path.unlink()
    with pytest.raises(InputError, match=r"00002.safetensors: this shard is missing"):
        open_vectors(tmp_path)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"made by the encoder .* not by the one given, other"):
        open_vectors(tmp_path, encoder="other")
    with pytest.raises(InputError, match="made of other texts"):
        open_vectors(tmp_path, texts="other")
    manifest = read_json(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"width": 25}))
    with pytest.raises(InputError, match=r"holds F32 \[8, 24\], expected F32 \[8, 25\]"):
        open_vectors(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"dtype": "int8"}))
    with pytest.raises(InputError, match="field 'dtype' must be one of float32, bfloat16"):
        open_vectors(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="this shard is missing"):
        finish(tmp_path, dataclasses.replace(plan, count=48))


def test_a_text_that_is_none_is_named_by_its_place_in_all(tmp_path, tiny, embedder, texts):
    bad = [*texts[:20], "half \ud83d", *texts[21:]]
    with pytest.raises(InputError, match="text 20 holds half of a surrogate pair"):
        embed_shards(embedder, bad, "", tmp_path, plan_of(tiny, bad))


def test_passages_as_texts():
    texts = PassageTexts([Passage("1", "b", "A"), Passage("2", "c")])
    assert len(texts) == 2 and texts[0] == "A b" and texts[:] == ["A b", "c"]
