"""How the report writes numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dynarag_jax.metrics.intervals import Interval

Show = Callable[[float], str]


def percent(value: float) -> str:
    """A fraction as percent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def passages(value: float) -> str:
    """A mean number of passages."""
    return f"{value:.2f}"


def whole(value: float) -> str:
    """A mean of large numbers, without decimals."""
    return f"{value:,.0f}"


def tenths(value: float) -> str:
    """A mean of small numbers, with one decimal."""
    return f"{value:,.1f}"


def tokens_format(values: Iterable[Interval | None]) -> Show:
    """How to show a column of token counts: decimals only where all of them are below 100."""
    return whole if max((v.high for v in values if v), default=0.0) >= 99.95 else tenths


def duration(seconds: float) -> str:
    """``4 min 05 s``, ``2 h 03 min``, ``0.8 s``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: int) -> str:
    """Bytes as GB or MB (powers of ten)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def ends(interval: Interval, show: Show) -> str:
    """``low–high`` of an interval, each written by ``show``."""
    return f"{show(interval.low)}–{show(interval.high)}"
