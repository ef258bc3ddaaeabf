"""Tables of lists: means over sets, stratified intervals, differences."""

from __future__ import annotations

import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.list_tables import (
    list_page,
    lists_to_json,
    macro_difference,
    macro_interval,
    score_lists,
    strata_of,
)
from dynarag_jax.records import Passage, Question


def question(i, dataset, gold):
    passages = tuple(Passage(f"p{j}", "x") for j in range(4))
    return Question(f"q{i}", "?", passages=passages, gold=gold, extra={"dataset": dataset})


QUESTIONS = [
    question(0, "musique", ("p0", "p1")),
    question(1, "musique", ("p2",)),
    question(2, "hotpotqa", ()),
]


def test_lists_are_scored_against_what_is_needed():
    scores = score_lists(QUESTIONS, [(1,), (3,), ()])
    np.testing.assert_allclose(scores.set_f1, [2 / 3, 1, 1])
    np.testing.assert_array_equal(scores.exact, [0, 1, 1])
    np.testing.assert_array_equal(scores.k, [1, 1, 0])
    # A list that could not be given counts 0, also where none is needed.
    failed = score_lists(QUESTIONS, [(1, 2), InputError("too long"), InputError("too long")])
    np.testing.assert_allclose(failed.set_f1, [1, 0, 0])
    with pytest.raises(InputError, match="does not say which passages"):
        score_lists([question(0, "x", None)], [()])


def test_the_mean_counts_each_set_alike_and_its_interval_is_the_normal_one():
    rng = np.random.default_rng(0)
    sizes = {"musique": 400, "hotpotqa": 100}
    questions = [question(i, name, ("p0",)) for name, n in sizes.items() for i in range(n)]
    values = np.concatenate([rng.normal(0.4, 0.2, 400), rng.normal(0.8, 0.1, 100)])
    strata = strata_of(questions)
    assert {name: len(places) for name, places in strata.items()} == sizes
    found = macro_interval(values, strata)
    first, second = values[:400], values[400:]
    assert found.mean == pytest.approx((first.mean() + second.mean()) / 2)
    error = 0.5 * np.sqrt(first.var() / 400 + second.var() / 100)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_differences_are_paired():
    questions = [question(i, "musique", ("p0",)) for i in range(200)]
    strata = strata_of(questions)
    rng = np.random.default_rng(1)
    hard = rng.uniform(size=200)
    noise = rng.normal(0.01, 0.02, 200)
    found = macro_difference(hard + noise, hard, strata)
    assert found.mean == pytest.approx(noise.mean())
    assert found.low > 0
    assert found.p_value < 0.001
    assert macro_difference(hard, hard, strata).p_value == 1
    swapped = macro_difference(hard, hard + noise, strata)
    assert swapped.mean == pytest.approx(-found.mean)


def test_the_page_shows_every_system_and_every_number_needed():
    systems = {
        "ours": score_lists(QUESTIONS, [(1, 2), (3,), ()]),
        "top-1": score_lists(QUESTIONS, [(1,), (1,), (1,)], [1.0, 0.0, 0.0]),
    }
    page = list_page(QUESTIONS, systems, ["ours"], ["A note."])
    assert page.startswith("A note.\nQuestions: musique 2, hotpotqa 1.\n")
    ours = next(line for line in page.splitlines() if line.startswith("| ours | 100.0"))
    assert ours == "| ours | 100.0 [100.0, 100.0] | 100.0 | 100.0 | 100.0 | 0.75 | – |"
    top = next(line for line in page.splitlines() if line.startswith("| top-1 | "))
    assert "| 33.3 | 0.0 |" in top
    assert top.endswith("| 0.0 | 1.00 | 25.0 |")
    assert "| system | 0 needed (1) | 1 needed (1) | 2 needed (1) |" in page
    assert "| ours | 100.0 (0.00) | 100.0 (1.00) | 100.0 (2.00) |" in page
    figures = lists_to_json(QUESTIONS, systems)
    assert figures["ours"]["set_f1"]["mean"] == 1
    assert figures["top-1"]["by_set"]["musique"]["answer"] == 0.5
