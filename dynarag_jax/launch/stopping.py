"""Stopping on request: the step at hand is finished and saved before the program ends."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from types import FrameType

from dynarag_jax import processes
from dynarag_jax.launch import signals


class Terminated(BaseException):
    """SIGTERM, as an exception: what is open gets closed.

    Attributes:
      together: whether all processes of the run stop at the same place.
    """

    def __init__(self, together: bool = False):
        super().__init__()
        self.together = together


class Stopping:
    """While it is entered, the first SIGTERM or Ctrl-C asks to stop; a second one insists.

    Called with the number of steps made, it says whether to stop now. Of several processes, all
    stop after the same step: a notice to any of them reaches the others through JAX's coordination
    service, which takes SIGTERM to itself there.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, object] = {}
        self._inside = ExitStack()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            kinds = [signal.SIGINT]
            if processes.count() == 1:
                kinds.append(signal.SIGTERM)
            else:
                # JAX's service puts a handler of its own there, and none back.
                self._before[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)
            self._before |= {kind: signal.signal(kind, self._note) for kind in kinds}
            self._inside.enter_context(processes.stopping_together())
            self._inside.enter_context(
                signals.meaning("stopping after this step; once more stops at once")
            )
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._inside.close()
        for kind, handler in self._before.items():
            signal.signal(kind, handler)  # type: ignore[arg-type]
        if error is None and self._signal is not None and processes.count() == 1:
            # It came at the last step, behind which nobody asked: what comes next does not begin.
            signal.raise_signal(self._signal)

    def _note(self, kind: int, _: FrameType | None) -> None:
        if self._signal is not None:
            self.interrupt()
        self._signal = kind

    def __call__(self, step: int) -> bool:
        if processes.count() == 1:
            return self._signal is not None
        reached = processes.stop_requested(step)
        if reached:
            self._signal = signal.SIGTERM
        # Ctrl-C in one of several processes cannot be agreed upon: it is left to that process.
        elif self._signal == signal.SIGINT:
            self.interrupt()
        return reached

    def interrupt(self) -> None:
        """Raise what the signal means: KeyboardInterrupt, or Terminated."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(together=True)
