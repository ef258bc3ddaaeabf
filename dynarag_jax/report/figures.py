"""Single figures of a report as SVG files, for a README or a paper."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from dynarag_jax.atomic import atomic_write
from dynarag_jax.files import PathLike
from dynarag_jax.report.page import templates
from dynarag_jax.report.schema import RunReport
from dynarag_jax.report.svg.matrices import heat_map, rank_map, same_shape
from dynarag_jax.report.svg.systems import systems_plot


def figures(report: RunReport) -> dict[str, str]:
    """The figures that a report has, by name: SVG documents that follow light and dark mode.

    ``systems`` is always there; ``k_before``, ``k_after`` and ``ranks`` where needed passages are
    known.
    """
    needed = report.facts.needed_mean_k
    drawn = {"systems": systems_plot(report.systems, report.answer_metric, needed)}
    named = {"k_before": report.k_before, "k_after": report.k_after}
    matrices = {name: matrix for name, matrix in named.items() if matrix and matrix.counts}
    shaped, more = same_shape(list(matrices.values()))
    for (name, matrix), counts in zip(matrices.items(), shaped, strict=True):
        drawn[name] = heat_map(matrix.title, counts, more)
    if report.ranks:
        drawn["ranks"] = rank_map(report.ranks)
    return {name: _document(plot) for name, plot in drawn.items()}


def _document(plot: Markup) -> str:
    opening, rest = (Markup(part) for part in str(plot).split(">", 1))
    return templates().get_template("figure.svg").render(opening=opening, rest=rest)


def write_figures(directory: PathLike, report: RunReport) -> None:
    """Write every figure as ``NAME.svg``, atomically."""
    for name, text in figures(report).items():
        with atomic_write(Path(directory) / f"{name}.svg") as stream:
            stream.write(text)
