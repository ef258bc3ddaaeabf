"""What is compiled of the sampler for machines that are not here is what runs on those that are."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dynarag_jax.compilers.topologies import compile_program
from dynarag_jax.launch.plan_programs import pool_work, written_by
from dynarag_jax.models import decoder, decoding
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.grammar import build_grammar
from dynarag_jax.policy.spelling import plain_spelling
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.compiled import (
    SamplingNeeds,
    Written,
    bytes_of,
    cache_bytes,
    lower_pool,
    open_shape,
    resident_bytes,
)
from dynarag_jax.sampling.engine import Engine
from dynarag_jax.sampling.pool import Pool, no_requests
from dynarag_jax.sampling.requests import EngineConfig, Request
from dynarag_jax.sampling.sampler import Mode
from dynarag_jax.sharding import make_mesh

CFG = DecoderConfig(
    vocab=512, width=64, layers=2, heads=4, kv_heads=2, head_size=16, mlp=128, tied=False
)
SAMPLING = Sampling(temperature=1.0)
ENGINE = EngineConfig(chunk=32, turn=8)
LISTS = Written("lists", 128, 4, 16, build_grammar(plain_spelling(6), 4), SAMPLING)
ANSWERS = Written("answers", 96, 1, 12, None, Sampling(temperature=0.0))


def needs(batch: int, **engine) -> SamplingNeeds:
    return SamplingNeeds(
        "model", 4, True, PromptConfig(), SAMPLING, batch, EngineConfig(**engine), "float32"
    )


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, 2, 2, devices=jax.devices()[:4])


@pytest.fixture(scope="module")
def params(mesh):
    place = param_shardings(CFG, mesh)
    return jax.jit(lambda key: decoder.init_params(CFG, key), out_shardings=place)(
        jax.random.key(0)
    )


def held(tree) -> int:
    """Bytes of one device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("written", [LISTS, ANSWERS], ids=lambda one: one.name)
def test_the_programs_are_those_that_a_pool_runs(mesh, params, written):
    """The same text from shapes as from the arrays themselves."""
    shape = open_shape(CFG, mesh, needs(16), written, None)
    assert shape is not None
    made = lower_pool(CFG, mesh, shape, ENGINE, written)
    pool = Pool(CFG, mesh, shape, written.grammar, ENGINE.chunk)
    pool.reset()
    lists = written.grammar is not None
    mode = Mode(lists, not lists, written.sampling.temperature > 0, False)
    entering = pool._placed(no_requests(shape, shape.entering))
    with jax.set_mesh(mesh):
        arrays = jax.jit(decoding.unstack, static_argnums=0)(CFG, params)
        real = pool.prefill(mode, False).lower(params, pool.slots, entering, written.grammar)
        turn = pool.decoding(mode).lower(
            params, pool.slots, arrays, written.grammar, np.int32(1), np.int32(1)
        )
    assert made.prefill.as_text() == real.as_text()
    assert made.decode.as_text() == turn.as_text()
    assert cache_bytes(CFG, mesh, shape) == held((pool.slots.trunk_cache, pool.slots.branch_cache))
    assert resident_bytes(CFG, mesh) == (held(params), held(arrays))


def test_their_operations_are_the_models(mesh):
    """All chunks and turns counted; beyond it the masked half of a chunk's own keys."""
    shape = open_shape(CFG, mesh, needs(16), LISTS, None)
    assert shape is not None
    made = lower_pool(CFG, mesh, shape, ENGINE, LISTS)
    assert made.prefill_trips == (4, 2.5) and made.decode_trips == (8,)
    entering, writing = pool_work(CFG, shape, 8)
    for program, trips, model in (
        (made.prefill, made.prefill_trips, entering),
        (made.decode, made.decode_trips, writing),
    ):
        found = compile_program(program, trips).costs.operations * mesh.size
        assert 0.95 * model < found < 1.3 * model


def test_as_many_prompts_are_in_flight_as_an_engine_takes(mesh, params):
    """Of memory that holds some, and of one that holds none."""
    for gib in (4e-3, 1e-3, 1e-9):
        config = EngineConfig(cache_gib=gib)
        engine = Engine(
            CFG, params, mesh, branches=4, max_tokens=16, lengths=(128,), slots=16, config=config,
            grammar=LISTS.grammar, budget=int(gib * 2**30) // 2,
        )  # fmt: skip
        engine.submit(Request("q", [1] * 100, shown=3, stops=(7,)))
        opened = engine._choose_pool()
        shape = open_shape(CFG, mesh, needs(16, cache_gib=gib), LISTS, 0)
        assert opened == (shape is not None)
        if shape is not None:
            assert engine._require_pool().shape == shape
            assert shape.slots < 16 or gib == 4e-3


def test_what_is_written_is_what_prompts_allow():
    one = needs(16)
    lists, answers = written_by(one)
    assert (lists.prompt, lists.branches) == (8192, 4)
    # 15 ids with 14 times three tokens between, two brackets, and the end.
    assert lists.branch == 15 + 14 * 3 + 2 + 1
    assert (answers.prompt, answers.branches, answers.branch) == (4096, 1, 50)
    assert answers.grammar is None


def test_bytes_are_those_of_a_device(mesh, params):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    assert bytes_of(shapes) == held(params)
