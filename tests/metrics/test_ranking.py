"""Ranking metrics against pytrec_eval (trec_eval itself) and formulas."""

import math
import random

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.metrics import ranking as m

CUTS = (1, 3, 5, 10, 20)


def random_runs(seed: int, graded: bool, count: int = 1500):
    rng = random.Random(seed)
    for _ in range(count):
        ids = [f"d{i}" for i in range(rng.randint(1, 30))]
        judged = rng.sample(ids, rng.randint(1, len(ids))) + ["never-retrieved"] * rng.randint(0, 1)
        qrel = {i: rng.randint(0, 3) if graded else 1 for i in judged}
        ranked = rng.sample(ids, rng.randint(1, len(ids)))
        yield ranked, qrel


@pytest.mark.parametrize("graded", [False, True])
def test_ranked_metrics_equal_trec_eval(graded):
    measures = {"recall", "P", "ndcg_cut", "recip_rank"}
    cuts = ",".join(map(str, CUTS))
    wanted = {f"{name}.{cuts}" if name != "recip_rank" else name for name in measures}
    for ranked, qrel in random_runs(0 if graded else 1, graded):
        run = {i: float(len(ranked) - rank) for rank, i in enumerate(ranked)}
        theirs = pytrec_eval.RelevanceEvaluator({"q": qrel}, wanted).evaluate({"q": run})["q"]
        relevant = {i for i, gain in qrel.items() if gain > 0}
        for k in CUTS:
            assert m.recall_at(ranked, relevant, k) == pytest.approx(theirs[f"recall_{k}"])
            assert m.precision_at(ranked, relevant, k) == pytest.approx(theirs[f"P_{k}"])
            gains = qrel if graded else list(qrel)
            assert m.ndcg_at(ranked, gains, k) == pytest.approx(theirs[f"ndcg_cut_{k}"])
        assert m.reciprocal_rank(ranked, relevant) == pytest.approx(theirs["recip_rank"])


def test_ndcg_by_hand():
    # Relevant at ranks 2 and 4 of three relevant ones, cut at 4.
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    got = 1 / math.log2(3) + 1 / math.log2(5)
    assert m.ndcg_at(["x", "a", "y", "b"], ["a", "b", "c"], 4) == pytest.approx(got / ideal)
    assert m.ndcg_at(["b", "a"], {"a": 2.0, "b": 1.0}, 2) == pytest.approx(
        (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    )


def test_reciprocal_rank_within_a_cutoff():
    assert m.reciprocal_rank("xyza", "a") == 0.25
    assert m.reciprocal_rank("xyza", "a", 3) == 0
    assert m.reciprocal_rank([], "a") == 0


def test_repeated_ids_count_once():
    """The released code keeps duplicate ids, by which recall can exceed 1."""
    assert m.recall_at(["a", "a", "b"], ["a", "b"], 2) == 1
    assert m.precision_at(["a", "a", "a"], ["a"], 3) == pytest.approx(1 / 3)
    assert m.ndcg_at(["a", "a"], ["a"], 2) == 1
    assert m.set_scores(["a", "a", "b"], ["a"]) == m.set_scores(["a", "b"], ["a"])


def test_short_runs_and_empty_judgements():
    assert m.precision_at(["a"], ["a"], 5) == 0.2
    assert m.recall_at(["a"], [], 5) == m.ndcg_at(["a"], [], 5) == m.precision_at(["a"], [], 5) == 0
    assert m.ndcg_at(["a"], {"a": -1.0}, 5) == 0


def test_a_cutoff_below_one_is_refused():
    for metric in (m.recall_at, m.precision_at, m.ndcg_at, m.reciprocal_rank):
        with pytest.raises(InputError, match="at least 1, found 0"):
            metric(["a"], ["a"], 0)
    with pytest.raises(InputError, match="at least 1, found 0"):
        m.answer_recall_at(["a"], ["a"], 0)


def test_answer_recall_looks_at_the_first_k():
    passages = ["It was built in 1910.", "The Eiffel-Tower", "in 10 years, the U.S. won"]
    assert [m.answer_recall_at(passages, ["10"], k) for k in (1, 2, 3, 9)] == [0, 0, 1, 1]
    assert m.answer_recall_at(passages, ["tower", "1910"], 1) == 1
    assert m.answer_recall_at(passages, [], 3) == m.answer_recall_at([], ["10"], 3) == 0


def test_set_scores():
    assert m.set_scores([], []) == m.SetScores(1, 1, 1)
    assert m.set_scores([1], []) == m.set_scores([], [1]) == m.SetScores(0, 0, 0)
    assert m.set_scores([3, 1, 2], [1, 4]) == m.SetScores(1 / 3, 1 / 2, 2 / 5)
    assert m.set_scores([1], [2]) == m.SetScores(0, 0, 0)


ids = st.lists(st.integers(0, 6), max_size=6)


@given(ids, ids)
def test_set_scores_are_symmetric_and_ignore_order(a, b):
    scores, turned = m.set_scores(a, b), m.set_scores(b[::-1], a)
    assert (scores.precision, scores.recall) == (turned.recall, turned.precision)
    assert scores.f1 == turned.f1 == m.set_f1(a, b)
    assert 0 <= scores.f1 <= 1 and (scores.f1 == 1) == (set(a) == set(b))
    if scores.precision + scores.recall:
        harmonic = 2 * scores.precision * scores.recall / (scores.precision + scores.recall)
        assert scores.f1 == pytest.approx(harmonic)


@given(ids, ids, st.integers(1, 8))
def test_ranked_scores_stay_in_the_unit_interval(ranked, relevant, k):
    for metric in (m.recall_at, m.precision_at, m.ndcg_at, m.reciprocal_rank):
        assert 0 <= metric(ranked, relevant, k) <= 1
    assert m.recall_at(ranked, relevant, k) <= m.recall_at(ranked, relevant, k + 1)


def test_sizes():
    found = m.sizes([0, 2, 2, 3])
    assert found.mean == 1.75 and found.median == 2 and (found.low, found.high) == (0, 3)
    assert found.sd == pytest.approx(math.sqrt((1.75**2 + 2 * 0.25**2 + 1.25**2) / 4))
    assert found.counts == (1, 0, 2, 1)
    with pytest.raises(InputError, match="empty"):
        m.sizes([])
    with pytest.raises(InputError, match="negative, found -1"):
        m.sizes([1, -1])


def test_size_matrix():
    assert m.size_matrix([0, 1, 1, 2], [0, 1, 3, 1]) == ((1, 0, 0, 0), (0, 1, 0, 1), (0, 1, 0, 0))
    assert m.size_matrix([], []) == ()
    with pytest.raises(InputError, match="1 needed sizes but 2 chosen"):
        m.size_matrix([1], [1, 2])
    with pytest.raises(InputError, match="negative"):
        m.size_matrix([0], [-1])
