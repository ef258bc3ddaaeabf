"""Prompts cut along their positions: the same training on every mesh, in less memory."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from dynarag_jax.compilers.topologies import compile_program
from dynarag_jax.config import Run, inherit
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.objectives.terms import Objectives, PromptNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sharding import make_mesh, mesh_sizes
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.bucketing import BucketedStream, LengthBuckets
from dynarag_jax.training.compiled import lower_step
from dynarag_jax.training.config import Stream
from dynarag_jax.training.flops import PaddedShape
from dynarag_jax.training.plan import plan
from dynarag_jax.training.step import Adapting, init_state, make_step
from tests.training.test_step import (
    CFG,
    GRAMMAR,
    OPTIMIZER,
    PART,
    SHAPE,
    assert_equal_runs,
    make_batch,
)

CAPPED = dataclasses.replace(
    CFG, window=5, windowed=(True, False), score_cap=2.0, logit_cap=3.0, post_norms=True,
    qk_norm=True,
)  # fmt: skip
"""Some layers see few tokens, and scores are capped: Gemma's."""
LONG = dataclasses.replace(SHAPE, prompt=16)


def mesh_of(data, fsdp, sequence, tensor):
    sizes = (data, fsdp, sequence, tensor)
    return make_mesh(
        data, fsdp, tensor, sequence=sequence, devices=jax.devices()[: math.prod(sizes)]
    )


def trained(cfg, mesh, accumulate=1, lora=None):
    """State and last figures after two steps of lists, pairs, groups and prompts at once."""
    params = jax.tree.map(np.asarray, decoder.init_params(cfg, jax.random.key(0)))
    adapting = Adapting(lora, params) if lora else None
    state = init_state(cfg, mesh, OPTIMIZER, None if lora else params, lora=lora)
    step = make_step(cfg, mesh, OPTIMIZER, GRAMMAR, {"mixed": PART}, accumulate, adapting)
    figures = {}
    for number in range(2):
        state, figures = step(state, {"mixed": make_batch(number, LONG)})
    return jax.tree.map(np.asarray, state), {k: float(v) for k, v in figures.items()}


@pytest.mark.parametrize(
    ("cfg", "sizes", "more"),
    [
        (CFG, (1, 1, 4, 1), {}),
        (CAPPED, (2, 1, 2, 2), {"lora": LoraConfig(rank=2)}),
        pytest.param(CAPPED, (1, 2, 2, 1), {"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param(CAPPED, (2, 1, 2, 2), {}, marks=pytest.mark.slow),
        pytest.param(
            dataclasses.replace(CAPPED, remat="dots"), (1, 1, 4, 2), {}, marks=pytest.mark.slow
        ),
    ],
    ids=["alike", "adapters", "microbatches", "capped", "recomputed"],
)
def test_prompts_in_parts_train_as_whole_ones(cfg, sizes, more):
    run = trained(cfg, mesh_of(*sizes), **more)
    assert_equal_runs(run, trained(cfg, mesh_of(1, 1, 1, 1), **more))


# Wide enough that activations outweigh the scores of a block of queries over all keys, which no
# part makes smaller.
LENGTHY = DecoderConfig(
    vocab=512, width=256, layers=2, heads=2, kv_heads=1, head_size=32, mlp=896, tied=False,
    remat="full",
)  # fmt: skip


def compiled(sequence):
    """What XLA says of a step on one long prompt, and the plan."""
    stream = Stream(batch=1, objectives=Objectives(prompt_nll=PromptNll(weight=0.1)))
    stage = Sft(reranker=stream, generator=Stream(batch=0), model=LENGTHY, lora=LoraConfig(rank=0))
    stage = inherit(Run(directory="r", prompts=PromptConfig()), stage)
    rows = {"reranker": PaddedShape(1, 4096, 2, 16, prompt_loss=True)}
    sizes = mesh_sizes(1, 1, 1, sequence, sequence)
    mesh = mesh_of(1, 1, sequence, 1)
    planned = plan(LENGTHY, list(rows.values()), sizes, stage.optimizer, lora=None)
    return compile_program(lower_step(stage, LENGTHY, rows, mesh)), planned


@pytest.mark.slow
def test_a_long_prompt_takes_less_of_each_device():
    (whole, on_one), (part, planned) = compiled(1), compiled(4)
    assert part.temporary < 0.5 * whole.temporary
    assert part.arguments < 0.3 * whole.arguments  # weights and moments are cut, too
    # Three quarters of the products of queries and keys are computed, for five eighths.
    assert part.costs.operations < 1.2 * whole.costs.operations / 4
    assert planned.activations < 0.3 * on_one.activations
    # Keys and values are gathered and scattered as the plan says: weights are the rest.
    assert 0 < planned.sent < part.costs.sent
    assert on_one.sent == 0


def test_shorter_buckets_are_padded_so_that_they_divide():
    stream = BucketedStream(64, 8, 13, lambda position: 3 + position % 9, lambda n: -(-n // 8) * 8)
    buckets = LengthBuckets({"x": stream}, 2, 0, 8)
    assert all(length % 8 == 0 for length in buckets.lengths["x"])
    assert buckets.lengths["x"][-1] == 16
    buckets.close()
