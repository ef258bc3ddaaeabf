"""Where to write the names of points so that they cover neither each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downward."""

    left: float
    top: float
    right: float
    bottom: float

    def shared_area(self, other: Box) -> float:
        """The area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that lies nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def grown(self, by: float) -> Box:
        """The box with a margin on every side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)


_RADII = (9, 15, 22, 30, 39, 49, 60, 72, 85, 100, 120, 145)
_ANGLES = [i * math.pi / 8 for i in range(16)]
_PREFERRED = (0.0, math.pi / 2, -math.pi / 2)


def _candidates(x: float, y: float, width: float, height: float) -> list[tuple[float, Box]]:
    """Boxes around (x, y) with what each costs for being far away or at an odd angle."""
    boxes = []
    for radius in _RADII:
        for angle in _ANGLES:
            dx, dy = math.cos(angle), math.sin(angle)
            # The box's side or corner that faces the point lies at the radius.
            left = x + radius * dx - width * (1 - dx) / 2
            top = y + radius * dy - height * (1 - dy) / 2
            odd = 0.0 if any(abs(angle - p) < 0.1 for p in _PREFERRED) else 2.0
            boxes.append((radius + odd, Box(left, top, left + width, top + height)))
    return boxes


def _meets(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether the line from ``start`` to ``end`` runs through the inside of ``box``.

    The line is cut at the four sides in turn (Liang and Barsky 1984).
    """
    (x, y), dx, dy = start, end[0] - start[0], end[1] - start[1]
    first, last = 0.0, 1.0
    for step, room in ((-dx, x - box.left), (dx, box.right - x),
                       (-dy, y - box.top), (dy, box.bottom - y)):  # fmt: skip
        if step == 0:
            if room <= 0:
                return False
        elif step < 0:
            first = max(first, room / step)
        else:
            last = min(last, room / step)
    return first < last


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    avoid: Sequence[Box] = (),
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
    marks: float = 6.0,
) -> list[Box]:
    """A box for the label of each point.

    Labels never leave the frame as long as they fit in it, and cover another label or a point only
    where no free place is left.

    Args:
      points: pixel positions.
      sizes: width and height of each label.
      frame: where labels may stand.
      avoid: boxes that labels should rather not cover (error bars, other text).
      lines: start and end of lines that labels should rather not cover.
      marks: half the side of a point's mark.
    """
    taken = [Box(x - marks, y - marks, x + marks, y + marks) for x, y in points]
    placed: list[Box | None] = [None] * len(points)

    def cost(index: int, distance: float, box: Box) -> float:
        x, y = points[index]
        total = distance
        outside = (box.right - box.left) * (box.bottom - box.top) - frame.shared_area(box)
        total += 1000 * (outside > 0.01) + 10 * outside
        total += sum(50 + 5 * a for b in taken if (a := b.shared_area(box)) > 0)
        total += sum(4 + 0.3 * a for b in avoid if (a := b.shared_area(box)) > 0)
        total += sum(14 for start, stop in lines if _meets(start, stop, box))
        end = box.nearest(x, y)
        # A label that stands nearer to another point reads as that point's.
        own = math.dist((x, y), end)
        total += sum(
            40 for i, p in enumerate(points) if i != index and math.dist(p, box.nearest(*p)) < own
        )
        for other, label in enumerate(placed):
            if other == index or label is None:
                continue
            if area := label.grown(1.0).shared_area(box):
                total += 300 + 20 * area
            if _meets((x, y), end, label):
                total += 120
            if _meets(points[other], label.nearest(*points[other]), box):
                total += 120
        return total

    def best(index: int) -> Box:
        # The candidates come by rising distance, which is the least that a place can cost.
        options = sorted(_candidates(*points[index], *sizes[index]), key=lambda option: option[0])
        chosen, least = options[0][1], math.inf
        for distance, box in options:
            if distance >= least:
                break
            if (price := cost(index, distance, box)) < least:
                chosen, least = box, price
        return chosen

    # The crowded ones choose first; then all may move again until nobody wants to.
    def crowd(i: int) -> float:
        x, y = points[i]
        return sum(math.exp(-math.hypot(x - a, y - b) / 40) for a, b in points)

    order = sorted(range(len(points)), key=lambda i: (-crowd(i), i))
    for _ in range(4):
        before = list(placed)
        for i in order:
            placed[i] = best(i)
        if placed == before:
            break
    return [box for box in placed if box is not None]
