"""Bootstrap intervals against scipy, exhaustive resampling, coverage and the t test."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dynarag_jax.errors import InputError
from dynarag_jax.metrics.intervals import bootstrap, paired_bootstrap


def test_interval_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for values in ((rng.random(300) < 0.7).astype(float), rng.exponential(size=120)):
        ours = bootstrap(values, samples=20_000)
        theirs = stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=20_000, rng=rng
        ).confidence_interval
        width = theirs.high - theirs.low
        assert ours.mean == values.mean() and ours.n == len(values)
        assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
        assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_interval_agrees_with_every_resample_of_a_tiny_sample():
    values = np.array([0.0, 1.0, 3.0, 7.0, 20.0])
    means = np.mean(list(itertools.product(values, repeat=5)), axis=1)
    low, high = np.quantile(means, [0.1, 0.9])
    ours = bootstrap(values, samples=100_000, level=0.8)
    assert ours.low == pytest.approx(low, abs=0.11) and ours.high == pytest.approx(high, abs=0.11)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(400):
        found = bootstrap(rng.random(200) < 0.3, samples=400, seed=trial)
        inside += found.low <= 0.3 <= found.high
    # 95 % of 400 is 380; the bounds are 4 standard deviations of a binomial away, and then some
    # for the percentile bootstrap's own shortfall.
    assert 355 <= inside <= 396


def test_same_seed_same_interval_and_blocks_do_not_matter(monkeypatch):
    values = np.arange(50.0)
    once = bootstrap(values, seed=3)
    assert once == bootstrap(values, seed=3) != bootstrap(values, seed=4)
    monkeypatch.setattr("dynarag_jax.metrics.intervals._BLOCK", 50 * 7)
    assert bootstrap(values, seed=3) == once


def test_one_question_and_equal_values_have_no_width():
    one = bootstrap([0.25])
    assert (one.mean, one.low, one.high, one.n) == (0.25, 0.25, 0.25, 1)
    same = bootstrap([1.0] * 9)
    assert (same.low, same.high) == (1.0, 1.0)


def test_difference_pairs_the_questions():
    rng = np.random.default_rng(2)
    hard = rng.normal(size=200)  # what both systems share
    a, b = hard + 0.2 + 0.1 * rng.normal(size=200), hard + 0.1 * rng.normal(size=200)
    found = paired_bootstrap(a, b, samples=20_000)
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=rng,
    ).confidence_interval
    assert found.mean == pytest.approx((a - b).mean())
    assert found.low == pytest.approx(theirs.low, abs=0.002)
    assert found.high == pytest.approx(theirs.high, abs=0.002)
    assert found.p_value == pytest.approx(1 / 20_001)  # far beyond what any resample reaches
    turned = paired_bootstrap(b, a, samples=20_000)
    assert (turned.mean, turned.low) == pytest.approx((-found.mean, -found.high))
    assert turned.p_value == found.p_value


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1, 0.15])
def test_p_value_agrees_with_the_paired_t_test(shift):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=400) + shift, rng.normal(size=400)
    theirs = stats.ttest_rel(a, b).pvalue
    assert paired_bootstrap(a, b, samples=10_000).p_value == pytest.approx(theirs, abs=0.02)


def test_p_value_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(6)
    below = sum(
        paired_bootstrap(rng.random(100) < 0.5, rng.random(100) < 0.5, samples=300).p_value <= 0.1
        for _ in range(300)
    )
    assert 12 <= below <= 52  # 30 expected; 4 standard deviations of a binomial


def test_equal_systems_differ_by_nothing():
    found = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_bad_input_is_named():
    for values in ([], [[1.0, 2.0]], 3.0):
        with pytest.raises(InputError, match="at least one question"):
            bootstrap(values)
    with pytest.raises(InputError, match="value 1 is nan"):
        bootstrap([0.0, float("nan")])
    with pytest.raises(InputError, match="2 values against 3"):
        paired_bootstrap([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="samples must be at least 1, found 0"):
        bootstrap([1.0], samples=0)
    with pytest.raises(InputError, match="between 0 and 1, found 95"):
        bootstrap([1.0], level=95)
