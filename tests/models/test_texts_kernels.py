"""Encoders' attention by the flash kernels: against the plain one, and what cuDNN is asked for."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.models import encoder, encoder_parts
from dynarag_jax.models.encoder import EncoderConfig
from dynarag_jax.models.kernels import Platform, attend_within, choose_for_texts
from dynarag_jax.sharding import make_mesh
from tests.models.test_kernels import cudnn_present as cudnn_present
from tests.models.test_kernels import fmha_calls

BERT = EncoderConfig(vocab=50, width=64, layers=2, heads=2, mlp=40, positions=160)
MODERN = dataclasses.replace(BERT, family="modernbert", window=9, windowed=(False, True))
LENGTHS = np.array([150, 1, 40, 129], np.int32)


def by_kernel(monkeypatch, kernel):
    monkeypatch.setattr(encoder_parts, "choose_for_texts", lambda *_: kernel)


def hidden_and_gradients(cfg, first=False):
    """What an encoder makes of texts, and the gradients of its layers."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, (4, 150)).astype(np.int32)
    params = encoder.init_params(cfg, jax.random.key(0))
    params = jax.tree.map(lambda p: 5 * p, params)  # so that attention looks somewhere
    pull = jnp.asarray(rng.normal(size=(4, 150, cfg.width)), jnp.float32)
    real = (np.arange(150) < LENGTHS[:, None])[..., None]
    run = encoder.encode_first if first else encoder.encode

    def total(params):
        out = run(cfg, params, jnp.asarray(tokens), jnp.asarray(LENGTHS))
        out = out if first else jnp.where(real, out, 0)
        return (out * (pull[:, 0] if first else pull)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return [np.asarray(x) for x in (out, *jax.tree.leaves(gradients))]


@pytest.mark.parametrize("unroll", [1, 2])
@pytest.mark.parametrize("cfg", [BERT, MODERN], ids=lambda cfg: cfg.family)
def test_an_encoder_by_splash_attention_is_the_plain_one_with_gradients(cfg, unroll, monkeypatch):
    cfg = dataclasses.replace(cfg, unroll=unroll)
    plain = hidden_and_gradients(cfg)
    by_kernel(monkeypatch, "splash")
    for one, other in zip(hidden_and_gradients(cfg), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max(), rtol=1e-4)


def test_first_positions_by_splash_attention(monkeypatch):
    plain = hidden_and_gradients(BERT, first=True)
    by_kernel(monkeypatch, "splash")
    for one, other in zip(hidden_and_gradients(BERT, first=True), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max(), rtol=1e-4)


@pytest.mark.parametrize("rows", [4, 3])
def test_on_a_mesh_devices_share_the_texts_where_they_divide(rows, monkeypatch):
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(rows, 2, 140, 32)), jnp.float32) for _ in range(3))
    lengths = jnp.asarray(np.minimum(LENGTHS[:rows], 140))
    visible = (jnp.arange(140) < lengths[:, None])[:, None, None]
    plain = encoder_parts.attend_texts(q, k, v, visible, lengths)
    by_kernel(monkeypatch, "splash")
    with jax.set_mesh(make_mesh(2, 1, 2, devices=jax.devices()[:4])):
        run = jax.jit(encoder_parts.attend_texts)
        ours = run(q, k, v, visible, lengths)
        text = run.lower(q, k, v, visible, lengths).as_text()
    real = (np.arange(140) < lengths[:, None])[:, None, :, None]
    np.testing.assert_allclose(np.where(real, ours, 0), np.where(real, plain, 0), atol=2e-5)
    # Two of four texts on each device; three are computed by all.
    assert f"tensor<{2 if rows == 4 else 3}x2x256x64xf32>" in text


def lowered_for_cuda():
    rng = np.random.default_rng(0)
    # cuDNN refuses gradients of an odd length.
    q, k, v = (jnp.asarray(rng.normal(size=(4, 41, 2, 32)), jnp.bfloat16) for _ in range(3))

    def total(q, k, v):
        return attend_within(q, k, v, jnp.asarray(LENGTHS) % 42, None, "cudnn").sum()

    run = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    return run.trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_is_asked_for_texts_with_lengths(cudnn_present):
    calls = fmha_calls(lowered_for_cuda())
    assert set(calls) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert {config["mask_type"] for config in calls.values()} == {"PADDING"}
    assert {config["fmha_scale"] for config in calls.values()} == {1.0}


def test_which_kernel_reads_texts():
    hopper, ampere, tpu = Platform("cuda", True), Platform("cuda"), Platform("tpu")
    assert choose_for_texts("bfloat16", 64, 128, False, hopper) == "cudnn"
    assert choose_for_texts("float32", 64, 512, False, hopper) == "plain"
    assert choose_for_texts("bfloat16", 60, 512, False, hopper) == "plain"
    assert choose_for_texts("bfloat16", 256, 512, False, ampere) == "plain"
    # It knows windows of causal attention only.
    assert choose_for_texts("bfloat16", 64, 512, True, hopper) == "plain"
    assert choose_for_texts("float32", 32, 256, True, tpu) == "splash"
    assert choose_for_texts("bfloat16", 64, 252, False, tpu) == "plain"
    assert choose_for_texts("bfloat16", 64, 512, False, Platform("rocm")) == "plain"
    assert choose_for_texts("bfloat16", 64, 512, False) == "plain"
