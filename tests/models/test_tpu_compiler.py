"""A training step, and embedding, through the TPU's own compiler, which needs no TPU.

libtpu describes one. Skipped where it is not installed (``pip install libtpu``, the version that
JAX's extra names).
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from dynarag_jax.compilers.topologies import describe, read_topology
from dynarag_jax.exchange.encoders import EncoderShape
from dynarag_jax.models import decoder, products
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.encoder import EncoderConfig
from dynarag_jax.models.kernels import Platform
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.logprobs import token_logps
from dynarag_jax.retrieval.compiled import EmbeddingNeeds, embedded_batch, lower_batch
from dynarag_jax.rings import along, rings_of
from dynarag_jax.sharding import make_mesh, named

# A vocabulary so large beside the width, and so few tokens, that bringing the scores' gradient
# together would send less than bringing the matrix together.
CFG = DecoderConfig(
    vocab=6144, width=1024, layers=1, heads=4, kv_heads=2, head_size=128, mlp=512,
    dtype="bfloat16", remat="full", tied=False,
)  # fmt: skip
ROWS, PROMPT, BRANCHES, BRANCH = 8, 256, 2, 41
SHAPES = jax.eval_shape(lambda key: decoder.init_params(CFG, key), jax.random.key(0))


@pytest.fixture
def chips():
    """Describes slices of a v5e."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: the step is not compiled for a TPU")
    return lambda shape: describe(read_topology(f"v5e:{shape}"))


def made(mesh, length=PROMPT, rows=ROWS, by_rings=True):
    """Every array of the gradient's program that is made: size, shape and operation."""
    return read(program(mesh, length, rows, by_rings))


def program(mesh, length=PROMPT, rows=ROWS, by_rings=True, cfg=CFG, branches=BRANCHES):
    """The text of the gradient's program."""
    place = param_shardings(cfg, mesh)
    shapes = jax.eval_shape(lambda key: decoder.init_params(cfg, key), jax.random.key(0))
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, place
    )
    batch = [
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=named(mesh, ("batch",)))
        for shape in ((rows, length), (rows,), (rows, branches, BRANCH))
    ]

    def loss(params, trunk, lengths, branches):
        _, hidden = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)
        return token_logps(cfg, params, hidden, branches).unconstrained.mean()

    with jax.set_mesh(mesh), along(rings_of(mesh) if by_rings else {}):
        assert Platform.here() == Platform("tpu")
        step = jax.jit(jax.grad(loss), out_shardings=place).lower(params, *batch)
        return step.compile().as_text()


def read(text):
    """Every array of a compiled program with splash attention: size, shape and operation."""
    assert "splash" in text
    found = re.findall(r"= \(?((?:f32|bf16)\[([\d,]+)\])\S* ([\w-]+)\(", text)
    return [(math.prod(map(int, sizes.split(","))), shape, name) for shape, sizes, name in found]


def test_a_step_for_tpus_brings_no_scores_together(chips):
    arrays = made(make_mesh(1, 4, 1, devices=chips("2x2")))
    collectives = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    sent = [size for size, _, name in arrays if name.removesuffix("-start") in collectives]
    assert sent
    assert max(sent) <= max(x.size for x in jax.tree.leaves(SHAPES))
    # Scores of all tokens by the vocabulary, and of all heads by all pairs of a prompt's positions.
    scores = {ROWS * BRANCHES * BRANCH * CFG.vocab, ROWS * CFG.heads * PROMPT * PROMPT}
    assert not scores & {size for size, _, _ in arrays}


def test_no_device_makes_a_vocabularys_gradient_whole(chips, monkeypatch):
    """Neither by the scores, nor by the prompts' tokens, where these are cut over both axes."""
    monkeypatch.setattr(products, "GRADIENT", CFG.vocab * CFG.width // 4)
    arrays = made(make_mesh(1, 4, 1, sequence=4, devices=chips("4x4")), 4096)
    either = {f"f32[{CFG.vocab},{CFG.width}]", f"f32[{CFG.width},{CFG.vocab}]"}
    assert [name for _, shape, name in arrays if shape in either] == []
    # Each device has its columns of it.
    assert f"f32[{CFG.vocab},{CFG.width // 16}]" in {shape for _, shape, _ in arrays}


def test_a_whole_gradient_of_the_vocabulary_is_not_kept_beside_the_layers(chips):
    """Made with the scores, it is cut and sent before the layers' backward pass, or after it."""
    cfg = replace(CFG, layers=4, tied=True)
    text = program(make_mesh(1, 8, 1, devices=chips("2x4")), 1024, cfg=cfg, branches=1)
    steps = text[text.index("\nENTRY ") :].split("\n")
    loop = max(i for i, step in enumerate(steps) if " while(" in step)
    # It is made turned, in two parts.
    kept = (f"= f32[{cfg.width},{cfg.vocab // 2}]", f"= f32[{cfg.width},{cfg.vocab}]")
    whole = [
        step.split(" = ")[0].strip()
        for step in steps[:loop]
        if any(shape in step for shape in kept)
    ]
    assert not [name for name in whole if any(name in step for step in steps[loop:])]


def test_no_device_brings_the_gradients_of_all_tokens_together(chips):
    """Of the embedding: each sends to another what falls into that one's columns."""
    rows = 32
    arrays = made(make_mesh(2, 16, 1, devices=chips("4x8")), rows=rows)
    whole = [name for _, shape, name in arrays if shape == f"f32[{CFG.vocab},{CFG.width}]"]
    assert not {"scatter", "all-reduce"} & set(whole)
    of_all = {rows * BRANCHES * (BRANCH - 1) * CFG.width, rows * PROMPT * CFG.width}
    sent = {size for size, _, name in arrays if name.startswith("all-gather")}
    assert sent and not of_all & sent


def test_gradients_are_scattered_along_the_rings_of_a_slice(chips):
    mesh, rows = make_mesh(1, 32, 1, devices=chips("4x8")), 32
    assert rings_of(mesh) == {"fsdp": (4, 8)}
    arrays, before = made(mesh, rows=rows), made(mesh, rows=rows, by_rings=False)

    def summed(arrays):
        return sum(size for size, _, name in arrays if name.startswith("all-reduce"))

    assert summed(arrays) == 0 < summed(before)
    assert any(name.startswith("reduce-scatter") for _, _, name in arrays)
    whole = {rows * BRANCHES * BRANCH * CFG.vocab, rows * PROMPT * CFG.width}
    assert not whole & {size for size, _, _ in arrays}


def test_embedding_on_tpus_makes_no_scores_of_all_pairs_of_positions(chips):
    shape = EncoderShape(EncoderConfig(vocab=512, layers=2, positions=256), "mean", True, 256)
    mesh, needs = make_mesh(devices=chips("2x2")), EmbeddingNeeds("", "bfloat16", 2048)
    batch = embedded_batch(shape, mesh, needs, "tpu")
    arrays = read(lower_batch(shape, mesh, needs, batch).compile().as_text())
    each = batch.rows // 4  # texts of a chip
    assert f"bf16[{each},12,256,64]" in {shape for _, shape, _ in arrays}
    assert not {n * 12 * 256 * 256 for n in (each, batch.rows)} & {size for size, _, _ in arrays}
    assert not [name for _, _, name in arrays if name.startswith("all-gather")]
