"""Candidates against what they must be by definition, with an exact retriever written here."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.facts.candidates import attach_candidates
from dynarag_jax.records import Passage, Question


def exact(passage_vectors: np.ndarray):
    def search(vectors: np.ndarray, k: int) -> np.ndarray:
        return np.argsort(-(vectors @ passage_vectors.T), axis=1, kind="stable")[:, :k]

    return search


def corpus(n: int) -> list[Passage]:
    return [Passage(id=f"p{i}", text=f"passage {i}") for i in range(n)]


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(3, 30),
    n=st.integers(3, 12),
    needed=st.integers(0, 3),
)
@settings(max_examples=60)
def test_needed_ones_and_the_best_of_each_ranking_in_score_order(seed, size, n, needed):
    n = min(n, size)
    rng = np.random.default_rng(seed)
    passages, vectors = corpus(size), rng.normal(size=(size, 4)).astype(np.float32)
    gold = tuple(f"p{i}" for i in rng.permutation(size)[:needed])
    query = rng.normal(size=(1, 4)).astype(np.float32)
    (result,) = attach_candidates(
        [Question(id="q", text="?", gold=gold)], passages, query, vectors, exact(vectors), n
    )
    ids = [p.id for p in result.passages]
    assert len(ids) == len(set(ids)) == n and set(gold) <= set(ids)
    scores = vectors @ query[0]
    given_scores = [p.score or 0.0 for p in result.passages]
    assert given_scores == sorted(given_scores, reverse=True)
    for p in result.passages:
        assert p.score == pytest.approx(float(scores[int(p.id[1:])]), abs=1e-5)
    # The others by a slow walk over all rankings at once.
    rows = [int(g[1:]) for g in gold]
    rankings = [scores, *(vectors @ vectors[i] for i in rows)]
    chosen = list(rows)
    for place in range(size):
        for ranking in rankings:
            row = int(np.argsort(-ranking, kind="stable")[place])
            if len(chosen) < n and row not in chosen:
                chosen.append(row)
    assert {f"p{i}" for i in chosen} == set(ids)


def test_an_index_that_finds_too_little_is_no_silent_loss():
    vectors = np.eye(5, dtype=np.float32)
    found = lambda queries, k: np.full((len(queries), k), -1)  # noqa: E731
    question = Question(id="q7", text="?", gold=("p1",))
    with pytest.raises(InputError, match=r"found only 1 of 3 candidates for question 'q7'"):
        attach_candidates([question], corpus(5), vectors[:1], vectors, found, 3)


@pytest.mark.parametrize(
    ("question", "n", "message"),
    [
        (Question(id="q", text="?"), 3, "question 'q' has no field 'gold'"),
        (Question(id="q", text="?", gold=("x",)), 3, "needs passage 'x', which is not in the"),
        (Question(id="q", text="?", gold=("p0", "p1")), 1, "needs 2 passages, more than the 1"),
        (Question(id="q", text="?", gold=()), 6, "6 are asked for, and the corpus has 5"),
    ],
)
def test_what_cannot_be_done_is_refused(question, n, message):
    vectors = np.eye(5, dtype=np.float32)
    with pytest.raises(InputError, match=re.escape(message)):
        attach_candidates([question], corpus(5), vectors[:1], vectors, exact(vectors), n)


def test_titles_and_other_fields_stay():
    passages = [dataclasses.replace(p, title="t") for p in corpus(4)]
    vectors = np.eye(4, dtype=np.float32)
    question = Question(id="q", text="?", answers=("a",), gold=(), extra={"kept": 1})
    (result,) = attach_candidates([question], passages, vectors[:1], vectors, exact(vectors), 2)
    assert dataclasses.replace(result, passages=()) == question
    assert [p.title for p in result.passages] == ["t", "t"]
