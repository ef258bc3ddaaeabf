"""Vectors of a frozen encoder on disk: what is read again is what would be computed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.policy import kept_vectors
from dynarag_jax.policy.kept_vectors import VectorStore, encoder_key, frozen_vectors
from dynarag_jax.records import Passage, Question
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from tests.sampling.small_encoder import small_encoder_policy

SAMPLING = Sampling(temperature=1.0)


@pytest.fixture(scope="module")
def policy():
    return small_encoder_policy()


def questions_of(count):
    return [
        Question(
            f"q{i}", f"where is port {i % 12}",
            passages=tuple(
                Passage(f"p{j}", f"port {(i * j) % 12} lies on river {j}") for j in range(3 + i % 3)
            ),
        )
        for i in range(count)
    ]  # fmt: skip


def reversed_candidates(question):
    return dataclasses.replace(question, passages=question.passages[::-1])


def made(policy, questions, store, monkeypatch):
    """Vectors, and how many questions were encoded for them."""
    encoded = []
    original = kept_vectors.collate_pairs

    def counting(pairs, n, t):
        encoded.append(len(pairs))
        return original(pairs, n, t)

    monkeypatch.setattr(kept_vectors, "collate_pairs", counting)
    found = frozen_vectors(
        policy.cfg, policy.params, questions, policy.pair_maker(), policy.mesh, store=store
    )
    return found, len(encoded)


def test_what_is_kept_is_read_again_in_whatever_order_candidates_stand(
    policy, tmp_path, monkeypatch
):
    asked = questions_of(7)
    plain, _ = made(policy, asked, None, monkeypatch)
    first, encoded = made(policy, asked, VectorStore(tmp_path / "v"), monkeypatch)
    assert encoded > 0
    turned = [reversed_candidates(question) for question in asked]
    again, encoded = made(policy, turned, VectorStore(tmp_path / "v"), monkeypatch)
    assert encoded == 0
    for question in asked:
        for one, kept, back in zip(
            plain[question.id], first[question.id], again[question.id], strict=True
        ):
            np.testing.assert_array_equal(one, kept)
            np.testing.assert_array_equal(kept, back[::-1])


def test_a_kill_loses_no_more_than_a_shard(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_vectors, "SHARD", 2)
    asked = questions_of(12)  # four of each number of candidates
    stopped = 0

    def heard(done):
        nonlocal stopped
        stopped += done
        if stopped >= 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(kept_vectors, "BATCH", 1)
    with pytest.raises(KeyboardInterrupt):
        frozen_vectors(
            policy.cfg, policy.params, asked, policy.pair_maker(), policy.mesh, heard,
            VectorStore(tmp_path / "v"),
        )  # fmt: skip
    _, encoded = made(policy, asked, VectorStore(tmp_path / "v"), monkeypatch)
    assert encoded == 4


def test_a_sampler_with_kept_vectors_draws_and_scores_the_same_lists(policy, tmp_path):
    asked = questions_of(7)
    plain = EncoderSampler(policy, 4, 0)
    store = VectorStore(tmp_path / "v")
    kept = EncoderSampler(policy, 4, 0, store)
    drawn, other = plain.lists(asked, SAMPLING, 3), kept.lists(asked, SAMPLING, 3)
    assert [one.lists for one in drawn] == [one.lists for one in other]
    assert list((tmp_path / "v").glob("*.npz"))
    given = [list(dict.fromkeys(one.lists)) for one in drawn]
    for one, two in zip(plain.logps(asked, given), kept.logps(asked, given), strict=True):
        for x, y in zip(one, two, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_whoever_asks_again_and_again_compiles_once(policy):
    kept_vectors._program.cache_clear()
    maker = policy.pair_maker()
    for question in questions_of(9)[::3]:  # of equal numbers of candidates
        frozen_vectors(policy.cfg, policy.params, [question], maker, policy.mesh)
    assert kept_vectors._program(policy.cfg, policy.mesh)._cache_size() == 1


def test_every_encoder_has_a_place_of_its_own(policy, tmp_path):
    assert VectorStore.of_run(tmp_path, policy.cfg, policy.params, create=False) is None
    one = VectorStore.of_run(tmp_path, policy.cfg, policy.params, create=True)
    assert one is not None
    encoder = jax.tree.map(lambda x: x, policy.params["encoder"])
    other = {**policy.params, "encoder": {**encoder, "norm_bias": encoder["norm_bias"] + 1e-6}}
    head = {**policy.params, "head": jax.tree.map(lambda x: x + 1, policy.params["head"])}
    apart = dataclasses.replace(policy.cfg, interaction=True)
    assert encoder_key(policy.cfg, head) == one.directory.name
    assert encoder_key(policy.cfg, other) != one.directory.name
    assert encoder_key(apart, policy.params) != one.directory.name
    one.put(policy.pair_maker().pairs(questions_of(1)[0]), np.ones((3, 12)), np.zeros(3))
    one.flush()
    # Only where somebody froze this encoder is there something to read.
    assert VectorStore.of_run(tmp_path, policy.cfg, head, create=False) is not None
    assert VectorStore.of_run(tmp_path, policy.cfg, other, create=False) is None


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "one.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"one\.npz: holds no vectors .* remove it"):
        VectorStore(tmp_path)
