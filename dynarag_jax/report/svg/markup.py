"""SVG built as a tree of calls, so that text is escaped unless it was built here."""

from __future__ import annotations

import re

from markupsafe import Markup
from markupsafe import escape as _escape

# Control characters are not allowed in HTML, and lone surrogates not in UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)

Child = str | int | float | None


def printable(text: str) -> str:
    """``text`` with control characters and lone surrogates replaced by the replacement mark."""
    return _UNPRINTABLE.sub("\ufffd", text)


def escape(value: Child) -> Markup:
    """``value`` as markup: escaped unless it is Markup; None is nothing."""
    if isinstance(value, Markup):
        return value
    return Markup() if value is None else _escape(printable(str(value)))


def join(*children: Child) -> Markup:
    """The children, one after the other."""
    return Markup().join(map(escape, children))


def _attribute(key: str, value: Child) -> str:
    key = key.rstrip("_").replace("_", "-")
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {key}="{escape(value)}"'


def element(name: str, /, *children: Child, **attributes: Child) -> Markup:
    """One element with its children.

    ``class_`` stands for class and ``stroke_width`` for stroke-width. An attribute that is None is
    left out; numbers are written with two decimals.
    """
    given = (_attribute(k, v) for k, v in attributes.items() if v is not None)
    return Markup(f"<{name}{''.join(given)}>{join(*children)}</{name}>")
