"""What a compiled step holds: no whole scores, gradients in float32, moments on the host."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.products import matmul
from dynarag_jax.objectives.terms import Objectives, PromptNll, TokenNll
from dynarag_jax.policy import logprobs
from dynarag_jax.policy.batches import BatchShape, Example, collate
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.sharding import make_mesh, require_host_memory
from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
from dynarag_jax.training.step import StreamLoss, init_state, loss_and_figures, make_step

CFG = DecoderConfig(
    vocab=256, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64
)
GRAMMAR = build_grammar(
    Spelling((10,), tuple((i,) for i in range(1, 7)), (20, 10), (20,), (30,), 31)
)
PARTS = {"x": StreamLoss(Objectives(nll=TokenNll(1.0), prompt_nll=PromptNll(1.0)))}
ROWS, PROMPT, BRANCH = 4, 33, 8


def batch():
    rng = np.random.default_rng(0)
    rows = [
        Example(
            f"{i}",
            rng.integers(0, 256, rng.integers(9, PROMPT + 1)).tolist(),
            [rng.integers(0, 256, BRANCH).tolist()],
        )
        for i in range(ROWS)
    ]
    return {"x": collate(rows, BatchShape(PROMPT, 1, BRANCH, 6))}


def mesh_of(*sizes):
    return make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def arrays_of(text):
    """(type, shape) of every array in a compiled program."""
    found = re.findall(r"\b(f32|bf16)\[([\d,]+)\]", text)
    return {(kind, tuple(map(int, shape.split(",")))) for kind, shape in found}


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), pytest.param((2, 1, 2), marks=pytest.mark.slow)], ids=str
)
def test_no_array_of_tokens_by_vocabulary_is_whole_forward_or_backward(monkeypatch, sizes):
    """A device's own scores are those of a chunk; the projection is inside the gradient."""
    monkeypatch.setattr(logprobs, "WHOLE", 0)
    monkeypatch.setattr(logprobs, "CHUNK", 8 * CFG.vocab)
    mesh, batches = mesh_of(*sizes), batch()
    rows, vocab = ROWS // sizes[0], CFG.vocab // sizes[2]
    step = make_step(CFG, mesh, make_optimizer(OptimizerConfig(), 9), GRAMMAR, PARTS)
    state = init_state(CFG, mesh, make_optimizer(OptimizerConfig(), 9))
    held = arrays_of(step.lower(state, batches).compile().as_text())
    widths = (CFG.vocab, vocab)
    scores = [
        int(np.prod(shape[:-1]))
        for _, shape in held
        if shape[-1] in widths and shape[0] != CFG.width
    ]
    chunk = 8 * sizes[2]  # a device with a part of the vocabulary takes more positions
    assert chunk in scores  # the test sees scores at all
    # Beside them only the embedding and its moments are as wide, and they are [vocabulary, width].
    assert max(scores) <= max(chunk, CFG.width)
    assert rows * (PROMPT - 1) > max(chunk, CFG.width)


@pytest.mark.slow
def test_chunks_train_as_the_whole_on_a_mesh(monkeypatch):
    def gradient(mesh):
        params = decoder.init_params(CFG, jax.random.key(0))
        batches = batch()
        with jax.set_mesh(mesh):
            return jax.jit(
                jax.grad(lambda p: loss_and_figures(CFG, p, batches, batches, GRAMMAR, PARTS)[0])
            )(params)

    whole = gradient(mesh_of(1, 1, 1))
    monkeypatch.setattr(logprobs, "WHOLE", 0)
    monkeypatch.setattr(logprobs, "CHUNK", 8 * CFG.vocab)
    chunks = gradient(mesh_of(2, 1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, chunks)


# ---------------------------------------------------------------------------- float32 sums


def test_the_gradient_of_master_weights_is_not_rounded_to_bfloat16():
    """One product in bfloat16, whose gradient by the weights is the float32 sum of exact terms."""
    rng = np.random.default_rng(0)
    x, pull = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((300, 4), (300, 3)))
    w = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    dx, dw = jax.jit(jax.grad(lambda x, w: (matmul(x, w) * pull).sum(), argnums=(0, 1)))(x, w)
    exact = np.asarray(x, np.float64).T @ np.asarray(pull, np.float64)
    assert dw.dtype == jnp.float32
    np.testing.assert_allclose(dw, exact, rtol=1e-5)
    assert np.abs(np.asarray(dw.astype(jnp.bfloat16), np.float64) - exact).max() > 1e-2
    expected = np.asarray(pull, np.float64) @ np.asarray(w.astype(jnp.bfloat16), np.float64).T
    np.testing.assert_allclose(np.asarray(dx, np.float64), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_bfloat16_steps_sum_gradients_over_devices_and_microbatches_in_float32():
    cfg = dataclasses.replace(CFG, dtype="bfloat16")
    mesh = mesh_of(2, 1, 1)
    rule = make_optimizer(OptimizerConfig(), 9)
    step = make_step(cfg, mesh, rule, GRAMMAR, PARTS, accumulate=2)
    text = step.lower(init_state(cfg, mesh, rule), batch()).compile().as_text()
    reduced = re.findall(r"= \(?(\w+)\[[\d,]*\][^=]*? all-reduce(?:-start)?\(", text)
    assert reduced
    assert "bf16" not in reduced
    # And the loop over microbatches carries every matrix's gradient as float32.
    loops = [line for line in text.splitlines() if " while(" in line]
    matrix = f"f32[{cfg.layers},{cfg.width},{cfg.mlp}]"
    assert any(matrix in line for line in loops)
    assert not any(matrix.replace("f32", "bf16") in line.split(" while(")[0] for line in loops[-1:])


def test_moments_of_bfloat16_weights_are_float32():
    cfg = dataclasses.replace(CFG, dtype="bfloat16", param_dtype="bfloat16")
    rule = make_optimizer(OptimizerConfig(), 9)
    state = init_state(cfg, mesh_of(1, 1, 1), rule)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}


# ---------------------------------------------------------------------------- host memory


def trained(cfg=CFG, sizes=(2, 2, 1), **settings):
    mesh, rule = mesh_of(*sizes), make_optimizer(OptimizerConfig(learning_rate=0.02), 9)
    state = init_state(cfg, mesh, rule, **settings)
    step = make_step(cfg, mesh, rule, GRAMMAR, PARTS, **settings)
    for _ in range(2):
        state, figures = step(state, batch())
    return state, figures


@pytest.mark.slow
def test_moments_in_host_memory_train_the_same():
    there, figures = trained(offload=True)
    here, expected = trained()
    moments = [x for x in jax.tree.leaves(there.optimizer) if x.ndim]
    assert {x.sharding.memory_kind for x in moments} == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(there.params)} == {"device"}
    assert figures["loss"] == expected["loss"]
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    jax.tree.map(np.testing.assert_array_equal, there.optimizer, here.optimizer)


def gradient_of(remat):
    cfg, batches = dataclasses.replace(CFG, remat=remat), batch()
    return jax.grad(lambda p: loss_and_figures(cfg, p, batches, batches, GRAMMAR, PARTS)[0])


@pytest.mark.parametrize(
    "remat",
    ["none", "full", "dots", pytest.param("offload", marks=pytest.mark.slow), "dots_offload"],
)
def test_what_is_kept_waits_on_the_host_where_asked(remat):
    text = str(jax.make_jaxpr(gradient_of(remat))(decoder.init_params(CFG, jax.random.key(0))))
    kept = set(re.findall(r"f32<host>\[([\d,]+)\]", text))
    # Over two layers: the trunk's and the branches' inputs, or what their products gave.
    inputs = {"2,4,33,16", "2,4,1,7,16"}
    assert (inputs <= kept) == (remat == "offload")
    assert bool(kept) == ("offload" in remat)
    assert ("2,132,24" in kept) == (remat == "dots_offload")  # the MLP's


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots", "offload", "dots_offload"])
def test_rematerialization_changes_what_is_kept_and_nothing_else(remat):
    params = decoder.init_params(CFG, jax.random.key(0))
    plain, ours = (jax.jit(gradient_of(name))(params) for name in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, ours)


class NoHostMemory:
    """A device of a backend without addressable host memory, which no backend here is."""

    device_kind = "old"

    @staticmethod
    def addressable_memories():
        return [type("Memory", (), {"kind": "device"})]


def test_devices_without_host_memory_are_refused():
    mesh = type("Mesh", (), {"devices": np.array([NoHostMemory()])})
    with pytest.raises(InputError, match=r"optimizer\.offload needs host memory .* old devices"):
        require_host_memory(mesh, "optimizer.offload")
