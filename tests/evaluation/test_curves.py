"""Curves of quality against what is read: every bias enumerated, areas by hand, targets reached."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.curves import (
    QualityCurve,
    area,
    bias_of,
    common_range,
    curve_page,
    curve_to_json,
    highest,
    list_f1,
    nearest,
    policy_curve,
    rule_curves,
    within,
)
from dynarag_jax.evaluation.rules import score_threshold
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Passage, Question
from dynarag_jax.sampling.stopping import StopPath

K = {"mean_k": lambda place, chosen: float(len(chosen))}

# Of few values, so that paths change together, too.
NEEDS = st.lists(st.integers(-8, 8).map(lambda x: x / 4), min_size=0, max_size=4)


def path_of(needs):
    lists = [tuple(range(1, k + 1)) for k in range(len(needs) + 1)]
    return StopPath(tuple(lists), (*needs, -math.inf))


@given(st.lists(NEEDS, min_size=1, max_size=5), st.sampled_from(["both", "stop", "empty"]))
def test_a_curve_is_what_every_bias_gives(needs, moved):
    paths = [path_of(own) for own in needs]
    figures = K | {"sum": lambda place, chosen: (place + 1.0) * sum(chosen)}
    curve = policy_curve("p", paths, moved, figures)
    assert (np.diff(curve.values) > 0).all()
    for place, value in enumerate(curve.values):
        lists = [path.at(bias_of(value, moved)) for path in paths]
        for name, figure in figures.items():
            expected = np.mean([figure(i, one) for i, one in enumerate(lists)])
            assert curve.means[name][place] == pytest.approx(expected, abs=1e-9)
    # No list but those of the curve is ever given, and they get shorter.
    seen = {tuple(p.at(bias_of(v, moved)) for p in paths) for v in curve.values}
    every = {tuple(p.at(bias_of(v, moved)) for p in paths) for v in np.arange(-4, 4, 1 / 16)}
    assert every <= seen
    assert (np.diff(curve.means["mean_k"]) <= 1e-12).all()


@given(st.lists(NEEDS, min_size=1, max_size=6), st.floats(0, 4))
def test_a_target_is_reached_on_the_questions_it_was_chosen_on(needs, target):
    paths = [path_of(own) for own in needs]
    curve = policy_curve("p", paths, "both", K)
    reachable = curve.means["mean_k"]
    if target > reachable.max() + 1e-9:
        with pytest.raises(InputError, match="beyond what a bias reaches"):
            nearest(curve, "mean_k", target)
    else:
        found = reachable[nearest(curve, "mean_k", target)]
        every = [
            np.mean([len(p.at(bias_of(v, "both"))) for p in paths])
            for v in np.arange(-4, 4, 1 / 16)
        ]
        assert abs(found - target) <= min(abs(np.array(every) - target)) + 1e-9
    most = reachable[within(curve, "mean_k", target)]
    assert most <= target + 1e-9
    assert not any(most + 1e-9 < k <= target for k in reachable)


def test_the_highest_quality_that_reads_least():
    curve = QualityCurve("p", np.arange(4.0), {"set_f1": np.array([0.5, 0.8, 0.8, 0.1])})
    assert highest(curve, "set_f1") == 2
    with pytest.raises(InputError, match="less than what any bias reaches"):
        within(QualityCurve("p", np.zeros(1), {"mean_k": np.ones(1)}), "mean_k", 0.5)
    with pytest.raises(InputError, match="no questions"):
        policy_curve("p", [], "both", K)


def test_areas_by_hand():
    # Two points at x = 1, whose mean counts: a line from (0, 0) over (1, 0.5) to (3, 0.5).
    means = {"x": np.array([3.0, 1.0, 1.0, 0.0]), "y": np.array([0.5, 0.6, 0.4, 0.0])}
    curve = QualityCurve("p", np.arange(4.0), means)
    assert area(curve, "x", "y", 0, 3) == pytest.approx((0.25 + 1.0) / 3)
    assert area(curve, "x", "y", 0.5, 2) == pytest.approx((0.5 * 0.375 + 0.5) / 1.5)
    assert area(curve, "x", "y", 2, 2) == 0.5
    other = QualityCurve(
        "q", np.arange(2.0), {"x": np.array([1.0, 2.0]), "y": np.array([0.1, 0.1])}
    )
    assert common_range([curve, other], "x") == (1.0, 2.0)
    # One that stays at a place, and one that begins where the policy ends, have no width with it.
    still = QualityCurve("s", np.zeros(1), {"x": np.array([2.0]), "y": np.array([0.9])})
    far = QualityCurve("f", np.arange(2.0), {"x": np.array([3.0, 9.0]), "y": np.array([0.9, 0.9])})
    assert common_range([curve, still], "x") is None is common_range([curve, far], "x")
    page = curve_page([curve, other, still, far], 1, "x", "y", 4)
    assert "| p | 0.00 to 3.00 | 41.67 | 41.67 | 60.0 |" in page
    assert "| q | 1.00 to 2.00 | 10.00 | 50.00 | 10.0 |" in page
    assert "| s | nothing in common |  |  | 90.0 |" in page
    assert "| p | 0.0 | 50.0 | 50.0 | 50.0 |" in page
    assert "| q |  | 10.0 | 10.0 |  |" in page
    assert "| f |  |  |  | 90.0 |" in page
    said = curve_to_json(other, "x", "y", [curve])
    assert said["area"] == pytest.approx(0.1) and said["between"] == [1.0, 2.0]
    assert said["policies"] == {"p": pytest.approx(0.5)}
    assert curve_to_json(far, "x", "y", [curve])["area"] is None


def test_rules_on_the_same_scores():
    rng = np.random.default_rng(0)
    questions = [
        Question(
            f"q{i}", "?", passages=tuple(Passage(f"p{j}", "x") for j in range(5)), gold=("p1", "p3")
        )
        for i in range(4)
    ]
    scores = [list(rng.normal(size=5)) for _ in questions]
    figures = K | {"set_f1": list_f1(questions)}
    curves = {c.name: c for c in rule_curves(questions, scores, figures)}
    assert {"fixed-k", "threshold", "largest-gap"} < set(curves)
    assert sum(name.startswith("cumulative-mass") for name in curves) == 6
    fixed = curves["fixed-k"]
    assert fixed.means["mean_k"].tolist() == [0, 1, 2, 3, 4, 5]
    one = curves["threshold"]
    for value, found in zip(one.values, one.means["set_f1"], strict=True):
        expected = [
            set_f1([f"p{p - 1}" for p in score_threshold(own, value)], ("p1", "p3"))
            for own in scores
        ]
        assert found == pytest.approx(np.mean(expected))
    bare = [Question("bare", "?", passages=questions[0].passages)]
    with pytest.raises(InputError, match="'bare' does not say which passages are needed"):
        list_f1(bare)
