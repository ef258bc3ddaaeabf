"""Which way of scoring answers: the benchmarks' own, or that of the released DynamicRAG scripts."""

from __future__ import annotations

from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.scoring import Answerer, by_benchmark, dataset_of
from dynarag_jax.metrics import released
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.records import Question

ScoringProtocol = Literal["benchmark", "released-code"]
RELEASED = "released-code"
PREFIX = "released "
"""Before the name of every metric of the released scripts."""


def by_released(given: str = "") -> Answerer:
    """The released scripts' metrics of each question, that of its dataset first.

    A question that has no answer or no reference gets none: it leaves the denominator, as there.
    """

    def score(question: Question, answer: str | None) -> dict[str, float]:
        dataset = dataset_of(question, given)
        first = released.metric_of(dataset, question.task)
        figures = {
            name: released.score_prediction(question, answer, dataset, name)
            for name in dict.fromkeys([first, *released.METRICS])
        }
        # Theirs is in percent where it is called f1, a share of 1 elsewhere; here all are shares.
        return {
            PREFIX + name: value / 100 if name == "f1" else value
            for name, value in figures.items()
            if value is not None
        }

    return score


def answerer(
    protocol: str, dataset: str = "", metrics: MetricsConfig = MetricsConfig()
) -> Answerer:
    """How answers are scored under a protocol."""
    return by_released(dataset) if protocol == RELEASED else by_benchmark(dataset, metrics)


def check_protocol(protocol: str, metrics: MetricsConfig) -> None:
    """Refuse settings of the metrics that a protocol would ignore."""
    if protocol == RELEASED and metrics != MetricsConfig():
        raise InputError(
            f"metrics.normalize = '{metrics.normalize}' has no effect under protocol '{RELEASED}', "
            f"which normalizes as the released scripts do"
        )


def note(protocol: str) -> list[str]:
    """What must stand above every table under a protocol."""
    if protocol != RELEASED:
        return []
    return [
        f"**{released.MARK}.** These are the numbers that the scripts released with DynamicRAG "
        f"would print, mistakes and all: an empty prediction matches every answer, and questions "
        f"without an answer leave the denominator. They do not measure what their names say."
    ]
