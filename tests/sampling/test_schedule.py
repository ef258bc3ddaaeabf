"""Many prompts through one sampler: batches of one shape, results that are nobody's neighbors'."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.sampling.sampler import Sampling, make_sampler
from dynarag_jax.sampling.schedule import Request, batches, run
from dynarag_jax.sharding import make_mesh

CFG = DecoderConfig(
    vocab=32, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=24, positions=64
)


def make_requests():
    rng = np.random.default_rng(0)
    sizes = [3, 9, 16, 1, 8, 12, 5]
    return [Request(f"q{i}", rng.integers(0, 31, s).tolist()) for i, s in enumerate(sizes)]


def test_every_request_is_in_one_batch_of_the_shortest_length_that_holds_it():
    requests = make_requests()
    grouped = list(batches(requests, 2, (8, 16)))
    assert [length for length, _ in grouped] == [16, 16, 8, 8]  # the longest first
    assert sorted(i for _, rows in grouped for i in rows) == list(range(7))
    for length, rows in grouped:
        assert len(rows) <= 2
        for i in rows:
            assert (len(requests[i].prompt) <= 8) == (length == 8)


def test_a_prompt_beyond_the_longest_bucket_is_named():
    with pytest.raises(InputError, match=r"request 'long': 20 tokens exceed .* 16"):
        list(batches([Request("long", [1] * 20)], 2, (8, 16)))


def test_results_do_not_depend_on_batch_size_or_order():
    params = decoder.init_params(CFG, jax.random.key(0))
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    draw = make_sampler(CFG, mesh, branches=2, max_tokens=6, end=31, sampling=Sampling())
    requests = make_requests()

    def sampled(requests, batch, seed):
        found = run(draw, params, mesh, requests, batch=batch, lengths=(8, 16), seed=seed)
        return {requests[i].id: sample for i, sample in found}

    first = sampled(requests, 4, seed=0)
    other = sampled(requests[::-1], 3, seed=0)
    assert {k: v.branches for k, v in first.items()} == {k: v.branches for k, v in other.items()}
    for name, sample in first.items():
        np.testing.assert_allclose(sample.logps, other[name].logps, atol=1e-5)
    reseeded = sampled(requests, 4, seed=1)
    assert any(first[name].branches != reseeded[name].branches for name in first)


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused():
    mesh = make_mesh(4, 1, 1, devices=jax.devices()[:4])
    never: Any = None
    with pytest.raises(InputError, match=r"sampling batch = 6 .* 4 or 8"):
        next(run(never, {}, mesh, [], batch=6, lengths=(8,), seed=0))
