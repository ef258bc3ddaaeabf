"""What all plots are made of: texts, axes, and the SVG element around them."""

from __future__ import annotations

from dynarag_jax.report.svg.markup import Markup, element, join
from dynarag_jax.report.svg.scales import Scale, tick_label


def text(x: float, y: float, value: str, class_: str = "tick", anchor: str = "start") -> Markup:
    """An SVG text whose baseline starts, centers or ends at (x, y)."""
    return element("text", value, x=x, y=y, class_=class_, text_anchor=anchor)


def svg(width: float, height: float, label: str, *children: Markup, class_: str = "") -> Markup:
    """The SVG element; ``label`` is what a screen reader says of it."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        class_=f"plot {class_}".strip(),
        role="img",
        aria_label=label,
    )


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
