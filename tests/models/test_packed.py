"""Texts that lie packed, against the same texts padded: values and gradients."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models import encoder
from dynarag_jax.models.encoder import EncoderConfig, init_params
from dynarag_jax.models.packed import Room
from dynarag_jax.models.pairs import PairBatch, pair_vectors
from dynarag_jax.sharding import make_mesh

CFG = EncoderConfig(vocab=50, width=24, layers=3, heads=4, mlp=40, positions=64)
LENGTHS = np.array([[40, 3, 17, 0], [1, 0, 38, 25], [0, 0, 0, 0], [9, 40, 9, 6]], np.int32)
MOST = int(LENGTHS.sum(1).max())


def texts(t=40):
    rng = np.random.default_rng(0)
    n = LENGTHS.size
    tokens = rng.integers(0, 50, (n, t)).astype(np.int32)
    types = rng.integers(0, 2, (n, t)).astype(np.int32)
    return tuple(map(jnp.asarray, (tokens, LENGTHS.reshape(n), types)))


def values_and_gradients(cfg, room, first, mesh=None):
    params = jax.tree.map(lambda p: 5 * p, init_params(cfg, jax.random.key(0)))
    tokens, lengths, types = texts()
    real = (jnp.arange(40) < lengths[:, None])[..., None]
    rng = np.random.default_rng(1)
    pull = jnp.asarray(rng.normal(size=(*tokens.shape, cfg.width)), jnp.float32)
    run = encoder.encode_first if first else encoder.encode

    def total(params):
        out = run(cfg, params, tokens, lengths, types, None, room)
        # What stands where no text does means nothing.
        out = jnp.where(real[:, 0], out, 0) if first else jnp.where(real, out, 0)
        return (out * (pull[:, 0] if first else pull)).astype(jnp.float32).sum(), out

    compute = jax.jit(jax.value_and_grad(total, has_aux=True))
    if mesh is None:
        (_, out), gradients = compute(params)
    else:
        with jax.set_mesh(mesh):
            (_, out), gradients = compute(params)
    return [np.asarray(x, np.float32) for x in (out, *jax.tree.leaves(gradients))]


def assert_equal(ours, padded, atol=2e-5):
    for one, other in zip(ours, padded, strict=True):
        np.testing.assert_allclose(one, other, atol=atol * max(1, np.abs(other).max()), rtol=1e-4)


@pytest.mark.parametrize("first", [False, True], ids=["every", "first"])
@pytest.mark.parametrize("positions", [MOST, MOST + 7, 160])
def test_packed_texts_are_the_padded_ones_with_gradients(positions, first):
    padded = values_and_gradients(CFG, None, first)
    assert_equal(values_and_gradients(CFG, Room(4, positions), first), padded)


def test_a_group_may_be_shorter_than_a_padded_text():
    tokens, lengths, types = texts()
    short = jnp.minimum(lengths, 7)
    params = init_params(CFG, jax.random.key(0))
    padded = encoder.encode(CFG, params, tokens, short, types)
    packed = encoder.encode(CFG, params, tokens, short, types, None, Room(4, 28))
    real = (np.arange(40) < np.asarray(short)[:, None])[..., None]
    np.testing.assert_allclose(np.where(real, packed, 0), np.where(real, padded, 0), atol=2e-5)


def test_a_reading_of_some_candidates_computes_no_more_than_padding_would():
    pairs = PairBatch(*(jnp.zeros(shape, jnp.int32) for shape in ((2, 3, 8), (2, 3), (2, 3, 8))),
                      jnp.zeros((2, 3), jnp.int32), Room(1, 1000))  # fmt: skip
    params = init_params(CFG, jax.random.key(0), scored=True)
    text = jax.jit(lambda p: pair_vectors(CFG, params, p)).lower(pairs).as_text()
    assert f"tensor<{2 * 3 * 8}x{3 * CFG.width}xf32>" in text


def test_devices_pack_their_own_groups():
    padded = values_and_gradients(CFG, None, True)
    mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
    assert_equal(values_and_gradients(CFG, Room(4, MOST), True, mesh), padded)


def test_in_bfloat16_packed_texts_differ_by_rounding():
    half = dataclasses.replace(CFG, dtype="bfloat16")
    exact = values_and_gradients(CFG, None, False)
    ours, padded = (values_and_gradients(half, r, False) for r in (Room(4, MOST), None))
    for true, one, other in zip(exact, ours, padded, strict=True):
        assert np.abs(one - true).max() <= 2 * np.abs(other - true).max() + 1e-6


def test_what_lies_packed_is_left_alone_by_other_texts():
    """A text's values are the same whatever lies around it."""
    tokens, lengths, types = texts()
    params = init_params(CFG, jax.random.key(0))
    run = jax.jit(lambda lengths: encoder.encode(CFG, params, tokens, lengths, types, None, room))
    room = Room(4, MOST)
    together, alone = run(lengths), run(jnp.where(jnp.arange(16) == 6, lengths, 0))
    np.testing.assert_allclose(together[6, :38], alone[6, :38], atol=1e-6)
    assert np.abs(together[6, :38]).min() > 0
