"""The systems as points: answer score against mean k, with intervals and names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dynarag_jax.report.numbers import ends, passages, percent
from dynarag_jax.report.schema import Role, SystemRow
from dynarag_jax.report.svg.drawing import axes, svg, text
from dynarag_jax.report.svg.labels import Box, place_labels
from dynarag_jax.report.svg.markup import Markup, element, join
from dynarag_jax.report.svg.scales import Scale, linear, shorten, text_width

_SIZE = 11.5


def mark(role: Role, x: float, y: float) -> Markup:
    """The mark of a role at (x, y): its shape tells as much as its color."""
    match role:
        case "feedback":
            return element("circle", cx=x, cy=y, r=5.5, class_=f"mark {role}")
        case "cloning":
            return element("circle", cx=x, cy=y, r=5, class_=f"mark open {role}")
        case "shuffled":
            return element("circle", cx=x, cy=y, r=4, class_=f"mark open {role}")
        case "fixed":
            return element("rect", x=x - 4, y=y - 4, width=8, height=8, class_=f"mark {role}")
        case "none":
            d = f"M{x - 5.5:.1f} {y - 4:.1f}h11l-5.5 9z"
        case "oracle":
            d = f"M{x:.1f} {y - 6.5:.1f}l6 6.5l-6 6.5l-6 -6.5z"
        case "other":
            d = f"M{x - 5.5:.1f} {y + 4:.1f}h11l-5.5 -9z"
    return element("path", d=d, class_=f"mark {role}")


def _chain(rows: Sequence[SystemRow], x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x(r.mean_k.mean), y(100 * r.answer.mean)) for r in rows]


def _polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return element("polyline", points=path, class_=f"chain {class_}")


def systems_plot(
    systems: Sequence[SystemRow],
    metric: str,
    needed: float | None,
    width: float = 860,
    height: float = 400,
    class_: str = "",
) -> Markup:
    """Answer score (percent) against mean k, one mark a system, bars for the 95 % intervals.

    Fixed top-k systems are joined by a line in the order of k, behavior cloning and the rounds of
    feedback by another; a dotted line stands at the mean k that is ``needed``.
    """
    left, right, top, bottom = 44.0, width - 16, 44.0, 44.0 + height
    title = text(0, 14, f"{metric} against passages read", "title")
    if not systems:
        return svg(width, 60, "no systems", title, text(0, 40, "no systems evaluated"))
    ks = [v for s in systems for v in (s.mean_k.low, s.mean_k.high)]
    high_k = max([*ks, needed or 0.0, 1.0])
    scores = [100 * v for s in systems for v in (s.answer.low, s.answer.high)]
    margin = max(0.04 * (max(scores) - min(scores)), 0.5)
    low, high = max(min(scores) - margin, 0.0), min(max(scores) + margin, 100.0)
    x = linear(-0.04 * high_k, 1.04 * high_k, left, right, 8 if width > 500 else 5, tight=True)
    y = linear(low, high, bottom, top + 10)
    parts = [title, axes(x, y, "mean k (passages read per question)", f"{metric} (%)", 34)]
    avoid: list[Box] = []
    if needed is not None:
        at = x(needed)
        said = f"needed {passages(needed)}"
        parts.append(element("line", x1=at, x2=at, y1=top, y2=bottom, class_="needed"))
        parts.append(text(at + 5, bottom - 6, said, "legend"))
        avoid.append(Box(at - 1, top, at + 1, bottom))
        avoid.append(Box(at + 3, bottom - 18, at + 7 + text_width(said, _SIZE), bottom))

    learned = [s for s in systems if s.role in ("cloning", "feedback")]
    fixed = sorted((s for s in systems if s.role == "fixed"), key=lambda s: s.mean_k.mean)
    chains = {"fixed": _chain(fixed, x, y), "feedback": _chain(learned, x, y)}
    parts += [_polyline(chain, name) for name, chain in chains.items() if len(chain) > 1]
    lines = [pair for chain in chains.values() for pair in itertools.pairwise(chain)]

    places, sizes, names = [], [], []
    for s in systems:
        px, py = x(s.mean_k.mean), y(100 * s.answer.mean)
        y1, y2 = y(100 * s.answer.high), y(100 * s.answer.low)
        x1, x2 = x(s.mean_k.low), x(s.mean_k.high)
        parts.append(element("line", x1=px, x2=px, y1=y1, y2=y2, class_=f"bar {s.role}"))
        parts.append(element("line", x1=x1, x2=x2, y1=py, y2=py, class_=f"bar {s.role}"))
        avoid += [Box(px - 1.5, y1, px + 1.5, y2), Box(x1, py - 1.5, x2, py + 1.5)]
        places.append((px, py))
        names.append(shorten(s.name, 32 if width > 500 else 22))
        bold = s.role in ("cloning", "feedback")
        sizes.append((text_width(names[-1], _SIZE, bold) + 4, _SIZE + 4))
    boxes = place_labels(places, sizes, Box(left, top - 6, width, bottom - 2), avoid, lines)
    for s, (px, py), name, box in zip(systems, places, names, boxes, strict=True):
        near_x, near_y = box.nearest(px, py)
        if abs(near_x - px) + abs(near_y - py) > 14:
            parts.append(element("line", x1=px, y1=py, x2=near_x, y2=near_y, class_="leader"))
        said = (
            f"{s.name}: {metric} {percent(s.answer.mean)} % ({ends(s.answer, percent)}), "
            f"k {passages(s.mean_k.mean)} ({ends(s.mean_k, passages)})"
        )
        parts.append(element("g", element("title", said), mark(s.role, px, py)))
        weight = "name strong" if s.role in ("cloning", "feedback") else "name"
        parts.append(text(box.left + 2, box.bottom - 4, name, weight))
    label = f"{metric} against mean k for {len(systems)} systems"
    return svg(width, bottom + 38, label, join(*parts), class_=class_)
