"""Signals noticed at once, also while Python waits for a compiler and runs no handler of its own.

The interpreter's C handler writes each signal's number to a pipe; a thread reads it, says so, and
leaves the process where the main thread stays in the compiler: nothing is lost there, since no step
has been made. Of several processes all leave when one is told to, since none can go on alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from dynarag_jax import processes
from dynarag_jax.launch import leaving
from dynarag_jax.launch.progress import say

LEAVE_AFTER = 20.0
"""seconds that the compiler is given to finish after a signal; SLURM kills after 30 or more"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GRACE = 5.0
"""seconds in which a process of several may end by itself, before it is left in the middle of
work with the others, which answer no more"""
AGAIN = "run the same command again to continue"
SETTLE = 5.0
"""seconds in which all of several processes may find the same mistake, each by itself"""


class SignalWatch:
    """Acknowledges Ctrl-C and SIGTERM from a thread.

    Attributes:
      meaning: what is said of a signal; a training loop puts "stopping after this step" here.
      leaving: called before the process is left from the thread.
    """

    def __init__(self, busy: Callable[[], str], leave_after: float = LEAVE_AFTER):
        """Args:
        busy: what the main thread compiles, or empty.
        """
        self.meaning = "stopping"
        self.leaving: Callable[[], None] = lambda: None
        self._busy, self._leave_after = busy, leave_after
        self._closed = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[SignalWatch]:
        """Watch while entered; for the main thread only."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(ours,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closed = True
            signal.set_wakeup_fd(before)
            theirs.close()
            thread.join(timeout=1)

    def _read(self, ours: socket.socket) -> None:
        with ours:
            while numbers := ours.recv(64):
                kinds = [signal.Signals(n) for n in numbers if n in CODES]
                if kinds and not self._closed:
                    busy = self._busy()
                    say(f"{self.meaning} (compiling {busy})" if busy else f"{self.meaning} ...")
                    if processes.count() > 1 and signal.SIGTERM in kinds:
                        if not _told.is_set():
                            _told.set()
                            leaving.tell_stop()
                            threading.Thread(target=self._leave_others, daemon=True).start()
                    elif busy:
                        threading.Thread(
                            target=self._leave, args=(kinds[0], busy), daemon=True
                        ).start()

    def _leave(self, kind: signal.Signals, busy: str) -> None:
        """End the process where it still compiles the same after a while."""
        end = time.monotonic() + self._leave_after
        while time.monotonic() < end:
            time.sleep(0.1)
            if self._closed or self._busy() != busy:
                return
        with contextlib.suppress(Exception):
            self.leaving()
        say(f"stopped while compiling {busy}; {AGAIN}")
        os._exit(CODES[kind])

    def _leave_others(self) -> None:
        """End the process where its main thread stays in work with processes that have left."""
        time.sleep(GRACE)
        with contextlib.suppress(Exception):
            self.leaving()
        why = leaving.failure_of_others()
        say(f"error: stopped, since {why}" if why else f"stopped; {AGAIN}")
        leave_others(2 if why else CODES[signal.SIGTERM])


_current: SignalWatch | None = None


@contextlib.contextmanager
def acknowledging(busy: Callable[[], str]) -> Iterator[None]:
    """Acknowledge signals while entered, in the main thread; elsewhere do nothing."""
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _current
    with SignalWatch(busy).watching() as _current:
        try:
            yield
        finally:
            _current = before


@contextlib.contextmanager
def meaning(text: str) -> Iterator[None]:
    """What is said of a signal while entered."""
    watch, before = _current, _current.meaning if _current else ""
    if watch:
        watch.meaning = text
    try:
        yield
    finally:
        if watch:
            watch.meaning = before


_told = threading.Event()
"""set once this process of several has been told to stop"""


def watch_others() -> None:
    """Of several processes: pass on to this one what another was told."""
    closed = threading.Event()

    def wait() -> None:
        if leaving.await_stop(closed) and not _told.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def close() -> None:
        closed.set()
        thread.join(timeout=2)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    atexit.register(close)


def leave_others(code: int) -> None:
    """Of several processes: leave at once, without the meeting of all at the end."""
    if processes.count() > 1:
        _told.set()
        leaving.tell_stop()
        leaving.meet_before_leaving(3 * GRACE)
        os._exit(code)


def fail_together(code: int, why: str) -> None:
    """Of several processes: leave with the others, which would wait for this one.

    Where all of them fail, each by itself, they end by themselves.

    Args:
      why: what the others say.
    """
    if processes.count() > 1:
        _told.set()
        if not leaving.tell_failure(why, SETTLE):
            leave_others(code)


def on_leaving(work: Callable[[], None]) -> None:
    """What is done before a process is left while it compiles."""
    if _current:
        _current.leaving = work
