"""Single figures as SVG files, for a README or a paper."""

from __future__ import annotations

from typing import Literal, get_args

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike, atomic_write
from dynarag_jax.report.plots import heat_map, same_shape
from dynarag_jax.report.points import systems_plot
from dynarag_jax.report.schema import RunReport
from dynarag_jax.report.style import FIGURE

Figure = Literal["systems", "k_before", "k_after"]


def figure(report: RunReport, name: Figure) -> str:
    """One figure of the report as an SVG document that follows the reader's light or dark mode.

    Raises:
      InputError: the report has no such figure.
    """
    if name not in get_args(Figure):
        known = get_args(Figure)
        raise InputError(
            f"report: no figure '{name}'; there are {', '.join(known)}{nearest(name, known)}"
        )
    if name == "systems":
        drawn = systems_plot(report.systems, report.answer_metric, report.facts.needed_mean_k)
    else:
        matrices = [m for m in (report.k_before, report.k_after) if m and m.counts]
        wanted = report.k_before if name == "k_before" else report.k_after
        if wanted is None or not wanted.counts:
            raise InputError(f"report: this run has no figure '{name}'")
        shaped, more = same_shape(matrices)
        drawn = heat_map(wanted.title, shaped[matrices.index(wanted)], more)
    opening, rest = drawn.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{FIGURE}</style>{rest}\n'


def write_figure(path: PathLike, report: RunReport, name: Figure) -> None:
    """Write one figure as an SVG file, atomically; errors as for ``figure``."""
    text = figure(report, name)
    with atomic_write(path) as stream:
        stream.write(text)
