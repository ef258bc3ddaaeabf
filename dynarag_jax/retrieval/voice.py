"""How long work is told of: lines, and progress with a total. Launch's contexts are voices."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Bar(Protocol):
    """Progress of one piece of work."""

    def start_at(self, n: int, total: int | None = None) -> None:
        """Begin behind what stood already."""

    def update(self, n: int = 1, /) -> None:
        """Say that ``n`` more are done."""


class Voice(Protocol):
    """Hears what is done; of several processes one speaks."""

    def log(self, text: str) -> None:
        """Hear a line."""

    def progress(
        self, total: int | None = None, description: str = ""
    ) -> AbstractContextManager[Bar]:
        """A bar for work of ``total`` steps, None where nobody knows."""
        ...
