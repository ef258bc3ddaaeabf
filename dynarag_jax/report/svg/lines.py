"""Curves over the steps of a stage, one panel a quantity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynarag_jax.report.schema import Curve
from dynarag_jax.report.svg.drawing import axes, svg, text
from dynarag_jax.report.svg.markup import Markup, element, join
from dynarag_jax.report.svg.scales import Scale, linear, logarithmic, shorten, text_width

SERIES_COLORS = 6
_MOST_POINTS = 400


def _clean(values: Sequence[float | None]) -> list[float | None]:
    return [None if v is None or not math.isfinite(v) else float(v) for v in values]


def _smooth(values: Sequence[float | None]) -> list[float | None]:
    """Centered moving average over a thirtieth of the curve, narrower towards its ends."""
    most, smooth = len(values) // 60, []
    for i, value in enumerate(values):
        half = min(most, i, len(values) - 1 - i)
        near = [v for v in values[i - half : i + half + 1] if v is not None]
        smooth.append(None if value is None else sum(near) / len(near))
    return smooth


def _path(xs: Sequence[float], ys: Sequence[float | None], x: Scale, y: Scale) -> str:
    """An SVG path through the points, broken at gaps, thinned to what the eye can tell apart."""
    stride = max(1, len(xs) // _MOST_POINTS)
    kept = sorted({*range(0, len(xs), stride), len(xs) - 1})
    path, pen = [], "M"
    for i in kept:
        value = ys[i]
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{x(xs[i]):.1f} {y(value):.1f}")
        pen = "L"
    return "".join(path)


def _legend(names: Sequence[str], width: float, top: float) -> tuple[Markup, float]:
    """Names with their line's mark, in as many rows as needed; and the height used."""
    parts, at, row = [], 0.0, 0
    for i, name in enumerate(names):
        name = shorten(name, 40)
        wide = 24 + text_width(name, 11.5) + 14
        if at > 0 and at + wide > width:
            at, row = 0.0, row + 1
        baseline = top + 16 * row
        parts.append(
            element("line", x1=at, x2=at + 18, y1=baseline - 4, y2=baseline - 4,
                    class_=f"line s{i % SERIES_COLORS}")
        )  # fmt: skip
        parts.append(text(at + 24, baseline, name, "legend"))
        at += wide
    return join(*parts), 16.0 * (row + 1) + 6 if names else 0.0


def line_panel(curve: Curve, width: float = 340, height: float = 190) -> Markup:
    """One panel of curves; long ones are smoothed, with the raw values faint behind.

    The y axis is logarithmic where all values are positive and span more than a factor of 30.
    """
    steps = [float(s) for s in curve.steps]
    raw = {name: _clean(values) for name, values in curve.series.items()}
    long = len(steps) > 150
    shown = {name: _smooth(values) if long else values for name, values in raw.items()}
    known = [v for values in shown.values() for v in values if v is not None]
    title = text(0, 14, shorten(curve.stage, 48), "title")
    if not steps or not known:
        return svg(width, 60, f"{curve.stage}: no values", title, text(0, 40, "no values recorded"))

    names = list(shown)
    legend, used = _legend(names, width, 34) if len(names) > 1 else (Markup(), 0.0)
    top = 32 + used
    bottom = top + 10 + height
    left, right = 46.0, width - 12
    low, high = min(known), max(known)
    if low > 0 and high / low > 30:
        y, scale_name = logarithmic(low, high, bottom, top + 10), ", log scale"
    else:
        if 0 <= low < 0.5 * high:
            low = 0.0
        y, scale_name = linear(low, high, bottom, top + 10), ""
    integers = all(step == int(step) for step in steps)
    x = linear(min(steps), max(steps), left, right, 4, tight=True, whole=integers)
    y_label = curve.y_label if len(names) != 1 else curve.y_label or names[0]
    parts = [title, legend, axes(x, y, curve.x_label, y_label + scale_name, top)]
    for i, name in enumerate(names):
        color = f"s{i % SERIES_COLORS}"
        if long:
            visible = [None if v is None or (y.log and v <= 0) else v for v in raw[name]]
            parts.append(element("path", d=_path(steps, visible, x, y), class_=f"raw {color}"))
        if sum(v is not None for v in shown[name]) <= 30:
            parts += [
                element("circle", cx=x(s), cy=y(v), r=2.2, class_=f"dot {color}")
                for s, v in zip(steps, shown[name], strict=True)
                if v is not None
            ]
        parts.append(element("path", d=_path(steps, shown[name], x, y), class_=f"line {color}"))
    label = f"{curve.stage}: {curve.y_label} against {curve.x_label}"
    return svg(width, bottom + 38, label, *parts)
