"""Paired comparisons: p-values against scipy, Holm's adjustment by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.comparison import compare, comparison_table, holm, randomization
from dynarag_jax.evaluation.scoring import Row


def rows(system: str, values, figure: str = "em", dataset: str = "nq", types=None) -> list[Row]:
    return [
        Row(f"q{i}", system, dataset, types[i] if types else "", answer={figure: float(v)})
        for i, v in enumerate(values)
    ]


def theirs(a, b, resamples: int = 20_000) -> float:
    found = stats.permutation_test(
        (np.asarray(a, float), np.asarray(b, float)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    return float(found.pvalue)


def test_p_values_of_few_questions_are_scipys_exactly():
    rng = np.random.default_rng(0)
    for n in (2, 5, 9, 12):
        a = np.stack([rng.random(n), rng.random(n) < 0.7, np.ones(n)], axis=1)
        b = np.stack([rng.random(n), rng.random(n) < 0.3, np.ones(n)], axis=1)
        found = randomization(a - b)
        # Nothing differs in the last column.
        assert found[2] == 1
        for column in (0, 1):
            assert found[column] == pytest.approx(theirs(a[:, column], b[:, column]), abs=1e-12)


def test_p_values_of_many_questions_are_scipys_up_to_the_draw():
    rng = np.random.default_rng(3)
    a, b = rng.random(200) < 0.56, rng.random(200) < 0.45
    found = compare({"b": rows("b", b), "a": rows("a", a)}, "b")[0]
    expected = theirs(a, b)
    assert 0.001 < expected < 0.2
    # Both are drawn: four standard deviations of 10,000 and 20,000 draws.
    spread = 4 * np.sqrt(expected * (1 - expected) * (1 / 10_000 + 1 / 20_000))
    assert found.p_values["em"] == pytest.approx(expected, abs=spread)
    assert found.differences["em"].mean == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert (found.wins, found.losses) == (int((a & ~b).sum()), int((b & ~a).sum()))


def test_holm_by_hand():
    """0.01, 0.04, 0.03 of three: 3 x 0.01, 2 x 0.03, and 0.04, which is raised to that."""
    made = compare({s: rows(s, [1, 0, 1]) for s in "abcd"}, "a")
    named = [c.__class__(**(vars(c) | {"p_values": {"em": p}})) for c, p in zip(
        made, (0.01, 0.04, 0.03), strict=True)]  # fmt: skip
    assert [c.adjusted for c in holm(named)] == pytest.approx([0.03, 0.06, 0.06])


def test_pairs_types_and_datasets():
    types = ["x", "y", "y", "x"]
    both = rows("a", [1, 1, 0, 0], types=types) + rows("a", [1, 0], "rouge_l", "eli5")
    other = rows("b", [0, 1, 0, 0], types=types)
    third = rows("c", [0, 0, 0, 0], types=types) + rows("c", [0, 0], "rouge_l", "eli5")
    found = compare({"a": both, "b": other, "c": third}, "")
    assert [(c.a, c.b, c.dataset, c.type) for c in found] == [
        ("b", "a", "nq", ""), ("c", "a", "nq", ""), ("b", "a", "nq", "x"), ("c", "a", "nq", "x"),
        ("b", "a", "nq", "y"), ("c", "a", "nq", "y"), ("c", "a", "eli5", ""),
    ]  # fmt: skip
    assert [c.differences["em"].mean for c in found[:3]] == [-0.25, -0.5, -0.5]
    every = compare({"a": both, "b": other, "c": third}, "", every=True)
    assert {(c.a, c.b) for c in every} == {("b", "a"), ("c", "a"), ("c", "b")}
    page = comparison_table(found)
    assert "| b − a | all | 4 | EM | −25.0 [" in page and "p (Holm)" in page


def test_nothing_to_compare():
    with pytest.raises(InputError, match="needs two systems or more, found a"):
        compare({"a": rows("a", [1])}, "")
    with pytest.raises(InputError, match=r"no system 'top5' .*did you mean 'top-5'"):
        compare({"top-5": rows("top-5", [1]), "b": rows("b", [1])}, "top5")
    with pytest.raises(InputError, match="no two systems answer the same dataset"):
        compare({"a": rows("a", [1]), "b": rows("b", [1], dataset="eli5")}, "")


def test_one_question_decides_nothing():
    """The bootstrap sees no spread in one question; the randomization test knows better."""
    (found,) = compare({"a": rows("a", [0]), "b": rows("b", [1])}, "a")
    assert found.differences["em"].mean == 1 and found.p_values["em"] == 1
