"""Progress on a terminal as a bar, elsewhere as a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


def say(text: str) -> None:
    """Write a line to the terminal without tearing a progress bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """How far a stage is, how fast it goes and how long it will take.

    Attributes:
      total: how many steps there are; None while unknown. It may be set later.
      n: how many are done.
    """

    def __init__(
        self, total: int | None, description: str, *, shown: bool = True, every: float = 10.0
    ):
        """Args:
        total: how many steps there are, if known.
        description: stands at the head of the bar or the line.
        shown: False counts in silence.
        every: seconds between lines where standard error is no terminal.
        """
        self.n = 0
        self._total, self._description, self._every = total, description, every
        self._shown, self._bar = shown, None
        self._first, self._began = 0, time.monotonic()
        self._spoke, self._spoke_at = self._began, -1
        self._figures: Mapping[str, Any] = {}
        self._spoke_of: Mapping[str, Any] = {}
        if shown and _on_terminal():
            self._bar = tqdm(total=total, desc=description, file=sys.stderr, dynamic_ncols=True)

    @property
    def total(self) -> int | None:
        return self._total

    @total.setter
    def total(self, total: int | None) -> None:
        self._total = total
        if self._bar is not None:
            self._bar.total = total
            self._bar.refresh()

    def start_at(self, n: int, total: int | None = None) -> None:
        """Begin at ``n``, done by an earlier run: it counts as done, not towards the speed."""
        self.total = total if total is not None else self._total
        self.n = self._first = n
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.initial = n
            self._bar.reset(self._total)
            self._bar.n = self._bar.last_print_n = n
            self._bar.refresh()

    def update(self, n: int = 1, **figures: Any) -> None:
        """Count ``n`` more steps, and show ``figures`` from now on."""
        self.n += n
        if figures:
            self.set_postfix(figures)
        if self._bar is not None:
            self._bar.update(n)
        elif self._shown and time.monotonic() - self._spoke >= self._every:
            self._speak()

    def set_postfix(self, figures: Mapping[str, Any]) -> None:
        """Show these figures at the end of the bar or the line."""
        self._figures = dict(figures)
        if self._bar is not None:
            self._bar.set_postfix(self._figures, refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands, or write the last line."""
        if self._bar is not None:
            self._bar.close()
        elif (
            self._shown
            and self.n > self._first
            and (self.n != self._spoke_at or self._figures != self._spoke_of)
        ):
            self._speak()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _speak(self) -> None:
        now = time.monotonic()
        rate = (self.n - self._first) / max(now - self._began, 1e-9)
        parts = [f"{self.n}" if self._total is None else f"{self.n}/{self._total}"]
        if self._total:
            parts[0] += f" ({100 * self.n // self._total} %)"
        if rate > 0:
            parts.append(f"{rate:.2f}/s" if rate >= 1 else f"{1 / rate:.2f} s each")
            if self._total and self._total > self.n:
                parts.append(f"{clock((self._total - self.n) / rate)} left")
        parts += [f"{name} {_short(value)}" for name, value in self._figures.items()]
        say(f"[{self._description}] " + ", ".join(parts))
        self._spoke, self._spoke_at, self._spoke_of = now, self.n, self._figures


def _on_terminal() -> bool:
    """Whether standard error is a terminal that knows its width; some have none, or 0 columns."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return False


def clock(seconds: float) -> str:
    """A duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
