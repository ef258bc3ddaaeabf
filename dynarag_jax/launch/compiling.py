"""What XLA is compiling, said where it takes long enough for a person to wonder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import jax.monitoring

from dynarag_jax.launch.progress import clock, say

EVENT = "/jax/core/compile/backend_compile_duration"
"""JAX's own event: as a scalar where a compilation begins, as a duration where it has ended."""
PATIENCE = 5.0
"""seconds of compiling from which on it is said"""
AGAIN = 60.0
"""seconds until it is said again"""


class CompileWatch:
    """Knows what is being compiled, and says so after ``PATIENCE`` seconds.

    Attributes:
      name: of the function that is compiled now, or empty.
    """

    def __init__(self, tell: Callable[[str], None] = say, patience: float = PATIENCE):
        self.name = ""
        self._tell, self._patience = tell, patience
        self._began = self._told = 0.0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Listen to JAX, from now until the process ends."""
        jax.monitoring.register_scalar_listener(self._begin)
        jax.monitoring.register_event_duration_secs_listener(self._end)
        threading.Thread(target=self._watch, name="compile watch", daemon=True).start()

    def _begin(self, event: str, value: float | int, **about: str | int) -> None:
        if event == EVENT:
            with self._changed:
                self.name = str(about.get("fun_name", "a program")).removeprefix("jit(").rstrip(")")
                self._began, self._told = time.monotonic(), 0.0
                self._changed.notify()

    def _end(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event == EVENT:
            with self._changed:
                name, told, self.name = self.name, self._told, ""
            if told:
                self._tell(f"compiled {name} in {clock(duration_secs)}")

    def _watch(self) -> None:
        with self._changed:
            while True:
                if not self.name:
                    self._changed.wait()
                    continue
                now = time.monotonic()
                due = self._told + AGAIN if self._told else self._began + self._patience
                if now < due:
                    self._changed.wait(due - now)
                    continue
                still = f", {clock(now - self._began)} so far" if self._told else ""
                self._tell(f"compiling {self.name} ...{still}")
                self._told = now


_watch: CompileWatch | None = None


def watch_compiling() -> CompileWatch:
    """The process's watch, started at the first call."""
    global _watch
    if _watch is None:
        _watch = CompileWatch()
        _watch.start()
    return _watch


def compiling() -> str:
    """What is being compiled now, or empty."""
    return _watch.name if _watch else ""
