"""A request to stop is heeded wherever in the work it comes."""

from __future__ import annotations

import signal

import pytest

from dynarag_jax.launch.stopping import Stopping, Terminated


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name)
def told(request):
    """A signal that may come, and how often what was there before has been told of it."""
    heard = []
    before = signal.signal(request.param, lambda kind, _: heard.append(kind))
    yield request.param, heard
    signal.signal(request.param, before)


def test_a_signal_asks_to_stop_after_the_step(told):
    kind, heard = told
    steps = []

    def work():
        with Stopping() as stopping:
            while not stopping(len(steps)):
                steps.append(1)
                if len(steps) == 2:
                    signal.raise_signal(kind)
            stopping.interrupt()

    with pytest.raises((Terminated, KeyboardInterrupt)):
        work()
    assert (len(steps), heard) == (2, [])


def test_a_signal_at_the_last_step_is_passed_on(told):
    kind, heard = told
    with Stopping() as stopping:
        assert not stopping(1)
        signal.raise_signal(kind)  # nobody asks again
        assert heard == []
    assert heard == [kind]


def test_without_a_signal_nothing_is_passed_on(told):
    with Stopping() as stopping:
        assert not stopping(1)
    assert told[1] == []
