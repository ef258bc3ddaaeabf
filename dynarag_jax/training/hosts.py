"""What the processes of a run tell each other outside of the devices."""

from __future__ import annotations

import itertools

import jax

TIMEOUT_MS = 600_000
"""how long a process waits for another's word"""


def wait(name: str) -> None:
    """Until all processes are here; each of them calls this with the same name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


_calls: dict[str, itertools.count] = {}


def gather(key: str, own: bytes) -> list[bytes]:
    """Every process's bytes, by process; all of them call this with the same key.

    It goes by way of the coordination service, not of the devices, so that a thread may call it
    while the main thread trains. A key may be used again: calls are matched in their order.

    Raises:
      RuntimeError: another process says nothing for ten minutes.
    """
    if jax.process_count() == 1:
        return [own]
    # JAX's only door to the service's key-value store, which Orbax goes through, too.
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None
    turn = next(_calls.setdefault(key, itertools.count()))
    here = jax.process_index()

    def where(index: int, turn: int = turn) -> str:
        return f"dynarag_jax/{key}/{turn}/{index}"

    client.key_value_set_bytes(where(here), own)
    found = [
        own if index == here else client.blocking_key_value_get_bytes(where(index), TIMEOUT_MS)
        for index in range(jax.process_count())
    ]
    if turn:
        # Whoever speaks in this turn has read all of the last one: the service need not keep it.
        client.key_value_delete(where(here, turn - 1))
    return found
