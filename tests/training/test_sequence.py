"""Prompts cut along their positions: the same training on every mesh, in less memory."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from dynarag_jax.models import decoder
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.sharding import make_mesh
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
