"""What a turn of decoding holds beside its arguments: no copy of the model, on no mesh."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from dynarag_jax.models import decoder, decoding
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shapes, param_shardings
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.compiled import unstacked_shapes
from dynarag_jax.sampling.pool import Pool
from dynarag_jax.sampling.pool_sizes import PoolShape
from dynarag_jax.sampling.sampler import Mode, decode
from dynarag_jax.sampling.search import ListSearch
from dynarag_jax.sharding import make_mesh

CFG = DecoderConfig(
    vocab=512, width=256, layers=3, heads=8, kv_heads=4, head_size=32, mlp=512, positions=64
)
MODE = Mode(constrained=False, unconstrained=True, random=True, filters=False)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_a_turn_copies_no_weights_and_gathers_none(sizes):
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    place = param_shardings(CFG, mesh)
    init = jax.jit(lambda key: decoder.init_params(CFG, key), out_shardings=place)
    params = init(jax.random.key(0))
    pool = Pool(CFG, mesh, PoolShape(8, 8, 2, 32, 8, 1), None, 32)
    pool.reset()
    with jax.set_mesh(mesh):
        arrays = jax.jit(decoding.unstack, static_argnums=0)(CFG, params)
        run = jax.jit(
            lambda params, slots, arrays, want, steps: decode(
                CFG, params, slots, MODE, None, want, steps, arrays
            ),
            in_shardings=(None, pool._layout, None, None, None),
            out_shardings=pool._layout,
            donate_argnums=1,
        )
        turn = run.lower(params, pool.slots, arrays, np.int32(8), np.int32(8)).compile()
    # Each layer lies where the stacked weights lay.
    down = arrays[0][0]["down"]
    assert down.addressable_shards[0].data.size * math.prod(sizes[1:]) == down.size
    matrices = CFG.layers * (2 * (8 + 4) * 32 + 3 * 512) * CFG.width
    assert turn.memory_analysis().temp_size_in_bytes < 4 * matrices / 4
    gathered = re.findall(r"= f32\[([\d,]+)\][^=]* all-gather\(", turn.as_text())
    sizes_of = [math.prod(map(int, shape.split(","))) for shape in gathered]
    # What travels are rows of tokens: 8 slots of 2 branches, at most as wide as the MLP.
    assert max(sizes_of, default=0) <= 16 * 512


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_a_search_gathers_weights_for_its_prompts_alone(sizes):
    """Each of a layer's seven matrices once, in the loop over layers, and none a token."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    params = param_shapes(CFG, mesh)
    spelling = Spelling((), ((1,), (2,)), (3,), (), (4,), 5)
    search = ListSearch(
        CFG, mesh, branches=2, max_tokens=8, end=5, sampling=Sampling(method="distinct"),
        grammar=build_grammar(spelling),
    )  # fmt: skip
    rows = {"trunk": (8, 32), "lengths": (8,), "shown": (8,)}
    asked = {name: jax.ShapeDtypeStruct(shape, "int32") for name, shape in rows.items()}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    program = search.lower(
        params, unstacked_shapes(CFG, params), asked["trunk"], asked["lengths"], keys,
        asked["shown"],
    ).compile()  # fmt: skip
    gathered = re.findall(r"= f32\[([\d,]+)\][^=]* all-gather\(", program.as_text())
    sizes_of = [math.prod(map(int, shape.split(","))) for shape in gathered]
    assert max(sizes_of) <= CFG.width * CFG.mlp
    # Larger than rows of tokens are the matrices, the embedding and what it gives the prompts.
    assert 7 <= len([size for size in sizes_of if size > 16 * 512]) <= 9


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA for CPUs alone")
def test_a_prefill_of_bfloat16_on_a_cpu_widens_neither_caches_nor_weights():
    cfg = dataclasses.replace(CFG, dtype="bfloat16", param_dtype="bfloat16")
    params = jax.eval_shape(lambda key: decoder.init_params(cfg, key), jax.random.key(0))
    trunk, lengths = (jax.ShapeDtypeStruct(shape, "int32") for shape in ((2, 64), (2,)))
    run = jax.jit(lambda *of: decoding.prefill(cfg, *of, chunk=16))
    text = run.lower(params, trunk, lengths).compile().as_text()
    cache = {"3,2,4,32,64", "3,2,4,64,32"}
    stacked = {",".join(map(str, x.shape)) for x in jax.tree.leaves(params["layers"]) if x.ndim > 2}
    assert all(f"[{shape}]" in text for shape in cache | stacked)
    assert not (cache | stacked) & set(re.findall(r"f32\[([\d,]+)\]", text))
