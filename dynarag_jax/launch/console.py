"""What a program says: lines and progress on the terminal, results on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dynarag_jax.launch.progress import Progress, say


class Console:
    """The voice of one program.

    Attributes:
      name: stands at the head of what it says.
      primary: whether this process speaks; of several, one does.
    """

    def __init__(self, name: str, primary: bool = True):
        self.name = name
        self._primary = primary

    @property
    def primary(self) -> bool:
        return self._primary

    def log(self, text: str) -> None:
        """Say something on the terminal."""
        if self.primary:
            for line in text.splitlines() or [""]:
                say(f"[{self.name}] {line}")

    def print(self, text: str) -> None:
        """Write a result to standard output, where other programs may read it."""
        if self.primary:
            print(text, end="" if text.endswith("\n") else "\n", flush=True)

    def progress(self, total: int | None = None, description: str = "") -> Progress:
        """A bar with rate and time left, or lines where there is no terminal; a context manager."""
        return Progress(total, description or self.name, shown=self.primary)


def consent(yes: bool) -> Callable[[str], bool]:
    """Who answers questions: nobody where ``yes`` or without a terminal, else the user."""

    def ask(question: str) -> bool:
        if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask
