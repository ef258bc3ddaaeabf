"""The flash kernels against the plain attention, and what is said where they cannot compute.

Splash attention runs here interpreted; cuDNN's kernel is traced and lowered for CUDA, so that what
is asked of it is known, though no GPU computes it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.models import decoder, kernels
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.kernels import Platform, attend, choose
from dynarag_jax.sharding import MESH_AXES, make_mesh

H, G, K = 4, 2, 64
GPU, TPU, CPU = Platform("cuda", hopper=True), Platform("tpu"), Platform("cpu")
HALF = DecoderConfig(dtype="bfloat16")


def arrays(dtype=np.float32, b=2, p=140) -> Any:
    rng = np.random.default_rng(0)
    q, k, v, pull = (
        jnp.asarray(rng.normal(size=(b, p, heads, K)) * scale, dtype)
        for heads, scale in ((H, K**-0.5), (G, 1.0), (G, 1.0), (H, 1.0))
    )
    return q, k, v, pull, jnp.array([p, p // 3][:b], jnp.int32)


def value_and_gradients(kernel, dtype, window=None, cap=None, reach=None):
    """The attention of real positions and its gradients, in float32."""
    q, k, v, pull, lengths = arrays(dtype)
    real = (jnp.arange(q.shape[1]) < lengths[:, None])[..., None, None]

    def total(q, k, v, window):
        out = attend(q, k, v, lengths, window, cap, kernel, reach).astype(jnp.float32)
        return (jnp.where(real, out, 0.0) * pull).sum(), jnp.where(real, out, 0.0)

    # A static window is part of the program; one that is an array is chosen inside it.
    traced = window if isinstance(window, jax.Array) else None
    run = jax.jit(
        jax.grad(
            lambda *x, w: total(*x, window if traced is None else w),
            argnums=(0, 1, 2),
            has_aux=True,
        )
    )
    gradients, out = run(q, k, v, w=traced)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


@pytest.mark.parametrize(("window", "cap"), [(None, None), (17, 3.0)], ids=str)
def test_splash_attention_equals_the_plain_one_with_gradients(window, cap):
    ours = value_and_gradients("splash", np.float32, window, cap)
    plain = value_and_gradients("plain", np.float32, window, cap)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_splash_attention_in_bfloat16_differs_by_rounding():
    exact = value_and_gradients("plain", np.float32)
    ours, plain = (value_and_gradients(kernel, jnp.bfloat16) for kernel in ("splash", "plain"))
    for true, one, other in zip(exact, ours, plain, strict=True):
        # As close to the exact result as the plain attention in bfloat16 is.
        error, allowed = np.abs(one - true).max(), np.abs(other - true).max()
        assert error <= 2 * allowed
        assert allowed < 0.05 * np.abs(true).max()


@pytest.mark.parametrize("window", [17, 2**30])
def test_layers_of_a_scan_choose_between_two_kernels(window):
    picked = value_and_gradients("splash", np.float32, jnp.int32(window), reach=17)
    plain = value_and_gradients("plain", np.float32, None if window > 140 else window)
    for one, other in zip(picked, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("windowed", [(), (True, False)], ids=["alike", "mixed"])
def test_a_model_with_splash_attention_under_a_mesh_is_the_plain_model(windowed):
    cfg = DecoderConfig(
        vocab=64, width=64, layers=2, heads=4, kv_heads=2, head_size=64, mlp=64,
        window=9 if windowed else None, windowed=windowed, attention="plain",
    )  # fmt: skip
    params = decoder.init_params(cfg, jax.random.key(0))
    rng = np.random.default_rng(1)
    trunk = rng.integers(0, 64, (4, 40)).astype(np.int32)
    branches = rng.integers(0, 64, (4, 2, 5)).astype(np.int32)
    lengths = np.array([40, 1, 13, 28], np.int32)

    def forward(cfg):
        return jax.jit(lambda *x: decoder.trunk_and_branches(cfg, *x)[1])(
            params, trunk, lengths, branches
        )

    plain = forward(cfg)
    cfg = dataclasses.replace(cfg, attention="splash")
    with jax.set_mesh(make_mesh(2, 1, 2, devices=jax.devices()[:4])):
        np.testing.assert_allclose(forward(cfg), plain, atol=2e-5)


# ---------------------------------------------------------------------------- cuDNN, for CUDA


@pytest.fixture
def cudnn_present(monkeypatch):
    """JAX asks the installed cuDNN for its version while tracing; here is none."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def lowered_for_cuda(window, mesh=None):
    q, k, v, pull, lengths = arrays(jnp.bfloat16, b=2)

    def total(q, k, v):
        return (attend(q, k, v, lengths, window, None, "cudnn") * pull).sum()

    trace = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace
    if mesh is None:
        return trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    with jax.set_mesh(mesh):
        return trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()


def fmha_calls(text):
    """(target, configuration) of every call of cuDNN's attention in a lowered program."""
    calls = re.findall(r"@(__cudnn\$fmha\w+)\(.*?backend_config = \"(.*?)\"[,}]", text)
    return {
        target: json.loads(config.replace("\\22", '"'))["cudnn_fmha_backend_config"]
        for target, config in calls
    }


@pytest.mark.parametrize("window", [None, 17])
def test_cudnn_is_asked_for_causal_attention_with_lengths(cudnn_present, window):
    calls = fmha_calls(lowered_for_cuda(window))
    assert set(calls) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    for config in calls.values():
        assert config["mask_type"] == "PADDING_CAUSAL"
        assert config["fmha_scale"] == 1.0
        assert config["sliding_window_length"] == (window or 0)


def test_cudnn_is_called_on_each_devices_rows_and_heads(cudnn_present):
    text = lowered_for_cuda(None, make_mesh(2, 1, 2, devices=jax.devices()[:4]))
    call = next(line for line in text.splitlines() if "@__cudnn$fmhaSoftmax(" in line)
    # One of two rows and two of four query heads, one of two key heads.
    assert "tensor<1x140x2x64xbf16>, tensor<1x140x1x64xbf16>, tensor<1x140x1x64xbf16>" in call


# ---------------------------------------------------------------------------- the choice


def test_each_platform_has_its_kernel_and_says_so():
    assert choose(HALF, GPU) == (
        "cudnn",
        "attention of the trunk by cuDNN's flash kernel, branches by XLA",
    )
    assert choose(dataclasses.replace(HALF, head_size=128), TPU).kernel == "splash"
    assert choose(HALF, CPU) == ("plain", "attention by XLA in blocks of queries")
    assert choose(HALF, Platform("rocm")).kernel == "plain"
    assert choose(dataclasses.replace(HALF, attention="plain"), GPU).kernel == "plain"
    assert choose(HALF) == choose(HALF, CPU)


@pytest.mark.parametrize(
    ("platform", "change", "reason"),
    [
        (GPU, {"score_cap": 50.0}, "not by cudnn: it has no soft cap"),
        (GPU, {"dtype": "float32"}, "not by cudnn: it computes bfloat16"),
        (GPU, {"head_size": 36}, "no multiple of 8"),
        (GPU, {"head_size": 264}, "larger than 256"),
        (Platform("cuda"), {"head_size": 256}, "larger than 128"),
        (TPU, {"head_size": 40}, "not by splash: heads of 40 numbers are no multiple of 64"),
    ],
)
def test_what_a_kernel_cannot_compute_falls_to_the_plain_attention_and_is_said(
    platform, change, reason
):
    cfg = dataclasses.replace(HALF, **change)
    choice = choose(cfg, platform)
    assert choice.kernel == "plain"
    assert reason in choice.reason
    asked = "splash" if platform is TPU else "cudnn"
    with pytest.raises(InputError, match=f"attention '{asked}' cannot be used"):
        choose(dataclasses.replace(cfg, attention=asked), platform)


def test_soft_caps_and_windows_are_splash_attentions():
    cfg = dataclasses.replace(HALF, head_size=256, score_cap=50.0, window=64)
    assert choose(cfg, TPU).kernel == "splash"
    with pytest.raises(InputError, match="needs an NVIDIA GPU, and this is cpu"):
        choose(dataclasses.replace(HALF, attention="cudnn"))


def described(platform, kind):
    """A mesh of devices that are not here, as a compiler's description of them gives it."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    types = (jax.sharding.AxisType.Auto,) * 3
    return jax.sharding.AbstractMesh((1, 1, 1), MESH_AXES, types, abstract_device=device)


@pytest.mark.parametrize(
    ("device", "platform"),
    [
        (("tpu", "TPU v5 lite"), TPU),
        (("gpu", "NVIDIA H100 80GB HBM3"), GPU),
        (("gpu", "NVIDIA A100-SXM4-80GB"), Platform("cuda")),
        (("gpu", "AMD Instinct MI300X"), Platform("rocm")),
        (("cpu", "cpu"), CPU),
    ],
)
def test_the_platform_is_that_of_the_devices_a_program_is_made_for(device, platform):
    assert Platform.here() == CPU
    with jax.sharding.use_abstract_mesh(described(*device)):
        assert Platform.here() == platform


def test_splash_attention_is_compiled_where_the_mesh_is_of_tpus():
    """Also where no TPU is at hand: the default backend is a CPU, which would interpret it."""
    q, k, v, _, lengths = arrays()
    kernels._splash_kernel.cache_clear()
    with jax.sharding.use_abstract_mesh(described("tpu", "TPU v5 lite")):
        run = jax.jit(lambda *x: attend(*x, lengths, None, None, "splash"))
        text = run.trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


def test_masks_of_splash_attention_outlive_the_trace_that_made_them():
    q, k, v, _, lengths = arrays()
    kernels._splash_kernel.cache_clear()
    for _ in range(2):  # the second trace takes the first one's tables
        run = jax.jit(lambda *x: attend(*x, lengths, None, None, "splash"))
        assert np.isfinite(run(q, k, v)).all()
