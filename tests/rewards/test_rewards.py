"""Reward terms and their sum: worked by hand, ranges, and the released code's mistakes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from dynarag_jax.errors import InputError
from dynarag_jax.metrics import answers as metrics
from dynarag_jax.rewards import combine, terms
from dynarag_jax.rewards.combine import RewardWeights, text_terms, weighted


def score_answer(
    prediction: str, answers: list[str], k: int, weights: RewardWeights = RewardWeights()
) -> tuple[float, dict[str, float]]:
    """The reward of the terms that need no model, and these terms."""
    found = text_terms(prediction, answers, k, weights)
    return weighted(found, k, weights), found


def test_length_is_of_one_answer_and_varies():
    """The released length term reads the list of all eight answers: the constant 1/9."""
    assert terms.length("Paris") == 1 / 2
    assert terms.length("in the  city\nof light") == 1 / 6
    assert terms.length("one two three four five six seven eight nine") == 1 / 10
    assert terms.length("") == terms.length(" \n") == 0


def test_exact_match_is_not_containment_either_way():
    """In the released reward "a" matches "Paris", and so does a sentence that mentions Paris."""
    assert terms.em("a", ["Paris"]) == terms.em("It is Paris", ["Paris"]) == 0
    assert terms.em("", ["Paris"]) == 0
    assert terms.em("the PARIS!", ["London", "Paris"]) == 1


def test_rouge_reads_prediction_and_reference_in_the_right_places():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    prediction, golds = "the running cats sat", ["a cat ran and sat", "cats"]
    expected = max(scorer.score(gold, prediction)["rougeL"].fmeasure for gold in golds)
    assert terms.rouge_l(prediction, golds) == pytest.approx(expected)


def test_passage_bonus_only_where_right():
    assert terms.passage_cost(True, 0) == 1
    assert terms.passage_cost(True, 3) == 1 / 4
    assert terms.passage_cost(False, 0) == 0
    with pytest.raises(ValueError, match="negative, found -1"):
        terms.passage_cost(True, -1)


def test_quickstart_reward_by_hand():
    assert score_answer("Paris", ["paris"], 1) == (1.125, {"em": 1.0, "passages": 0.5})
    assert score_answer("London", ["paris"], 0) == (0.0, {"em": 0.0, "passages": 0.0})
    # Being right with every passage of a long list beats being wrong with none.
    assert score_answer("Paris", ["paris"], 45)[0] > score_answer("x", ["paris"], 0)[0]
    # Among right answers fewer passages pay more.
    rewards = [score_answer("Paris", ["paris"], k)[0] for k in range(6)]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 6


def test_paper_weights_by_hand():
    weights = RewardWeights(em=0.2, rouge_l=0.2, length=0.2, passages=0)
    reward, found = score_answer("Paris France", ["Paris"], 9, weights)
    assert found == {"em": 0.0, "rouge_l": pytest.approx(2 / 3), "length": 1 / 3}
    assert reward == pytest.approx(0.2 * (2 / 3 + 1 / 3))


def test_only_terms_with_weight_are_computed(monkeypatch):
    def never(*_):
        raise AssertionError("computed a term without weight")

    for name in ("f1", "containment", "rouge_l", "length"):
        monkeypatch.setattr(terms, name, never)
    assert set(score_answer("x", ["x"], 1)[1]) == {"em", "passages"}
    monkeypatch.setattr(terms, "passage_cost", never)
    assert score_answer("x", ["x"], 1, RewardWeights(em=2, passages=0)) == (2, {"em": 1.0})


def test_the_passage_bonus_asks_for_exact_match_even_where_that_has_no_weight():
    weights = RewardWeights(em=0, f1=1)
    assert score_answer("Paris", ["Paris"], 1, weights) == (1.125, {"f1": 1.0, "passages": 0.5})
    assert score_answer("Paris x", ["Paris"], 1, weights)[1]["passages"] == 0


@given(
    st.text(max_size=30) | st.sampled_from(["Paris", "the paris", "yes"]),
    st.lists(st.sampled_from(["Paris", "yes", "", "a b c"]), max_size=3),
    st.integers(0, 50),
)
def test_terms_and_reward_keep_their_ranges(prediction, answers, k):
    weights = RewardWeights(em=0.3, f1=0.1, containment=0.2, rouge_l=0.4, length=0.5, passages=0.6)
    reward, found = score_answer(prediction, answers, k, weights)
    assert set(found) == {"em", "f1", "containment", "rouge_l", "length", "passages"}
    assert all(0 <= term <= 1 for term in found.values())
    assert 0 <= reward <= weights.highest
    assert reward == pytest.approx(sum(getattr(weights, n) * t for n, t in found.items()))
    assert found["em"] == metrics.exact_match(prediction, answers)
    assert score_answer(prediction, answers, k + 1, weights)[0] <= reward


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "1", True, None])
def test_bad_weights_are_named(bad):
    with pytest.raises(InputError, match="'rouge_l' must be a finite number of at least 0"):
        RewardWeights(rouge_l=bad)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(InputError, match="all reward weights are 0"):
        RewardWeights(em=0, passages=0)
    with pytest.raises(InputError, match="all reward weights are 0"):
        RewardWeights(em=0, passages=0, price=0.1)  # a price alone pays for nothing


def test_every_passage_has_its_price():
    """The paper's length term reads the answer and gives k no price at all."""
    weights = RewardWeights(passages=0, price=0.01)
    assert score_answer("Paris", ["Paris"], 5, weights) == (pytest.approx(0.95), {"em": 1.0})
    assert score_answer("Rome", ["Paris"], 5, weights)[0] == pytest.approx(-0.05)
    rewards = [score_answer("Paris", ["Paris"], k, weights)[0] for k in range(6)]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 6
    assert weights.highest == 1 and weights.describe() == "EM - 0.01 × k"


def test_description_names_every_weighted_term():
    assert RewardWeights().describe() == "EM + 0.25 × 1/(1 + k) if right"
    assert combine.RewardWeights(em=0, f1=0.5, passages=0).describe() == "0.5 × F1"
