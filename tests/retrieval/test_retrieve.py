"""Questions to passages: the retriever's order, needed passages kept, and the mistakes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.files import output_stem
from dynarag_jax.records import Passage, Question, question_from_json, question_to_json
from dynarag_jax.retrieval.embed import embed, passage_text
from dynarag_jax.retrieval.index import ScannIndex, ScannSettings, build_index
from dynarag_jax.retrieval.rankings import check, fill, nearest, rows_by_id, with_gold

from .conftest import WORDS


@pytest.fixture(scope="module")
def world(tiny):
    """A corpus of 40 passages, its vectors and index, and 12 questions."""
    rng = np.random.default_rng(0)
    passages = [
        Passage(f"p{i}", " ".join(rng.choice(WORDS, 8)), "new cat" if i % 2 else "")
        for i in range(40)
    ]
    questions = [
        Question(f"q{i}", " ".join(rng.choice(WORDS, 5)), ("yes",), extra={"note": i})
        for i in range(12)
    ]
    vectors = embed(tiny, [passage_text(p) for p in passages])
    return passages, questions, vectors, build_index(vectors, kind="exact")


def retrieve(questions, passages, queries, vectors, index, n, keep_gold=False):
    """As the search composes it."""
    row = rows_by_id(passages)
    check(questions, passages, n, keep_gold, row)
    rankings = nearest(questions, queries, index, len(passages), n)
    if keep_gold:
        rankings = with_gold(questions, rankings, queries, vectors, row, n)
    return [fill(q, ranking, passages) for q, ranking in zip(questions, rankings, strict=True)]


def find(encoder, questions, passages, vectors, index, n, **settings):
    texts = [encoder.query_prompt + q.text for q in questions]
    queries = embed(encoder, texts) if texts else np.zeros((0, vectors.shape[1]), np.float32)
    return retrieve(questions, passages, queries, vectors, index, n, **settings)


def scores_of(question: Question) -> np.ndarray:
    return np.array([p.score for p in question.passages], np.float32)


def by_hand(encoder, questions, vectors) -> np.ndarray:
    return embed(encoder, [q.text for q in questions]) @ vectors.T


def test_the_best_passages_in_the_retrievers_order(tiny, world):
    passages, questions, vectors, index = world
    found = find(tiny, questions, passages, vectors, index, 7)
    scores = by_hand(tiny, questions, vectors)
    for question, before, row in zip(found, questions, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:7]
        assert [p.id for p in question.passages] == [f"p{i}" for i in best]
        np.testing.assert_allclose(scores_of(question), row[best], atol=1e-5)
        assert dataclasses.replace(question, passages=()) == before
        assert [p.text for p in question.passages] == [passages[i].text for i in best]
        # The result is a record that can be written and read.
        assert question_from_json(question_to_json(question), "here") == question


def test_scann_retrieves_the_same(tiny, world):
    pytest.importorskip("scann")
    passages, questions, vectors, index = world
    other = build_index(vectors, kind="scann")
    for a, b in zip(
        find(tiny, questions, passages, vectors, index, 7),
        find(tiny, questions, passages, vectors, other, 7),
        strict=True,
    ):
        assert [p.id for p in a.passages] == [p.id for p in b.passages]


def test_needed_passages_are_kept_where_their_score_puts_them(tiny, world):
    passages, questions, vectors, index = world
    scores = by_hand(tiny, questions, vectors)
    ranks = np.argsort(-scores, axis=1, kind="stable")
    # Needed: none, unknown, the best, the worst, two far down, as many as fit.
    gold = [
        (),
        None,
        (f"p{ranks[2, 0]}",),
        (f"p{ranks[3, -1]}",),
        (f"p{ranks[4, 30]}", f"p{ranks[4, 20]}"),
        tuple(f"p{i}" for i in ranks[5, -5:]),
        (f"p{ranks[6, 4]}", f"p{ranks[6, 39]}"),
    ]
    asked = [dataclasses.replace(q, gold=g) for q, g in zip(questions, gold, strict=False)]
    kept = find(tiny, asked, passages, vectors, index, 5, keep_gold=True)
    plain = find(tiny, asked, passages, vectors, index, 5)
    moved = 0
    for i, (question, free) in enumerate(zip(kept, plain, strict=True)):
        ids = [p.id for p in question.passages]
        needed = set(question.gold or ())
        assert len(ids) == len(set(ids)) == 5 and needed <= set(ids)
        # The others are the best of those that are not needed.
        others = [f"p{p}" for p in ranks[i] if f"p{p}" not in needed][: 5 - len(needed)]
        expected = sorted(needed | set(others), key=lambda p: -scores[i, int(p[1:])])
        assert ids == expected
        own = scores[i, [int(p[1:]) for p in ids]]
        np.testing.assert_allclose(scores_of(question), own, atol=1e-5)
        moved += ids != [p.id for p in free.passages]
    assert moved == 4  # and for the other three nothing had to move


def test_an_expert_of_other_passages_is_dropped(tiny, world):
    passages, questions, vectors, index = world
    old = dataclasses.replace(
        questions[0], passages=tuple(passages[:2]), expert=(2,), expert_source="gold"
    )
    (new,) = find(tiny, [old], passages, vectors, index, 3)
    assert new.expert is None and new.expert_source == ""


def test_mistakes(tiny, world):
    passages, questions, vectors, index = world
    lost = [dataclasses.replace(questions[0], gold=("p1", "p99"))]
    with pytest.raises(InputError, match="'q0' needs passage 'p99', which is not in the corpus, a"):
        find(tiny, lost, passages, vectors, index, 5, keep_gold=True)
    # Not asked to keep it, one misses it as any other that was not found.
    assert check(lost + questions, passages, 5) == 1
    assert len(find(tiny, lost, passages, vectors, index, 5)[0].passages) == 5
    many = [dataclasses.replace(questions[0], gold=("p1", "p2", "p3"))]
    with pytest.raises(InputError, match="'q0' needs 3 passages, more than n = 2"):
        find(tiny, many, passages, vectors, index, 2, keep_gold=True)
    with pytest.raises(InputError, match="the corpus is empty"):
        find(tiny, questions, [], vectors, index, 5)
    with pytest.raises(InputError, match="the corpus has 40 passages, fewer than the 41 asked for"):
        find(tiny, questions, passages, vectors, index, 41)
    with pytest.raises(InputError, match="0 passages are asked for; ask for at least 1"):
        find(tiny, questions, passages, vectors, index, 0)
    with pytest.raises(InputError, match="the index holds 40 vectors, the corpus 39 passages"):
        find(tiny, questions, passages[:-1], vectors, index, 5)
    assert find(tiny, [], passages, vectors, index, 5) == []


def test_an_index_that_finds_too_few_is_no_silent_loss(tiny, world):
    pytest.importorskip("scann")
    from dynarag_jax.retrieval.index.scann import train

    _, questions, _, _ = world
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1000, 24)).astype(np.float32)
    passages = [Passage(f"p{i}", "cat") for i in range(1000)]
    settings = ScannSettings("partitioned", 500, leaves=10, leaves_searched=1, reorder=500)
    index = ScannIndex(train(vectors, settings), 1000, 24, settings)
    with pytest.raises(InputError, match=r"found \d+ of 500 passages for question 'q\d+'; build"):
        find(tiny, questions, passages, vectors, index, 500)


def test_passages_of_equal_score_stand_in_corpus_order(tiny):
    passages = [Passage(f"p{i}", text) for i, text in enumerate(["cat", "dog"] * 10)]
    vectors = embed(tiny, [p.text for p in passages])
    index = build_index(vectors, kind="exact")
    (found,) = find(tiny, [Question("q", "cat")], passages, vectors, index, 10)
    assert [p.id for p in found.passages] == [f"p{i}" for i in range(0, 20, 2)]


@pytest.mark.parametrize(
    ("name", "stem"),
    [("q.jsonl", "q"), ("q.jsonl.gz", "q"), ("q.v1.jsonl.zst", "q.v1"), ("dev.tsv", "dev")],
)
def test_packed_questions_are_written_under_their_own_name(name, stem):
    assert output_stem(name) == stem
