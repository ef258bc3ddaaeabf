"""Batches of an encoder policy's questions: each question once, and room for all it reads."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from dynarag_jax.policy.pair_tokens import FEW_COUNTS, QuestionPairs
from dynarag_jax.sampling.encoder_batches import packed_batches
from tests.sampling.small_encoder import small_encoder_policy

CFG = small_encoder_policy().cfg


def pairs_of(lengths):
    """A question whose pairs have these word pieces."""
    rows = tuple(np.zeros(n, np.int32) for n in lengths)
    n = len(lengths)
    return QuestionPairs(rows, rows, np.ones(n, int), np.zeros((n, 3)), np.zeros(n, bool))


@given(
    st.lists(st.lists(st.integers(3, 24), min_size=1, max_size=25), max_size=20),
    st.sampled_from([0, 4]),
    st.integers(1, 8),
    st.sampled_from([1, 2]),
)
def test_every_question_is_read_once_in_a_room_that_holds_it(questions, reencode, batch, shards):
    cfg = replace(CFG, reencode=reencode)
    pairs = [pairs_of(lengths) for lengths in questions]
    seen = []
    for one in packed_batches(cfg, pairs, 1, batch, shards):
        assert one.rows % shards == 0 and one.rows <= max(batch, shards)
        assert one.room is not None and one.room.rows == one.rows // shards
        rows = [*one.places, *[one.places[-1]] * (one.rows - len(one.places))]
        own = [pairs[place] for place in rows]
        assert max(p.count for p in own) <= one.candidates and one.candidates in FEW_COUNTS
        assert max(p.longest for p in own) <= one.pieces
        for at in range(0, one.rows, one.room.rows):
            group = own[at : at + one.room.rows]
            # With as many passages put into every pair as a list may have.
            for chosen in range(cfg.max_list + 1):
                most = sum(sum(map(len, p.tokens)) for p in group)
                most += chosen * (reencode + 1) * sum(p.count for p in group) if reencode else 0
                assert most <= one.room.positions + chosen * one.room.inserted
        seen += one.places
    assert sorted(seen) == list(range(len(questions)))
