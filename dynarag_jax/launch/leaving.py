"""What processes of one run tell each other when one of them leaves: none can go on alone.

It goes through JAX's coordination service, which answers also while devices wait for each other.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time

import jax

from dynarag_jax import processes

_STOP, _FAILED = "dynarag_jax/stops", "dynarag_jax/failed"


def tell_stop() -> None:
    """Tell all processes that this one leaves before its work is done."""
    if processes.count() > 1:
        with contextlib.suppress(RuntimeError):  # the service may have gone before us
            processes.client().key_value_set(
                f"{_STOP}/any", str(processes.index()), allow_overwrite=True
            )


def tell_failure(why: str, seconds: float) -> bool:
    """Tell the others that this one has failed; whether all of them fail within some seconds."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        store = processes.client()
        store.key_value_set(f"{_FAILED}/{processes.index()}", why[:1000], allow_overwrite=True)
        end = time.monotonic() + seconds
        while len(store.key_value_dir_get(f"{_FAILED}/")) < processes.count():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
    return True


def failure_of_others() -> str:
    """What another process has said of its failure, and which; empty where none has."""
    if processes.count() > 1:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            for key, why in sorted(processes.client().key_value_dir_get(f"{_FAILED}/")):
                if (process := key.rpartition("/")[2]) != str(processes.index()):
                    return f"process {process} failed: {why}"
    return ""


def meet_before_leaving(seconds: float) -> None:
    """Process 0 waits for the others' word that they leave: it holds the service that ends them.

    Args:
      seconds: for which it waits at most; one that is killed says nothing.
    """
    if processes.count() == 1:
        return
    with contextlib.suppress(RuntimeError):
        if processes.index():
            processes.client().key_value_set(
                f"{_STOP}/{processes.index()}", "leaves", allow_overwrite=True
            )
            return
        end = time.monotonic() + seconds
        for other in range(1, processes.count()):
            left = max(1, int(1000 * (end - time.monotonic())))
            processes.client().blocking_key_value_get(f"{_STOP}/{other}", left)


def await_stop(closed: threading.Event, seconds: float = math.inf) -> bool:
    """Block until a process says that it leaves; False where ``closed`` is set before.

    It asks now and then: a thread that waits in the service's client is in the way of leaving.

    Args:
      seconds: for which it waits at most.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and not closed.wait(0.5):
        try:
            processes.client().key_value_try_get(f"{_STOP}/any")
        except RuntimeError:  # nobody has said so
            continue
        return True
    return False
