"""The page ``report.html``: one file, without scripts, that opens offline."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dynarag_jax.atomic import atomic_write
from dynarag_jax.files import PathLike
from dynarag_jax.prompts import format_list
from dynarag_jax.report import numbers
from dynarag_jax.report.schema import (
    Role,
    RunReport,
    SampledList,
    ShownPassage,
    ShownQuestion,
    SystemRow,
)
from dynarag_jax.report.svg.drawing import svg
from dynarag_jax.report.svg.lines import line_panel
from dynarag_jax.report.svg.markup import printable
from dynarag_jax.report.svg.matrices import heat_map, rank_map, same_shape
from dynarag_jax.report.svg.systems import mark, systems_plot

_UNFOLDED = 1500
"""Characters of passages neither needed nor chosen that are shown without a click."""


def _written(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _swatch(role: Role) -> Markup:
    return svg(15, 15, role, mark(role, 7.5, 7.5))


@functools.cache
def templates() -> Environment:
    """The page's templates; every text is escaped, and without characters that HTML forbids."""
    environment = Environment(
        loader=PackageLoader("dynarag_jax.report"),
        autoescape=True,
        finalize=_written,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": numbers.percent,
        "passages": numbers.passages,
        "duration": numbers.duration,
        "memory": numbers.memory,
        "ends": numbers.ends,
        "counted": _counted,
    }
    environment.globals |= {
        "percent": numbers.percent,
        "passages": numbers.passages,
        "tenths": numbers.tenths,
        "swatch": _swatch,
        "format_list": lambda ids: format_list(tuple(ids)),
        "tokens_format": lambda rows: numbers.tokens_format(row.tokens for row in rows if row),
    }
    return environment


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor and template, and its heading."""

    key: str
    title: str


@dataclass(frozen=True)
class _Card:
    """A question in full.

    Attributes:
      ranks: passage number -> its place in the last policy's list.
      opened, folded: passages shown at once and behind a click; none is folded where few are aside.
      sampled: lists, the best reward first.
    """

    example: ShownQuestion
    ranks: dict[int, int]
    opened: list[ShownPassage]
    folded: list[ShownPassage]
    sampled: list[SampledList]


def _card(example: ShownQuestion) -> _Card:
    final = example.choices[-1].list if example.choices else ()
    ranks = {number: rank for rank, number in enumerate(final, 1)}
    aside = [p for p in example.passages if not p.needed and p.number not in ranks]
    opened = [p for p in example.passages if p.needed or p.number in ranks]
    fold = sum(len(p.text) for p in aside) > _UNFOLDED
    best_first = sorted(example.sampled, key=lambda s: (-s.reward, -s.count))
    return _Card(example, ranks, opened, aside if fold else [], best_first)


def _sections(report: RunReport) -> list[Section]:
    count = len(report.examples)
    named = {1: "One question", 10: "Ten questions"}.get(count, f"{count} questions")
    sections = [
        (True, "guide", "How to read this page"),
        (True, "systems", "Answers against passages read"),
        (_matrices(report), "k", "How many passages: chosen against needed"),
        (report.ranks, "ranks", "Where the search puts the needed passages"),
        (report.types, "types", "By type of question"),
        (report.curves, "curves", "Training"),
        (count, "examples", f"{named} in full"),
        (True, "run", "The run"),
    ]
    return [Section(key, title) for there, key, title in sections if there]


def _matrices(report: RunReport) -> list[Any]:
    return [m for m in (report.k_before, report.k_after) if m and m.counts]


def render(report: RunReport) -> str:
    """The page as one HTML document."""
    matrices = _matrices(report)
    shaped, more = same_shape(matrices)

    def plot_systems(class_: str, width: float = 860, height: float = 400) -> Markup:
        rows: tuple[SystemRow, ...] = tuple(report.systems)
        needed = report.facts.needed_mean_k
        return systems_plot(rows, report.answer_metric, needed, width, height, class_)

    return (
        templates()
        .get_template("report.html")
        .render(
            report=report,
            facts=report.facts,
            sections=_sections(report),
            plot_systems=plot_systems,
            k_maps=[
                heat_map(m.title, counts, more) for m, counts in zip(matrices, shaped, strict=True)
            ],
            rank_map=rank_map(report.ranks) if report.ranks else "",
            panels=[line_panel(curve) for curve in report.curves],
            smoothed=any(len(curve.steps) > 150 for curve in report.curves),
            cards=[_card(example) for example in report.examples],
        )
    )


def write_report(path: PathLike, report: RunReport) -> None:
    """Write the page, atomically."""
    page = render(report)
    with atomic_write(path) as stream:
        stream.write(page)
