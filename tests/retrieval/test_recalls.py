"""Recall in the log of a retrieval: cutoffs that its lists reach."""

from __future__ import annotations

import pytest

from dynarag_jax.records import Passage, Question
from dynarag_jax.stages.retrieve import recalls


@pytest.mark.parametrize(
    ("candidates", "cutoffs"), [(1, [1]), (5, [1, 5]), (6, [1, 5, 6]), (20, [1, 5, 20])]
)
def test_no_cutoff_lies_beyond_the_candidates(candidates: int, cutoffs: list[int]):
    passages = tuple(Passage(str(i), "text") for i in range(candidates))
    last = str(candidates - 1)
    questions = [
        Question("a", "?", passages=passages, gold=("0", last)),
        Question("b", "?", passages=passages[:1], gold=("0", "missed")),
        Question("c", "?", passages=passages),
    ]
    found = recalls(iter(questions))
    assert list(found) == [f"recall@{k}" for k in cutoffs]
    first = 1.0 if candidates == 1 else 0.5
    for k in cutoffs:
        mine = 1.0 if k >= candidates else first
        assert found[f"recall@{k}"] == (mine + 0.5) / 2


def test_nothing_is_said_where_no_needed_passage_is_known():
    assert recalls([Question("a", "?", passages=(Passage("x", "y"),))]) == {}
