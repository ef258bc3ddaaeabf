"""HTML and SVG built as a tree of calls, so that text is escaped unless it was built here."""

from __future__ import annotations

import html
import re

# Control characters are not allowed in HTML, and lone surrogates not in UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_VOID = frozenset({"br", "col", "hr", "meta"})


class Markup(str):
    """Text that is markup already; everything else is escaped by ``element``."""

    __slots__ = ()


Child = str | int | float | None


def printable(text: str) -> str:
    """``text`` with control characters and lone surrogates replaced by the replacement mark."""
    return _UNPRINTABLE.sub("\ufffd", text)


def escape(value: Child) -> Markup:
    """``value`` as markup: escaped unless it is Markup; None is nothing."""
    if isinstance(value, Markup):
        return value
    return Markup() if value is None else Markup(html.escape(printable(str(value))))


def join(*children: Child) -> Markup:
    """The children, one after the other."""
    return Markup("".join(escape(child) for child in children))


def _attribute(key: str, value: Child | bool) -> str:
    key = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {key}="{escape(value)}"'


def element(name: str, /, *children: Child, **attributes: Child | bool) -> Markup:
    """One element with its children.

    ``class_`` stands for class and ``stroke_width`` for stroke-width. An attribute that is None or
    False is left out; True gives one without a value; numbers are written with two decimals.
    """
    given = (_attribute(k, v) for k, v in attributes.items() if v is not None and v is not False)
    opening = f"<{name}{''.join(given)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")
