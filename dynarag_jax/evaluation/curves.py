"""How good lists are against how much they read, as one number moves: a bias, a rule's threshold.

A policy's curve comes from its paths (``sampling.stopping``), so that every bias is looked at; a
rule's from its grid. A rule's area is compared with the policies' over what both reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.evaluation.tuning import RuleName, choose, grid
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Question
from dynarag_jax.sampling.stopping import StopPath

Moved = Literal["both", "stop", "empty"]
"""Which scores a bias is added to: stopping behind a passage, the empty list, or both."""

_ROUNDING = 1e-9

Figure = Callable[[int, Chosen], float]
"""A figure of a list for the question at a place."""


def bias_of(value: float, moved: Moved) -> ListBias:
    """The bias of a value."""
    return ListBias(value if moved != "empty" else 0.0, value if moved != "stop" else 0.0)


def list_f1(questions: Sequence[Question]) -> Figure:
    """Set F1 of a list against the passages that its question needs.

    Raises:
      InputError: a question does not say which.
    """
    if unknown := [q.id for q in questions if q.gold is None]:
        raise InputError(
            f"question '{unknown[0]}' does not say which passages are needed (field 'gold'), and "
            f"set_f1 goes by them; take another quality"
        )

    def figure(place: int, chosen: Chosen) -> float:
        question = questions[place]
        return set_f1([question.passages[i - 1].id for i in chosen], question.gold or ())

    return figure


def steps_of(path: StopPath, moved: Moved) -> list[tuple[float, Chosen]]:
    """The lists of a path as the value rises, each with the least value that gives it."""
    own = {
        need
        for chosen, need in zip(path.lists, path.needs, strict=True)
        if np.isfinite(need) and moved in ("both", "stop" if chosen else "empty")
    }
    found = [(-np.inf, path.at(bias_of(-1e30, moved)))]
    for value in sorted(own):
        chosen = path.at(bias_of(value, moved))
        if chosen != found[-1][1]:
            found.append((value, chosen))
    return found


@dataclass(frozen=True)
class QualityCurve:
    """Means of figures over the questions, for every value that makes a difference.

    Attributes:
      name: of the system.
      values: f64[V], rising.
      means: f64[V] of each figure.
    """

    name: str
    values: np.ndarray
    means: dict[str, np.ndarray]

    def point(self, place: int) -> dict[str, float]:
        """All figures at a place."""
        return {name: float(x[place]) for name, x in self.means.items()}


def policy_curve(
    name: str, paths: Sequence[StopPath], moved: Moved, figures: Mapping[str, Figure]
) -> QualityCurve:
    """The curve of a policy: values between those at which some question's list changes.

    Raises:
      InputError: there is no question.
    """
    if not paths:
        raise InputError(f"{name}: no questions to draw a curve of")
    start = dict.fromkeys(figures, 0.0)
    events: list[tuple[float, list[float]]] = []
    for place, path in enumerate(paths):
        before: list[float] | None = None
        for value, chosen in steps_of(path, moved):
            now = [figure(place, chosen) for figure in figures.values()]
            if before is None:
                start = {n: start[n] + x for n, x in zip(start, now, strict=True)}
            else:
                events.append((value, [b - a for a, b in zip(before, now, strict=True)]))
            before = now
    events.sort(key=lambda event: event[0])
    at = np.array([value for value, _ in events])
    changes = np.array([change for _, change in events]).reshape(len(events), len(figures))
    edges, first = np.unique(at, return_index=True)
    sums = np.add.reduceat(changes, first, axis=0) if len(events) else changes
    totals = np.array([*start.values()]) + np.concatenate(
        [np.zeros((1, len(figures))), np.cumsum(sums, axis=0)]
    )
    values = np.zeros(1)
    if len(edges):
        # Halfway between two changes, so that rounding does not decide.
        values = np.concatenate([[edges[0] - 1], (edges[:-1] + edges[1:]) / 2, [edges[-1] + 1]])
    means = totals / len(paths)
    return QualityCurve(name, values, {n: means[:, i] for i, n in enumerate(figures)})


def rule_curves(
    questions: Sequence[Question],
    scores: Sequence[Sequence[float]],
    figures: Mapping[str, Figure],
    rules: Iterable[RuleName] = ("fixed-k", "threshold", "largest-gap", "cumulative-mass"),
) -> list[QualityCurve]:
    """The curves of rules on the same scores, as their parameter moves.

    A rule with a second parameter has a curve for each of its values.
    """
    curves = []
    for rule in rules:
        by_other: dict[str, list[dict[str, float]]] = {}
        for parameters in grid(rule, scores):
            heat = parameters.get("temperature")
            other = "" if heat is None else f", temperature {heat:.3g}"
            by_other.setdefault(other, []).append(parameters)
        for other, grids in by_other.items():
            rows = []
            for parameters in grids:
                lists = [
                    choose(rule, q, own, parameters)
                    for q, own in zip(questions, scores, strict=True)
                ]
                rows.append(
                    [
                        np.mean([figure(i, one) for i, one in enumerate(lists)])
                        for figure in figures.values()
                    ]
                )
            values = np.array([next(iter(p.values())) for p in grids])
            table = np.array(rows)
            curves.append(
                QualityCurve(rule + other, values, dict(zip(figures, table.T, strict=True)))
            )
    return curves


def area(curve: QualityCurve, x: str, y: str, low: float, high: float) -> float:
    """The mean height of a curve between two places of x: the area under it, by the width.

    Points are joined by lines; where several have one x, their mean counts.
    """
    at, inverse = np.unique(curve.means[x], return_inverse=True)
    height = np.bincount(inverse, curve.means[y]) / np.bincount(inverse)
    if high <= low:
        return float(np.interp(low, at, height))
    inside = at[(at > low) & (at < high)]
    places = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(places, at, height), places) / (high - low))


def common_range(curves: Sequence[QualityCurve], x: str) -> tuple[float, float] | None:
    """What all curves reach of x; None where they have no width in common."""
    low = max(float(curve.means[x].min()) for curve in curves)
    high = min(float(curve.means[x].max()) for curve in curves)
    return (low, high) if low < high else None


# ---------------------------------------------------------------------------- a value chosen


def nearest(curve: QualityCurve, name: str, target: float) -> int:
    """The place whose figure is nearest to a target; of several, the value nearest to 0.

    Raises:
      InputError: the figure never comes near it.
    """
    means = curve.means[name]
    low, high = float(means.min()), float(means.max())
    if not low - _ROUNDING <= target <= high + _ROUNDING:
        raise InputError(
            f"target: {name} = {target:g} is beyond what a bias reaches on these questions, from "
            f"{low:.3f} to {high:.3f}"
        )
    away = np.abs(means - target)
    best = np.flatnonzero(away <= away.min() + 1e-12)
    return int(best[np.abs(curve.values[best]).argmin()])


def within(curve: QualityCurve, name: str, budget: float) -> int:
    """The place with the most of a figure that a budget allows.

    Raises:
      InputError: even the least is more.
    """
    means = curve.means[name]
    allowed = np.flatnonzero(means <= budget + _ROUNDING)
    if not len(allowed):
        raise InputError(
            f"target: {name} = {budget:g} is less than what any bias reaches on these questions, "
            f"{means.min():.3f}"
        )
    best = allowed[means[allowed] >= means[allowed].max() - 1e-12]
    return int(best[np.abs(curve.values[best]).argmin()])


def highest(curve: QualityCurve, name: str) -> int:
    """The place with the most of a figure; of several, the one that reads least."""
    means = curve.means[name]
    return int(np.flatnonzero(means >= means.max() - 1e-12)[-1])


# ---------------------------------------------------------------------------- a page


def curve_page(
    curves: Sequence[QualityCurve], models: int, x: str, y: str, points: int, note: str = ""
) -> str:
    """Areas side by side, and each curve at ``points`` places of x, as Markdown.

    Args:
      models: how many of the curves, the first ones, are policies'; each other one is compared with
        them over what it has in common with all of them.
    """
    policies = curves[:models]
    rows = []
    for curve in curves:
        between = common_range([*policies, curve], x)
        reached = f"{between[0]:.2f} to {between[1]:.2f}" if between else "nothing in common"
        areas = [
            f"{100 * area(one, x, y, *between):.2f}" if between else ""
            for one in (curve, *policies)
        ]
        rows.append([curve.name, reached, *areas, f"{100 * curve.means[y].max():.1f}"])
    head = ["system", x, "area by width", *(f"of {one.name}" for one in policies), f"best {y}"]
    parts = [
        f"{y} (percent) against {x}, as a bias or a rule's number moves. {note}".rstrip(),
        "",
        markdown(head, rows),
        "",
    ]
    if (whole := common_range(policies, x)) and points > 1:
        places = np.linspace(*whole, points)
        rows = []
        for curve in curves:
            low, high = float(curve.means[x].min()), float(curve.means[x].max())
            at = [
                f"{100 * area(curve, x, y, place, place):.1f}"
                if low - _ROUNDING <= place <= high + _ROUNDING
                else ""
                for place in places
            ]
            rows.append([curve.name, *at])
        parts += [markdown([x, *(f"{place:.2f}" for place in places)], rows), ""]
    return "\n".join(parts)


def curve_to_json(
    curve: QualityCurve, x: str, y: str, policies: Sequence[QualityCurve] = ()
) -> dict[str, object]:
    """A curve for a file: its area, beside that of policies over what they have in common."""
    between = common_range([*policies, curve], x)
    found: dict[str, object] = {
        "system": curve.name,
        "area": area(curve, x, y, *between) if between else None,
        "between": list(between) if between else None,
    }
    if policies:
        found["policies"] = {
            one.name: area(one, x, y, *between) if between else None for one in policies
        }
    return found | {
        "values": curve.values.tolist(),
        **{name: means.tolist() for name, means in curve.means.items()},
    }
