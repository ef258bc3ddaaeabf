"""Rules for how many passages to read, against enumeration of all lists, cuts and parameters."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation import rules
from dynarag_jax.evaluation.tuning import RULES, RulesConfig, choose, grid, rule_systems, tune
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Passage, Question

# Few distinct values, so that scores are often equal.
some_scores = st.lists(st.integers(-8, 8).map(lambda i: i / 4), min_size=1, max_size=7)


def ranked(scores: list[float]) -> list[int]:
    return sorted(range(1, len(scores) + 1), key=lambda i: (-scores[i - 1], i))


@given(some_scores, st.integers(-9, 9).map(lambda i: i / 4), st.integers(0, 8))
def test_threshold_and_fixed_k(scores: list[float], least: float, k: int):
    kept = [i for i in ranked(scores) if scores[i - 1] >= least]
    assert rules.score_threshold(scores, least) == tuple(kept)
    assert rules.fixed_k(scores, k) == tuple(ranked(scores)[:k])


@given(some_scores, st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.5]))
def test_largest_gap(scores: list[float], more: int, tail: float):
    found = rules.largest_gap(scores, more, tail)
    assert found == tuple(ranked(scores)[: len(found)])
    falling = sorted(scores, reverse=True)
    gaps = {k: falling[k - 1] - falling[k] for k in range(1, len(scores))}
    looked = {k: gap for k, gap in gaps.items() if k <= max(1, math.ceil((1 - tail) * len(gaps)))}
    k = max(looked, key=lambda k: (looked[k], -k), default=1)
    assert len(found) == min(k + more, len(scores))


def test_a_gap_at_the_very_end_is_not_looked_at():
    assert rules.largest_gap([9, 8, 6, 5, 4, 3, 2, 1, 0.5, 0.4, 0.3, -50]) == (1, 2)
    assert rules.largest_gap([9, 8, 6, 5, 4, 3, 2, 1, 0.5, 0.4, 0.3, -50], tail=0) == tuple(
        range(1, 12)
    )


@given(some_scores, st.integers(2, 4))
def test_clusters_are_the_best_of_all_divisions(scores: list[float], clusters: int):
    found = rules.score_clusters(scores, clusters)
    assert found == tuple(ranked(scores)[: len(found)])
    falling, n = sorted(scores, reverse=True), len(scores)
    if n <= clusters:
        assert len(found) == 1
        return

    def spread(cuts: tuple[int, ...]) -> float:
        groups = [falling[a:b] for a, b in itertools.pairwise((0, *cuts, n))]
        return sum(float(np.var(group)) * len(group) for group in groups)

    divisions = list(itertools.combinations(range(1, n), clusters - 1))
    least = min(map(spread, divisions))
    best = {cuts[0] for cuts in divisions if spread(cuts) <= least + 1e-9}
    assert len(found) in best


@given(some_scores, st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.sampled_from([0.3, 1.0, 5.0]))
def test_cumulative_mass(scores: list[float], share: float, temperature: float):
    found = rules.cumulative_mass(scores, share, temperature)
    weights = [math.exp(s / temperature) for s in scores]

    def mass(k: int) -> float:
        return sum(weights[i - 1] for i in ranked(scores)[:k]) / sum(weights)

    assert found == tuple(ranked(scores)[: len(found)])
    assert mass(len(found)) >= share - 1e-9 and mass(len(found) - 1) < share + 1e-9


@given(some_scores, st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 9))
def test_less_redundancy_adds_the_best_that_fits(
    scores: list[float], seed: int, redundancy: float, budget: int
):
    rng = np.random.default_rng(seed)
    n = len(scores)
    similarity = rng.random((n, n))
    similarity = (similarity + similarity.T) / 2
    lengths = rng.integers(1, 5, n).tolist()
    found = rules.less_redundancy(scores, similarity, lengths, redundancy, budget)
    low, high = min(scores), max(scores)
    relevance = [(s - low) / (high - low) if high > low else 1.0 for s in scores]

    def value(chosen: tuple[int, ...]) -> float:
        pairs = itertools.combinations(chosen, 2)
        alike = sum(similarity[a - 1, b - 1] for a, b in pairs)
        return sum(relevance[i - 1] for i in chosen) - redundancy * alike

    def fits(chosen: tuple[int, ...]) -> bool:
        return not budget or sum(lengths[i - 1] for i in chosen) <= budget

    for size in range(len(found) + 1):
        taken = found[:size]
        left = [i for i in range(1, n + 1) if i not in taken and fits((*taken, i))]
        gains = {i: value((*taken, i)) - value(taken) for i in left}
        if size == len(found):
            assert all(gain <= 1e-9 for gain in gains.values())
        else:
            assert fits(found[: size + 1])
            assert gains[found[size]] >= max(gains.values()) - 1e-9


def test_word_similarity_is_the_cosine_of_counts():
    found = rules.word_similarity(["a b b", "B a", "", "c"])
    expected = (1 * 1 + 2 * 1) / math.sqrt(5 * 2)
    np.testing.assert_allclose(found[0], [1, expected, 0, 0])
    np.testing.assert_allclose(found, found.T)
    assert rules.word_similarity([]).shape == (0, 0)


@pytest.mark.parametrize("name", RULES)
def test_no_candidates_and_one(name):
    parameters = grid(name, [[0.5, 0.1]])[0]
    assert choose(name, Question("q", "?"), [], parameters) == ()
    one = Question("q", "?", passages=(Passage("a", "text"),))
    assert choose(name, one, [0.5], parameters) in ((), (1,))
    with pytest.raises(InputError, match="one finite score a candidate"):
        choose(name, one, [math.nan], parameters)


# ---------------------------------------------------------------------------- tuning


def questions(n: int, seed: int, prefix: str) -> tuple[list[Question], list[list[float]]]:
    """Questions whose needed passages tend to score higher."""
    rng = np.random.default_rng(seed)
    found, scores = [], []
    for i in range(n):
        needed = rng.random(6) < 0.4
        own = (needed + rng.normal(0, 0.6, 6)).round(2).tolist()
        passages = tuple(
            Passage(f"{j}", f"word{rng.integers(4)} word{rng.integers(4)}", score=own[j])
            for j in range(6)
        )
        gold = tuple(str(j) for j in range(6) if needed[j])
        found.append(Question(f"{prefix}{i}", f"{prefix} {i}?", gold=gold, passages=passages))
        scores.append(own)
    return found, scores


def mean_f1(name, parameters, asked, scores) -> float:
    lists = [choose(name, q, own, parameters) for q, own in zip(asked, scores, strict=True)]
    figures = [
        set_f1([str(i - 1) for i in chosen], q.gold) for chosen, q in zip(lists, asked, strict=True)
    ]
    return float(np.mean(figures))


def test_the_threshold_is_the_best_of_all():
    asked, scores = questions(30, 0, "t")
    rule = tune("threshold", asked, scores)
    every = sorted({s for own in scores for s in own})
    assert len(every) <= 200
    best = max(mean_f1("threshold", {"threshold": t}, asked, scores) for t in every)
    assert rule.set_f1 == pytest.approx(best)
    assert mean_f1("threshold", rule.parameters, asked, scores) == pytest.approx(best)


@pytest.mark.parametrize("name", RULES)
def test_tuning_takes_the_best_parameters(name):
    asked, scores = questions(25, 1, "t")
    rule = tune(name, asked, scores)
    tried = [mean_f1(name, parameters, asked, scores) for parameters in grid(name, scores)]
    assert rule.set_f1 == pytest.approx(max(tried)) and rule.questions == 25
    assert len({round(f, 6) for f in tried}) > 1  # parameters matter


def test_rules_as_systems_are_tuned_on_other_questions():
    tuning, evaluated = questions(20, 2, "t"), questions(10, 3, "e")
    config = RulesConfig(RULES, "tuning.jsonl")
    lists, record = rule_systems(config, tuning, evaluated)
    assert list(lists) == [rule["system"] for rule in record] and len(lists) == len(RULES)
    for rule in record:
        expected = [
            choose(rule["name"], q, own, rule["parameters"])
            for q, own in zip(*evaluated, strict=True)
        ]
        assert lists[rule["system"]] == expected
    other = (evaluated[0][:1], evaluated[1][:1])
    with pytest.raises(InputError, match="question 'e0' is evaluated and, as 'e0', tuned on"):
        rule_systems(config, other, evaluated)
    blind = [Question("x", "?", passages=(Passage("a", "b", score=1.0),))]
    with pytest.raises(InputError, match="question 'x' does not say which passages are needed"):
        rule_systems(config, (blind, [[1.0]]), evaluated)


def test_rules_need_a_file_to_be_tuned_on():
    with pytest.raises(InputError, match="rules need a file of questions"):
        RulesConfig(("threshold",))
    with pytest.raises(InputError, match="rules need a file of questions"):
        RulesConfig((), "file")
    with pytest.raises(InputError, match=r"'thresold' is none of .*did you mean 'threshold'"):
        RulesConfig(("thresold",), "file")  # pyright: ignore[reportArgumentType]
