"""Lists in bulk from random weights, over 1 to 500 passages: each of them is a list."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.policy.grammar import Spelling, build_grammar, read_list
from dynarag_jax.sampling.sampler import Sampling, make_sampler
from dynarag_jax.sharding import make_mesh

CFG = DecoderConfig(
    vocab=40, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=24, positions=256
)
SPELLING = Spelling(
    opening=(20,),
    ids=tuple(tuple(1 + int(c) for c in str(i)) for i in range(1, 501)),
    between=(21, 22, 20), closing=(21,), none=(30,), end=31,
)  # fmt: skip
LONGEST, BRANCHES = 15, 8


@pytest.mark.slow
def test_every_sampled_list_is_valid():
    """100,000, 8 for each N in 1..500 a round: valid, no repeats, within N, ``None`` reached."""
    grammar = build_grammar(SPELLING, LONGEST)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    draw = make_sampler(
        CFG, mesh, branches=BRANCHES, max_tokens=SPELLING.longest(LONGEST), end=31,
        sampling=Sampling(), grammar=grammar,
    )  # fmt: skip
    params = jax.tree.map(lambda x: 2 * x, decoder.init_params(CFG, jax.random.key(0)))
    n: Any = np.arange(1, 501, dtype=np.int32)
    nones, sizes, highest, count = 0, set(), 0, 0
    for turn in range(100_000 // (500 * BRANCHES)):
        trunk: Any = np.random.default_rng(turn).integers(1, 40, (500, 4)).astype(np.int32)
        keys = jax.random.split(jax.random.key(turn), 500)
        out = draw(params, trunk, np.full(500, 4, np.int32), keys, n)
        assert np.asarray(out.finished).all()
        tokens = np.asarray(out.tokens)
        for shown, rows in zip(n.tolist(), tokens.tolist(), strict=True):
            for row in rows:
                ids = read_list(SPELLING, row)  # raises unless it is a list without repeats
                assert len(ids) <= LONGEST
                assert all(1 <= i <= shown for i in ids)
                nones += not ids
                sizes.add(len(ids))
                highest = max(highest, *ids, 0)
                count += 1
    assert count == 100_000
    assert nones > 0
    assert sizes == set(range(LONGEST + 1))
    assert highest > 450
