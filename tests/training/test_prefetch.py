"""Input made ahead by a thread."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from dynarag_jax.training.prefetch import prefetch


def alive():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_prefetch_yields_every_step_in_order():
    assert list(prefetch(lambda step: step * step, 3, 8)) == [(s, s * s) for s in range(3, 8)]
    assert list(prefetch(lambda step: step, 5, 5)) == []
    assert not alive()


def test_prefetch_works_ahead_by_its_depth_and_no_further():
    made = []
    steps: Any = prefetch(lambda step: made.append(step) or step, 0, 100, depth=3)
    next(steps)
    # One was taken, three stand ready, one waits for a place.
    wait_for(lambda: len(made) == 5)
    time.sleep(0.3)
    assert made == [0, 1, 2, 3, 4]
    steps.close()
    assert not alive()


def test_an_exception_comes_at_its_step_and_is_not_the_end_of_the_data():
    def make(step):
        if step == 3:
            raise KeyError("broken record")
        return step

    got = []

    def consume():
        for step, _ in prefetch(make, 0, 10):
            got.append(step)

    with pytest.raises(KeyError, match="broken record"):
        consume()
    assert got == [0, 1, 2]
    assert not alive()


def test_an_exception_of_the_consumer_stops_the_thread():
    def consume():
        for step, _ in prefetch(lambda step: step, 0, 1000):
            if step == 2:
                raise RuntimeError("consumer")

    with pytest.raises(RuntimeError, match="consumer"):
        consume()
    wait_for(lambda: not alive())
