"""``summary.json``: the run's facts and scores for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, write_json
from dynarag_jax.metrics.intervals import Interval
from dynarag_jax.report.schema import RunReport


def _interval(value: Interval | None) -> dict[str, float] | None:
    return None if value is None else {"mean": value.mean, "low": value.low, "high": value.high}


def summary(report: RunReport) -> dict[str, Any]:
    """The report's numbers as plain JSON values; scores are fractions of 1.

    Systems are keyed by name, in the report's order.

    Raises:
      InputError: two systems have one name.
    """
    systems: dict[str, Any] = {}
    for s in report.systems:
        if s.name in systems:
            raise InputError(f"report: two systems have the name '{s.name}'")
        systems[s.name] = {
            "role": s.role,
            "answer": _interval(s.answer),
            "set_f1": _interval(s.set_f1),
            "mean_k": _interval(s.mean_k),
            "k_sd": s.k_sd,
            "tokens": _interval(s.tokens),
            **({"thought_tokens": _interval(s.thought_tokens)} if s.thought_tokens else {}),
            "questions": s.answer.n,
            "failed": s.failed,
        }
    f = report.facts
    return {
        "title": report.title,
        "config": f.config,
        "command": f.command,
        "seed": f.seed,
        "questions": f.questions,
        "candidates": f.candidates,
        "needed_mean_k": f.needed_mean_k,
        "reward": f.reward,
        "seconds": {stage: float(seconds) for stage, seconds in f.seconds.items()},
        "seconds_total": float(sum(f.seconds.values())),
        "peak_memory_bytes": f.peak_memory_bytes,
        "versions": dict(f.versions),
        "answer_metric": report.answer_metric,
        "systems": systems,
        "change": None if report.change is None else asdict(report.change),
        "types": {
            row.name: {
                "questions": row.questions,
                "needed_k": row.needed_k,
                "before": None if row.before is None else asdict(row.before),
                "after": None if row.after is None else asdict(row.after),
            }
            for row in report.types
        },
        "ranks": [asdict(row) | {"at": list(row.at)} for row in report.ranks],
    }


def write_summary(path: PathLike, report: RunReport | Mapping[str, Any]) -> None:
    """Write ``summary(report)``, or a mapping as it is, as indented JSON, atomically.

    Raises:
      InputError: two systems have one name.
      ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_json(path, summary(report) if isinstance(report, RunReport) else dict(report))
