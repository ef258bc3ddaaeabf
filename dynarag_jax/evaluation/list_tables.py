"""Systems that choose passages, side by side: set F1, exact sets, how many, over several sets.

The mean over sets (macro) counts each set alike. Its interval and the differences between systems
are stratified bootstraps: the questions of each set are resampled by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.evaluation.scoring import group_of
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.metrics.intervals import Difference, Interval
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Question

SAMPLES = 10_000


@dataclass(frozen=True)
class ListScores:
    """One system's lists on all questions, in their order.

    Attributes:
      set_f1: f64[Q] against the needed passages.
      exact: f64[Q], 1 where the list holds exactly these.
      k: f64[Q], passages of the list.
      answer: f64[Q], the headline metric of the answer; None where nothing was answered.
    """

    set_f1: np.ndarray
    exact: np.ndarray
    k: np.ndarray
    answer: np.ndarray | None = None


def score_lists(
    questions: Sequence[Question],
    lists: Sequence[Chosen | InputError],
    answers: Sequence[float] | None = None,
) -> ListScores:
    """Score a system's lists; a list that could not be given counts 0, and no passage.

    Raises:
      InputError: a question does not say which passages it needs.
    """
    f1, exact, k = [], [], []
    for question, chosen in zip(questions, lists, strict=True):
        if question.gold is None:
            raise InputError(
                f"question '{question.id}' does not say which passages are needed (field 'gold'), "
                f"and lists are scored by them"
            )
        if isinstance(chosen, InputError):
            f1.append(0.0)
            exact.append(0.0)
            k.append(0.0)
            continue
        ids = [question.passages[i - 1].id for i in chosen]
        f1.append(set_f1(ids, question.gold))
        exact.append(float(set(ids) == set(question.gold)))
        k.append(float(len(ids)))
    given = None if answers is None else np.asarray(answers, np.float64)
    f1, exact, k = (np.asarray(x, np.float64) for x in (f1, exact, k))
    return ListScores(f1, exact, k, given)


def strata_of(questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Places of each set's questions, by the name of the set."""
    names = [group_of(question) for question in questions]
    return {name: np.flatnonzero([n == name for n in names]) for name in dict.fromkeys(names)}


def _resampled(
    values: np.ndarray, strata: Mapping[str, np.ndarray], seed: int, samples: int
) -> np.ndarray:
    """f64[samples], the mean over sets of each set's mean, its questions drawn anew."""
    rng = np.random.default_rng(seed)
    total = np.zeros(samples)
    for places in strata.values():
        drawn = rng.integers(0, len(places), (samples, len(places)))
        total += values[places][drawn].mean(axis=1)
    return total / len(strata)


def macro(values: np.ndarray, strata: Mapping[str, np.ndarray]) -> float:
    """The mean over sets of each set's mean."""
    return float(np.mean([values[places].mean() for places in strata.values()]))


def macro_interval(
    values: np.ndarray, strata: Mapping[str, np.ndarray], seed: int = 0, samples: int = SAMPLES
) -> Interval:
    """The mean over sets with its 95 % percentile interval."""
    means = _resampled(values, strata, seed, samples)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(macro(values, strata), float(low), float(high), len(values))


def macro_difference(
    a: np.ndarray,
    b: np.ndarray,
    strata: Mapping[str, np.ndarray],
    seed: int = 0,
    samples: int = SAMPLES,
) -> Difference:
    """The mean over sets of a - b, question by question, its interval and two-sided p-value."""
    means = _resampled(a - b, strata, seed, samples)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min((means <= 0).mean(), (means >= 0).mean())
    # No p-value is smaller than what so many samples can tell.
    p = min(1.0, max(2 * float(tail), 1 / samples))
    return Difference(macro(a - b, strata), float(low), float(high), len(a), p)


def _percent(interval: Interval | Difference) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def list_page(
    questions: Sequence[Question],
    systems: Mapping[str, ListScores],
    models: Sequence[str],
    notes: Sequence[str] = (),
    seed: int = 0,
) -> str:
    """The tables as Markdown: every system; every model less every other; by how many are needed.

    Args:
      models: those of ``systems`` that are compared with all others.
      notes: what stands above the tables.
    """
    strata = strata_of(questions)
    answered = any(one.answer is not None for one in systems.values())
    head = ["system", "set F1, mean of sets", *strata, "exact sets", "mean k"]
    rows = []
    for name, one in systems.items():
        row = [name, _percent(macro_interval(one.set_f1, strata, seed))]
        row += [f"{100 * one.set_f1[places].mean():.1f}" for places in strata.values()]
        row += [f"{100 * macro(one.exact, strata):.1f}", f"{macro(one.k, strata):.2f}"]
        if answered:
            answer = one.answer
            row.append("–" if answer is None else f"{100 * macro(answer, strata):.1f}")
        rows.append(row)
    counts = ", ".join(f"{name} {len(places)}" for name, places in strata.items())
    parts = [*notes, f"Questions: {counts}.", ""]
    parts += [markdown(head + (["answers"] if answered else []), rows), ""]
    others = [name for name in systems if name not in models]
    if models and others:
        table = []
        for name in others:
            row = [name]
            for model in models:
                own, other = systems[model], systems[name]
                found = macro_difference(own.set_f1, other.set_f1, strata, seed)
                row.append(f"{_percent(found)}, p {_p(found.p_value)}")
            table.append(row)
        parts += ["Set F1 of the model less that of the system, mean of sets:", ""]
        parts += [markdown(["system", *models], table), ""]
    needed = np.array([len(question.gold or ()) for question in questions])
    sizes = sorted(set(needed.tolist()))
    table = []
    for name, one in systems.items():
        cells = [
            f"{100 * one.set_f1[needed == n].mean():.1f} ({one.k[needed == n].mean():.2f})"
            for n in sizes
        ]
        table.append([name, *cells])
    titles = [f"{n} needed ({int((needed == n).sum())})" for n in sizes]
    parts += ["Set F1, and in brackets the mean k, by how many passages are needed:", ""]
    parts += [markdown(["system", *titles], table)]
    return "\n".join(parts) + "\n"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def lists_to_json(
    questions: Sequence[Question], systems: Mapping[str, ListScores], seed: int = 0
) -> dict[str, Any]:
    """The figures of every system: means over sets with intervals, and each set's means."""
    strata = strata_of(questions)

    def figures(one: ListScores) -> dict[str, Any]:
        values = {"set_f1": one.set_f1, "exact_set": one.exact, "k": one.k}
        if one.answer is not None:
            values["answer"] = one.answer
        means = {name: asdict(macro_interval(x, strata, seed)) for name, x in values.items()}
        by_set = {
            which: {name: float(x[places].mean()) for name, x in values.items()}
            for which, places in strata.items()
        }
        return means | {"by_set": by_set}

    return {name: figures(one) for name, one in systems.items()}
