"""Bootstrap confidence intervals over questions (Efron and Tibshirani 1993).

The questions are resampled, so an interval says how far the mean would move with other questions of
the same kind. It says nothing of other training seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dynarag_jax.errors import InputError

# Resampled indices held at once; bounds the memory to some tens of MB however many questions.
_BLOCK = 1 << 21


@dataclass(frozen=True)
class Interval:
    """A mean over questions and its percentile interval.

    Attributes:
      mean: the mean of the values.
      low, high: the interval's ends, in the unit of the values.
      n: the number of questions.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of a - b over the same questions, its interval, and a two-sided p-value."""

    mean: float
    low: float
    high: float
    n: int
    p_value: float


def _values(values: ArrayLike, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(
            f"{what}: expected one number for each of at least one question, "
            f"found an array of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{what}: value {index} is {array[index]}; every value must be finite")
    return array


def _check(samples: int, level: float) -> None:
    if samples < 1:
        raise InputError(f"the number of bootstrap samples must be at least 1, found {samples}")
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, found {level}")


def _resampled_means(values: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // values.size)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        chosen = rng.integers(0, values.size, size=(rows, values.size), dtype=np.int32)
        yield values[chosen].mean(axis=1)


def _resampled_columns(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The means of ``_resampled_means`` for every column of f64[Q, F]: f64[samples, F].

    A resample is a count a question, so that all columns share it and are one matrix product.
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    block = max(1, _BLOCK // n)
    parts = []
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        chosen = rng.integers(0, n, size=(rows, n), dtype=np.int32)
        places = (chosen + np.arange(rows, dtype=np.int64)[:, None] * n).ravel()
        counts = np.bincount(places, minlength=rows * n).reshape(rows, n)
        parts.append(counts.astype(np.float64) @ values / n)
    return np.concatenate(parts)


def bootstrap(
    values: ArrayLike, *, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of ``values`` (f64[Q], one a question) with its percentile bootstrap interval.

    The same seed gives the same interval. One question, or equal values, give an interval of no
    width: the bootstrap cannot see beyond its sample.

    Raises:
      InputError: no values, a value that is not finite, or bad ``samples`` or ``level``.
    """
    _check(samples, level)
    array = _values(values, "bootstrap")
    means = np.concatenate(list(_resampled_means(array, samples, seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high), array.size)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Mean of ``a - b`` over the same questions in the same order, with interval and p-value.

    Both systems are resampled on the same questions. The p-value is two-sided: the share of
    resamples whose mean, moved to the null hypothesis of no difference, lies at least as far out as
    the one observed (Efron and Tibshirani 1993, section 16.4), never below 1 / (samples + 1).

    Raises:
      InputError: the two differ in length, or as for ``bootstrap``.
    """
    _check(samples, level)
    first, second = _values(a, "paired bootstrap, a"), _values(b, "paired bootstrap, b")
    if first.size != second.size:
        raise InputError(
            f"paired bootstrap: {first.size} values against {second.size}; "
            "both systems must answer the same questions"
        )
    differences = first - second
    mean = differences.mean()
    means = np.concatenate(list(_resampled_means(differences, samples, seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # The slack keeps ties ties: resampled means of 0/1 values often equal the observed one.
    far = np.abs(means - mean) >= abs(mean) * (1 - 1e-12)
    p_value = (1 + int(far.sum())) / (samples + 1)
    return Difference(float(mean), float(low), float(high), differences.size, p_value)


def _columns(values: ArrayLike, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] == 0:
        raise InputError(f"{what}: expected [questions, figures], found shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{what}: every value must be finite")
    return array


def bootstrap_columns(
    values: ArrayLike, *, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """``bootstrap`` of each column of ``values``, f64[Q, F], in one pass over the resamples."""
    _check(samples, level)
    array = _columns(values, "bootstrap")
    means = _resampled_columns(array, samples, seed)
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    columns = zip(array.mean(axis=0).tolist(), *ends.tolist(), strict=True)
    return [Interval(mean, low, high, len(array)) for mean, low, high in columns]


def paired_bootstrap_columns(
    a: ArrayLike, b: ArrayLike, *, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Difference]:
    """``paired_bootstrap`` of each column of ``a - b``, f64[Q, F], in one pass."""
    _check(samples, level)
    first, second = _columns(a, "paired bootstrap, a"), _columns(b, "paired bootstrap, b")
    if first.shape != second.shape:
        raise InputError(f"paired bootstrap: shapes {first.shape} and {second.shape} differ")
    differences = first - second
    mean = differences.mean(axis=0)
    means = _resampled_columns(differences, samples, seed)
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    # As in ``paired_bootstrap``; a matrix product rounds by a little more than a mean does.
    far = np.abs(means - mean) >= np.abs(mean) * (1 - 1e-9) - 1e-15
    p_values = (1 + far.sum(axis=0)) / (samples + 1)
    columns = zip(mean.tolist(), *ends.tolist(), p_values.tolist(), strict=True)
    return [Difference(m, low, high, len(first), p) for m, low, high, p in columns]
