"""Line panels and heat maps as inline SVG. Colors are classes that the style sheet defines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynarag_jax.report.markup import Markup, element, join
from dynarag_jax.report.scales import (
    Scale,
    linear,
    logarithmic,
    shorten,
    text_width,
    tick_label,
)
from dynarag_jax.report.schema import Curve, KMatrix

SERIES_COLORS = 6
_MOST_POINTS = 400
_MOST_COLUMNS = 16


def text(x: float, y: float, value: str, class_: str = "tick", anchor: str = "start") -> Markup:
    """An SVG text whose baseline starts, centers or ends at (x, y)."""
    return element("text", value, x=x, y=y, class_=class_, text_anchor=anchor)


def svg(width: float, height: float, label: str, *children: Markup, class_: str = "") -> Markup:
    """The SVG element; ``label`` is what a screen reader says of it."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
    rest = element("svg", *children, class_=f"plot {class_}".strip(), role="img", aria_label=label)
    return Markup(head + rest[len("<svg ") :])


def axes(x: Scale, y: Scale, x_label: str, y_label: str, top: float) -> Markup:
    """Grid, tick labels and axis labels; the y axis is named above its upper end."""
    bottom, left, right = y.start, x.start, x.end
    parts = []
    for tick in y.ticks:
        at = y(tick)
        parts.append(element("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(text(left - 6, at + 3.5, tick_label(tick), anchor="end"))
    for tick in x.ticks:
        at = x(tick)
        parts.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(text(at, bottom + 16, tick_label(tick), anchor="middle"))
    parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(text(right, bottom + 32, x_label, "label", "end"))
    parts.append(text(0, top, y_label, "label"))
    return join(*parts)


# ---------------------------------------------------------------------------- lines


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


# ---------------------------------------------------------------------------- matrices


def same_shape(matrices: Sequence[KMatrix]) -> tuple[list[list[list[int]]], bool]:
    """The counts of all matrices on the same rows and columns, to be compared by eye.

    Columns nobody chose at the far end are dropped; beyond sixteen the last column holds the rest,
    and the second result is True.
    """
    rows = max((len(m.counts) for m in matrices), default=0)
    columns = rows  # at least the diagonal
    for matrix in matrices:
        for row in matrix.counts:
            columns = max([columns, *(i + 1 for i, count in enumerate(row) if count)])
    width = min(columns, _MOST_COLUMNS)
    made = []
    for matrix in matrices:
        full = [[0] * width for _ in range(rows)]
        for i, row in enumerate(matrix.counts):
            for j, count in enumerate(row):
                full[i][min(j, width - 1)] += int(count)
        made.append(full)
    return made, columns > width


def heat_map(title: str, counts: Sequence[Sequence[int]], more: bool = False) -> Markup:
    """Questions by needed k (rows) and chosen k (columns), shaded by their share of the row.

    Args:
      title: above the map.
      counts: ``counts[needed][chosen]``.
      more: the last column holds that k and all larger ones.
    """
    width, left, top, high = 400.0, 34.0, 50.0, 34.0
    rows, columns = len(counts), len(counts[0]) if counts else 0
    wide = min(52.0, (width - left - 70) / max(columns, 1))
    parts = [
        text(0, 14, shorten(title, 52), "title"),
        text(0, 36, "needed k", "label"),
        text(left + columns * wide + 8, 36, "questions", "label"),
    ]
    digits = 11.5 if wide >= 30 else 8.5
    for i, row in enumerate(counts):
        total, y = sum(row), top + i * high
        parts.append(text(left - 10, y + high / 2 + 4, str(i), "tick", "end"))
        parts.append(text(left + columns * wide + 8, y + high / 2 + 4, f"{total:,}", "tick"))
        for j, count in enumerate(row):
            share, x = count / total if total else 0.0, left + j * wide
            many = more and j == columns - 1
            said = f"needed {i}, chosen {j}{' or more' if many else ''}: {count} of {total}"
            parts.append(
                element("rect", element("title", said), x=x + 1, y=y + 1, width=wide - 2,
                        height=high - 2, rx=2, class_="cell", fill_opacity=round(share, 3))
            )  # fmt: skip
            ink = "dark" if share > 0.55 else "pale" if count == 0 else ""
            parts.append(
                element("text", f"{count}", x=x + wide / 2, y=y + high / 2 + 4,
                        text_anchor="middle", class_=f"count {ink}".strip(),
                        font_size=min(digits, wide / (0.62 * max(len(str(count)), 2))))
            )  # fmt: skip
    for i in range(min(rows, columns)):  # on top of the cells: where chosen equals needed
        parts.append(
            element("rect", x=left + i * wide + 1, y=top + i * high + 1, width=wide - 2,
                    height=high - 2, rx=2, class_="match")
        )  # fmt: skip
    bottom = top + rows * high
    for j in range(columns):
        name = f"{j}+" if more and j == columns - 1 else str(j)
        parts.append(text(left + (j + 0.5) * wide, bottom + 16, name, "tick", "middle"))
    parts.append(text(left + columns * wide, bottom + 32, "chosen k (passages)", "label", "end"))
    right = sum(counts[i][i] for i in range(min(rows, columns)))
    total = sum(sum(row) for row in counts)
    label = f"{title}: {right} of {total} questions with as many passages as needed"
    return svg(width, bottom + 38, label, *parts)
