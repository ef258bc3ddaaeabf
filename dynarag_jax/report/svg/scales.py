"""Axes: ticks at round values, linear and logarithmic scales, and how wide text is."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A map from values to pixels, with ticks at round values inside the range."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside the range are held at its ends."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def _step(span: float, count: int) -> float:
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)


def linear(
    low: float,
    high: float,
    start: float,
    end: float,
    count: int = 5,
    tight: bool = False,
    whole: bool = False,
) -> Scale:
    """A linear scale over [low, high], widened to round ends unless ``tight``.

    About ``count`` ticks, at integers only if ``whole``.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = _step(high - low, count)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if not tight:
        low, high = first * step, last * step
    slack = (high - low) * 1e-9
    ticks = [i * step for i in range(first, last + 1) if low - slack <= i * step <= high + slack]
    return Scale(low, high, start, end, ticks)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """A logarithmic scale over [low, high], both positive, with ticks at 1, 2, 5 of each decade."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    ticks = [f * 10.0**d for d in decades for f in factors]
    below = max((t for t in ticks if t <= low * 1.001), default=low)
    above = min((t for t in ticks if t >= high * 0.999), default=high)
    return Scale(below, above, start, end, [t for t in ticks if below <= t <= above], log=True)


# ---------------------------------------------------------------------------- text


def tick_label(value: float) -> str:
    """A tick's value without needless digits."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6g}"


_NARROW, _WIDE = set("iljtfI.,:;'|!()[] "), set("mwMW@%")


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Roughly the pixels that ``text`` takes in a sans-serif face of ``size`` pixels.

    The wider common faces (Verdana, DejaVu Sans) decide, since too much room does no harm.
    """
    width = 0.0
    for c in text:
        if unicodedata.east_asian_width(c) in "WF":
            width += 1.0
        elif c in _NARROW:
            width += 0.36
        elif c in _WIDE:
            width += 0.92
        else:
            width += 0.70 if c.isupper() else 0.615
    return width * size * (1.12 if bold else 1.0)


def shorten(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters, with an ellipsis where it was cut."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
