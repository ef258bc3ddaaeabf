"""Tables of scores: per dataset and type of question, with intervals, failures and comparisons.

Rows hold fractions of 1 in JSON and in TREC's form, percent in Markdown. Every question is in the
denominator: one that failed scores 0 and is counted in a column of its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.metrics.intervals import Difference, Interval, bootstrap, paired_bootstrap

ALL = "all"
"""The row of a dataset over questions of every type."""
COUNTS = ("k", "tokens")
"""Figures that are numbers of passages and tokens, not shares of 1."""


@dataclass(frozen=True)
class Scored:
    """One question's scores by one system.

    Attributes:
      id: the question's; with ``dataset`` it is unique within a run.
      scores: by name of the metric, each in [0, 1], or a count for the names in ``COUNTS``.
      dataset, type: what the question is filed under; may be empty.
      failed: no answer could be had: every metric counts 0, whatever ``scores`` says. A list that
        was chosen before its answer failed keeps its counts.
    """

    id: str
    scores: Mapping[str, float] = field(default_factory=dict)
    dataset: str = ""
    type: str = ""
    failed: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What two runs are compared by."""
        return self.dataset, self.id


@dataclass(frozen=True)
class Row:
    """A system's means over one dataset and type of question.

    Attributes:
      questions: how many there are; each is in the denominator of every metric.
      failed: how many of them scored 0 for want of an answer.
      figures: the mean of each metric with its interval.
      spread: standard deviation over questions of each figure in ``COUNTS``.
    """

    system: str
    dataset: str
    type: str
    questions: int
    failed: int
    figures: Mapping[str, Interval]
    spread: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same questions: the mean of a - b of each metric, with a p-value."""

    a: str
    b: str
    dataset: str
    type: str
    questions: int
    figures: Mapping[str, Difference]


def _names(rows: Sequence[Scored]) -> list[str]:
    """The metrics of some rows, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def _values(system: str, rows: Sequence[Scored], name: str) -> np.ndarray:
    """One metric of every question, 0 for those that failed; f64[Q]."""
    values = []
    for row in rows:
        if row.failed:
            values.append(row.scores.get(name, 0.0) if name in COUNTS else 0.0)
        elif name in row.scores:
            values.append(row.scores[name])
        else:
            raise InputError(
                f"{system}: question '{row.id}' of dataset '{row.dataset}' has no '{name}', which "
                f"others have; every question needs it, or mark this one as failed"
            )
    return np.asarray(values, np.float64)


def _groups(system: str, rows: Iterable[Scored]) -> dict[tuple[str, str], list[Scored]]:
    """Rows by dataset and type; ``ALL`` first, and alone where a dataset has one type only."""
    by_dataset: dict[str, dict[str, Scored]] = {}
    for row in rows:
        part = by_dataset.setdefault(row.dataset, {})
        if row.id in part:
            raise InputError(f"{system}: question '{row.id}' of '{row.dataset}' is scored twice")
        part[row.id] = row
    groups: dict[tuple[str, str], list[Scored]] = {}
    for dataset, part in by_dataset.items():
        groups[dataset, ALL] = list(part.values())
        types = sorted({row.type for row in part.values() if row.type})
        if len(types) > 1 or (types and any(not row.type for row in part.values())):
            for kind in types:
                groups[dataset, kind] = [row for row in part.values() if row.type == kind]
    return groups


def tabulate(system: str, rows: Iterable[Scored], *, seed: int = 0) -> list[Row]:
    """The rows of one system: each dataset in all, then its types of question.

    Raises:
      InputError: there is no question, one is scored twice, or lacks a metric that others have.
    """
    found = []
    for (dataset, kind), part in _groups(system, rows).items():
        values = {name: _values(system, part, name) for name in _names(part)}
        found.append(
            Row(
                system=system,
                dataset=dataset,
                type=kind,
                questions=len(part),
                failed=sum(row.failed for row in part),
                figures={name: bootstrap(v, seed=seed) for name, v in values.items()},
                spread={name: float(values[name].std()) for name in COUNTS if name in values},
            )
        )
    if not found:
        raise InputError(f"{system}: no questions to tabulate")
    return found


def compare(
    a: str, a_rows: Iterable[Scored], b: str, b_rows: Iterable[Scored], *, seed: int = 0
) -> list[Comparison]:
    """Paired comparison of two runs: the same questions, whatever their order in the files.

    Metrics that only one of the runs has are left out.

    Raises:
      InputError: a question of one run is missing in the other, or as for ``tabulate``.
    """
    first, second = _groups(a, a_rows), _groups(b, b_rows)
    found = []
    other_keys = {row.key: row for rows in second.values() for row in rows}
    own_keys = {row.key for rows in first.values() for row in rows}
    for one, has, lacks, by in ((own_keys, a, b, other_keys), (set(other_keys), b, a, own_keys)):
        if missing := sorted(key for key in one if key not in by):
            dataset, name = missing[0]
            raise InputError(
                f"question '{name}' of dataset '{dataset}' is in {has} and not in {lacks} "
                f"({len(missing)} of {len(one)} are); a paired comparison needs the same questions"
            )
    for (dataset, kind), part in first.items():
        others = [other_keys[row.key] for row in part]
        names = [name for name in _names(part) if name in _names(others)]
        figures = {
            name: paired_bootstrap(_values(a, part, name), _values(b, others, name), seed=seed)
            for name in names
        }
        found.append(Comparison(a, b, dataset, kind, len(part), figures))
    return found


# ---------------------------------------------------------------------------- as text


def _scale(name: str) -> float:
    return 1.0 if name in COUNTS else 100.0


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], left: int) -> str:
    lines = ["| " + " | ".join(_cell(h) for h in header) + " |"]
    lines.append("|" + "|".join("---" if i < left else "---:" for i in range(len(header))) + "|")
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row], note: str = "") -> str:
    """A Markdown table: percent with the 95 % interval, counts as they are with their spread.

    Args:
      note: put before the table, as a paragraph (``released.MARK``, say).
    """
    names = list(dict.fromkeys(name for row in rows for name in row.figures))

    def shown(row: Row, name: str) -> str:
        if name not in row.figures:
            return ""
        figure, scale = row.figures[name], _scale(name)
        mean, low, high = (f"{scale * x:.1f}" for x in (figure.mean, figure.low, figure.high))
        spread = f" ± {row.spread[name]:.1f}" if name in row.spread else ""
        return f"{mean}{spread} [{low}, {high}]"

    header = ["system", "dataset", "type", "questions", "failed"]
    header += [f"{name}{'' if name in COUNTS else ' %'}" for name in names]
    body = [
        [row.system, row.dataset, row.type, row.questions, row.failed]
        + [shown(row, name) for name in names]
        for row in rows
    ]
    return (f"{note}\n\n" if note else "") + _table(header, body, left=3)


def markdown_comparison(rows: Sequence[Comparison]) -> str:
    """A Markdown table of differences in percentage points, intervals and p-values."""
    body = []
    for row in rows:
        for name, figure in row.figures.items():
            scale = _scale(name)
            mean, low, high = (f"{scale * x:+.1f}" for x in (figure.mean, figure.low, figure.high))
            who = [f"{row.a} - {row.b}", row.dataset, row.type, name, row.questions]
            body.append([*who, f"{mean} [{low}, {high}]", f"{figure.p_value:.4f}"])
    header = ["systems", "dataset", "type", "metric", "questions", "difference", "p"]
    return _table(header, body, left=4)


def as_json(rows: Sequence[Row | Comparison]) -> list[dict[str, Any]]:
    """Rows as JSON objects, in fractions of 1."""
    return [dataclasses.asdict(row) for row in rows]


def dumps(rows: Sequence[Row | Comparison]) -> str:
    """The JSON document of some rows."""
    return json.dumps(as_json(rows), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _one_word(text: str) -> str:
    return re.sub(r"\s+", "_", text) or "-"


def trec(system: str, rows: Sequence[Scored]) -> str:
    """The form of ``trec_eval -q``: ``metric <tab> question <tab> value``, then the means as "all".

    A line ``num_failed`` counts the questions that failed; their values are 0. Of several datasets,
    the metrics carry the dataset before their name (``hotpotqa/em``).
    """
    datasets = {row.dataset for row in rows}

    def named(dataset: str, name: str) -> str:
        return _one_word(f"{dataset}/{name}" if len(datasets) > 1 else name)

    lines = ["runid\tall\t" + _one_word(system)]
    for (dataset, kind), part in _groups(system, rows).items():
        if kind != ALL:
            continue
        counts = {"num_q": len(part), "num_failed": sum(row.failed for row in part)}
        values = {name: _values(system, part, name) for name in _names(part)}
        for place, row in enumerate(part):
            question = _one_word(row.id)
            lines += [
                f"{named(dataset, name)}\t{question}\t{v[place]:.4f}" for name, v in values.items()
            ]
        lines += [f"{named(dataset, name)}\tall\t{count}" for name, count in counts.items()]
        lines += [f"{named(dataset, name)}\tall\t{v.mean():.4f}" for name, v in values.items()]
    return "\n".join(lines) + "\n"


def read_trec(text: str) -> dict[str, dict[str, str]]:
    """The values of ``trec`` (or ``trec_eval -q``) by metric and question."""
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) != 3:
            raise InputError(f"line {number}: expected metric, question and value, found {line!r}")
        found.setdefault(parts[0].strip(), {})[parts[1].strip()] = parts[2].strip()
    return found
