"""From rows to means: every figure with its interval, by dataset, system and type of question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dynarag_jax.evaluation.scoring import STATES, Row
from dynarag_jax.metrics.benchmarks import HEADLINE
from dynarag_jax.metrics.intervals import Interval, bootstrap, bootstrap_columns
from dynarag_jax.metrics.ranking import Sizes, sizes


@dataclass(frozen=True)
class Summary:
    """One system on the questions of a dataset, or on those of one type.

    Attributes:
      type: the type of question; empty for all of them.
      n: questions.
      states: how many of them were answered, empty, failed, missing; empty where the system gives
        no answers at all.
      headline: the figure that stands for the dataset.
      figures: means with 95 % intervals, each with the number of questions it applies to.
      sizes: how many passages were chosen; None where that is unknown of every question.
      types: the same by type of question, where questions have types.
    """

    dataset: str
    system: str
    n: int
    headline: str
    type: str = ""
    states: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Interval] = field(default_factory=dict)
    sizes: Sizes | None = None
    types: tuple[Summary, ...] = ()

    @property
    def unanswered(self) -> int:
        """Questions that count 0 because nothing was answered."""
        return sum(count for state, count in self.states.items() if state != "answered")


def names(rows: Iterable[Row]) -> list[str]:
    """The names of all figures, in the order in which they are first met."""
    return list(dict.fromkeys(name for row in rows for name in row.figures()))


def intervals(rows: Sequence[Row], seed: int, one_by_one: bool = False) -> dict[str, Interval]:
    """Every figure's mean over the rows that have it, with its interval.

    Args:
      one_by_one: resample each figure by itself instead of all in one matrix product, which rounds
        otherwise in the last digit.
    """
    values = [row.figures() for row in rows]
    groups: dict[tuple[bool, ...], list[str]] = {}
    wanted = names(rows)
    for name in wanted:
        groups.setdefault(tuple(name in v for v in values), []).append(name)
    by_name: dict[str, Interval] = {}
    for where, group in groups.items():
        part = [v for v, there in zip(values, where, strict=True) if there]
        matrix = np.array([[v[name] for name in group] for v in part])
        if one_by_one:
            columns = [bootstrap(column.copy(), seed=seed) for column in matrix.T]
        else:
            columns = bootstrap_columns(matrix, seed=seed)
        by_name |= dict(zip(group, columns, strict=True))
    return {name: by_name[name] for name in wanted}


def headline(dataset: str, rows: Sequence[Row]) -> str:
    """The figure that stands for a dataset: its benchmark's, else the first there is."""
    there = names(rows)
    usual = HEADLINE.get(dataset, "")
    return usual if usual in there else next(iter(there), "")


def _summary(
    dataset: str,
    system: str,
    rows: Sequence[Row],
    seed: int,
    one_by_one: bool,
    type_: str = "",
) -> Summary:
    known = [row.k for row in rows if row.k is not None]
    states = {state: sum(row.state == state for row in rows) for state in STATES}
    types = () if type_ else sorted({row.type for row in rows if row.type})
    return Summary(
        dataset=dataset,
        system=system,
        n=len(rows),
        headline=headline(dataset, rows),
        type=type_,
        states=states if any(states.values()) else {},
        figures=intervals(rows, seed, one_by_one),
        sizes=sizes(known) if known else None,
        types=tuple(
            _summary(dataset, system, [r for r in rows if r.type == t], seed, one_by_one, t)
            for t in types
        ),
    )


def summarize(rows: Iterable[Row], seed: int = 0, one_by_one: bool = False) -> list[Summary]:
    """One summary a dataset and system, in the order in which they are first met.

    The intervals are percentile bootstraps over questions; the same seed gives the same ones.
    ``one_by_one`` is that of ``intervals``.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.system), []).append(row)
    order = list(dict.fromkeys(dataset for dataset, _ in groups))
    return [
        _summary(dataset, system, group, seed, one_by_one)
        for wanted in order
        for (dataset, system), group in groups.items()
        if dataset == wanted
    ]


def summary_to_json(summary: Summary) -> dict[str, Any]:
    """The JSON object of a summary."""
    value: dict[str, Any] = {
        "dataset": summary.dataset,
        "system": summary.system,
        "type": summary.type,
        "questions": summary.n,
        "headline": summary.headline,
        "states": summary.states,
        "figures": {name: asdict(one) for name, one in summary.figures.items()},
    }
    if summary.sizes is not None:
        value["sizes"] = asdict(summary.sizes)
    if summary.types:
        value["types"] = [summary_to_json(one) for one in summary.types]
    return value


def scores_by_system(summaries: Iterable[Summary]) -> dict[str, Any]:
    """Of each system the figures that all of its questions have, and the same by type of question.

    For summaries of one dataset.
    """

    def means(summary: Summary) -> dict[str, Any]:
        return {name: asdict(f) for name, f in summary.figures.items() if f.n == summary.n}

    return {
        s.system: means(s) | {"by_type": {part.type: means(part) for part in s.types}}
        for s in summaries
    }
