"""The encoder against transformers' BertModel, and its masks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from dynarag_jax.exchange.encoder_weights import read_params
from dynarag_jax.exchange.encoders import config_from_hf
from dynarag_jax.models import encoder
from dynarag_jax.models.encoder import (
    Encoder,
    EncoderConfig,
    count_parameters,
    init_params,
    parameter_shapes,
)

SMALL = EncoderConfig(vocab=50, width=24, layers=3, heads=4, mlp=40, positions=32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A random torch model, our configuration of it and its weights as our parameters."""
    torch.manual_seed(0)
    hf = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        initializer_range=0.4,
    )
    model = BertModel(hf).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn_like(p))
    cfg = config_from_hf(hf.to_dict())
    directory = tmp_path_factory.mktemp("bert")
    model.save_pretrained(directory)
    return model, cfg, read_params(directory, cfg)


def encode(cfg, params, tokens, lengths):
    return encoder.encode(cfg, params, jnp.asarray(tokens), jnp.asarray(lengths))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([1, 2, 7, 32, 19, 32], np.int32)
    return rng.integers(0, 50, (6, 32)).astype(np.int32), lengths


def test_hidden_states_equal_transformers(pair):
    model, cfg, params = pair
    assert cfg == SMALL
    tokens, lengths = batch()
    inside = np.arange(32) < lengths[:, None]
    with torch.no_grad():
        theirs = model(
            torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(inside, dtype=torch.long),
        ).last_hidden_state.numpy()
    ours = np.asarray(Encoder(cfg).apply({"params": params}, tokens, lengths))
    assert ours.shape == (6, 32, 24)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)
    # The weights are such that positions, and not only words, decide the result.
    assert np.abs(theirs[3, 0] - theirs[5, 0]).max() > 0.1


def test_gradients_equal_transformers(pair):
    model, cfg, params = pair
    tokens, lengths = batch()
    inside = np.arange(32) < lengths[:, None]
    weights = np.random.default_rng(1).normal(size=(6, 32, 24)) * inside[..., None]
    weights = weights.astype(np.float32)
    model.zero_grad()
    theirs = model(
        torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(inside, dtype=torch.long),
    ).last_hidden_state
    (theirs * torch.tensor(weights)).sum().backward()
    ours = jax.jit(jax.grad(lambda p: (encode(cfg, p, tokens, lengths) * weights).sum()))(params)
    for i, layer in enumerate(model.encoder.layer):
        attention = layer.attention.self
        parts = [getattr(attention, n).weight.grad.numpy().T for n in ("query", "key", "value")]
        np.testing.assert_allclose(
            ours["layers"]["qkv"][i], np.concatenate(parts, axis=1), rtol=1e-3, atol=2e-3
        )
        np.testing.assert_allclose(
            ours["layers"]["down"][i], layer.output.dense.weight.grad.numpy().T, 1e-3, 2e-3
        )
    embedded = model.embeddings.word_embeddings.weight.grad.numpy()
    # torch gives its padding token no gradient.
    np.testing.assert_allclose(ours["tokens"][1:], embedded[1:], rtol=1e-3, atol=2e-3)


def test_what_stands_in_the_padding_changes_nothing(pair):
    _, cfg, params = pair
    tokens, lengths = batch()
    inside = np.arange(32) < lengths[:, None]
    other = np.where(inside, tokens, (tokens + 17) % 50)
    a, b = (np.asarray(encode(cfg, params, t, lengths)) for t in (tokens, other))
    np.testing.assert_array_equal(a[inside], b[inside])
    shorter = np.asarray(encode(cfg, params, tokens[:3, :8], lengths[:3]))
    np.testing.assert_allclose(shorter[inside[:3, :8]], a[:3, :8][inside[:3, :8]], atol=1e-5)


def test_an_empty_row_is_finite(pair):
    _, cfg, params = pair
    hidden = encode(cfg, params, np.zeros((2, 4), np.int32), np.array([0, 4], np.int32))
    assert np.isfinite(np.asarray(hidden)).all()


def test_bfloat16_is_near_float32(pair):
    _, cfg, params = pair
    tokens, lengths = batch()
    inside = np.arange(32) < lengths[:, None]
    half = encode(dataclasses.replace(cfg, dtype="bfloat16"), params, tokens, lengths)
    assert half.dtype == jnp.bfloat16
    full = np.asarray(encode(cfg, params, tokens, lengths))[inside]
    error = np.abs(np.asarray(half, np.float32)[inside] - full)
    assert 0 < error.mean() < 0.03 * np.abs(full).mean()


def test_init_makes_the_declared_parameters():
    params = init_params(SMALL, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, params) == parameter_shapes(SMALL)
    assert count_parameters(SMALL) == sum(x.size for x in jax.tree.leaves(params))
    assert float(jnp.std(params["layers"]["up"])) == pytest.approx(0.02, rel=0.1)
    assert float(jnp.min(params["layers"]["mlp_norm_scale"])) == 1.0
    # all-MiniLM-L6-v2 is published as 22.7 M parameters; its pooler, not used here, is 147,840.
    assert count_parameters(EncoderConfig()) == 22_713_216 - 147_840


def test_contradictions_are_refused(pair):
    _, cfg, params = pair
    with pytest.raises(ValueError, match="33 positions, the encoder has 32"):
        encode(cfg, params, np.zeros((1, 33), np.int32), np.array([33]))
    with pytest.raises(ValueError, match="width = 24 is not a multiple of heads = 5"):
        dataclasses.replace(SMALL, heads=5)


@pytest.mark.parametrize("grouped", [False, True])
def test_first_positions_alone_are_those_of_all(pair, grouped):
    _, cfg, params = pair
    tokens, lengths = batch()
    there = jnp.ones((1, len(tokens)), bool) if grouped else None
    apart = encoder.last_apart(cfg, params)
    assert [len(jax.tree.leaves(stack)[0]) for stack in apart["layers"]] == [cfg.layers - 1, 1]

    def of(function, params):
        return function(cfg, params, jnp.asarray(tokens), jnp.asarray(lengths), None, there)

    whole = of(encoder.encode, params)[:, 0]
    np.testing.assert_allclose(of(encoder.encode_first, params), whole, atol=1e-5)
    np.testing.assert_allclose(of(encoder.encode_first, apart), whole, atol=1e-5)
    # A sum of squares: the gradient sees every number.
    wanted = jax.jit(jax.grad(lambda p: (of(encoder.encode, p)[:, 0] ** 2).sum()))(params)
    found = jax.jit(jax.grad(lambda p: (of(encoder.encode_first, p) ** 2).sum()))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(np.abs(other).max()))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_rematerialized_layers_have_the_same_gradients_and_keep_less(family):
    cfg = dataclasses.replace(SMALL, family=family, layers=8)
    params = init_params(cfg, jax.random.key(0))
    tokens, lengths = batch()

    def gradient(remat):
        def total(params):
            one = dataclasses.replace(cfg, remat=remat)
            return (encode(one, params, tokens, lengths) ** 2).mean()

        compiled = jax.jit(jax.grad(total)).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    (kept, more), (again, less) = gradient("none"), gradient("full")
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    assert less < more / 2


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_layers_written_out_have_the_gradients_of_a_scan(family, remat):
    cfg = dataclasses.replace(SMALL, family=family, remat=remat)
    params = init_params(cfg, jax.random.key(0))
    tokens, lengths = batch()

    def gradient(unroll):
        one = dataclasses.replace(cfg, unroll=unroll)
        found = jax.grad(lambda p: (encode(one, p, tokens, lengths) ** 2).mean())
        return jax.jit(found)(params), str(jax.make_jaxpr(found)(params)).count(" scan[")

    (scanned, loops), (written, none) = gradient(1), gradient(cfg.layers)
    assert loops and not none
    for one, other in zip(jax.tree.leaves(written), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
