"""The input of the coming steps, made ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


def prefetch(
    make: Callable[[int], Any], first: int, last: int, depth: int = 2
) -> Iterator[tuple[int, Any]]:
    """Yield ``(step, make(step))`` for steps first..last-1, made ahead by one thread.

    An exception in ``make`` is raised here, at its step; it never looks like the end of the data.
    """
    ready: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: tuple[int, Any, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        step = first
        try:
            for step in range(first, last):
                if stop.is_set():
                    return
                put((step, make(step), None))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put((step, None, error))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        for _ in range(first, last):
            step, item, error = ready.get()
            if error is not None:
                raise error
            yield step, item
    finally:
        stop.set()
        thread.join()
