"""Markers of a configuration's fields that say how the command line spells them."""

from __future__ import annotations

from tyro.conf import Positional, arg

__all__ = ["Positional", "arg"]
