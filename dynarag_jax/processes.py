"""Several processes as one run: who writes, what they agree on, how they share work.

Every function here does the obvious thing in one process, so that callers need not ask. Processes
count as several once they have joined by ``jax.distributed.initialize``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.sharding import batch_shards, named

T = TypeVar("T")

TIMEOUT_MS = 600_000
"""how long a process waits for another's word in ``gather``"""


def count() -> int:
    """How many processes there are. Devices are not started to find that it is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """This process's number, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_primary() -> bool:
    """Whether this process writes what is written once; true of one process."""
    return index() == 0


# ---------------------------------------------------------------------------- agreement


def wait(name: str) -> None:
    """Wait until all processes are here; each of them calls this with the same name."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(value: Any) -> Any:
    """Process 0's value, in every process: a bool, a number, a string, or JSON made of them."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    shared = multihost_utils.broadcast_one_to_all(np.resize(said, size))
    return json.loads(np.asarray(shared).astype(np.uint8).tobytes())


def in_any(value: bool) -> bool:
    """Whether it is so in any process."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(value))))


def raise_together(failure: OSError | InputError | None) -> None:
    """Raise in every process if one of them has failed: its own failure, or that of the first.

    Raises:
      InputError, OSError: what another process says.
    """
    if not in_any(failure is not None):
        return
    if count() == 1:
        assert failure is not None
        raise failure
    from jax.experimental import multihost_utils

    told = json.dumps(_told(failure), ensure_ascii=False).encode("utf-8", "replace")
    line = np.zeros(_LONGEST, np.uint8)
    line[: len(told)] = np.frombuffer(told, np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(line), np.uint8)
    if failure is not None:
        raise failure
    for process, own in enumerate(everyone):
        if said := json.loads(own.tobytes().rstrip(b"\0")):
            where = f"{said['text']} (in process {process})"
            if said["code"] is None:
                raise InputError(where)
            raise OSError(said["code"], where, said["file"])


_LONGEST = 1 << 13
"""bytes of what a process says of its failure"""


def _told(failure: OSError | InputError | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    if isinstance(failure, OSError):
        file = None if failure.filename is None else str(failure.filename)[:300]
        return {"text": (failure.strerror or str(failure))[:1000], "code": failure.errno or 0,
                "file": file}  # fmt: skip
    return {"text": str(failure)[:1000], "code": None, "file": None}


def once(work: Callable[[], T]) -> T | None:
    """Do what there is one of: process 0 does it, and the others wait; None there.

    Raises:
      InputError, OSError: in every process, where it fails.
    """
    result, failure = None, None
    if is_primary():
        try:
            result = work()
        except (InputError, OSError) as error:
            failure = error
    raise_together(failure)
    return result


def stop_requested(step: int) -> bool:
    """Whether all processes stop after this step, since one of them was sent SIGTERM.

    While ``stopping_together`` is entered, JAX's coordination service takes the signal to itself
    and agrees on the step.
    """
    if count() == 1:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def stopping_together() -> Iterator[None]:
    """While entered, SIGTERM goes to JAX's coordination service: see ``stop_requested``.

    Everywhere else the signal stays Python's, so that work without steps to agree on can be ended.
    """
    if count() == 1:
        yield
        return
    from jax._src import distributed

    state = distributed.global_state
    jax.config.update("jax_enable_preemption_service", True)
    try:
        state.initialize_preemption_sync_manager()
        yield
    finally:
        if state.preemption_sync_manager is not None:
            state.preemption_sync_manager.shutdown()
            state.preemption_sync_manager = None
        jax.config.update("jax_enable_preemption_service", False)


def client() -> Any:
    """The client of JAX's coordination service, whose key-value store all processes share."""
    # JAX's only door to it, which Orbax goes through, too.
    from jax._src import distributed

    found = distributed.global_state.client
    assert found is not None
    return found


_calls: dict[str, itertools.count] = {}


_TEAM = "dynarag_jax/team"
_turns = itertools.count(1)
_SAID = 1 << 20
"""bytes that are told at a time"""


def _say(key: str, value: bytes) -> None:
    parts = [value[i : i + _SAID] for i in range(0, len(value), _SAID)] or [b""]
    for number, one in enumerate(parts):
        client().key_value_set_bytes(f"{key}/{number}", one)
    client().key_value_set_bytes(f"{key}/parts", str(len(parts)).encode())


def _heard(key: str) -> bytes:
    """What another process says under a key, however long that takes; signals are heard, too."""

    def one(name: str) -> bytes:
        while True:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                return client().blocking_key_value_get_bytes(f"{key}/{name}", 1000)

    return b"".join(one(str(number)) for number in range(int(one("parts"))))


def gather(key: str, own: bytes) -> list[bytes]:
    """Every process's bytes, by process; all of them call this with the same key.

    It goes by way of the coordination service, not of the devices, so that a thread may call it
    while the main thread trains. A key may be used again: calls are matched in their order.

    Raises:
      RuntimeError: another process says nothing for ten minutes.
    """
    if count() == 1:
        return [own]
    store = client()
    turn = next(_calls.setdefault(key, itertools.count()))
    here = index()

    def name(process: int, turn: int = turn) -> str:
        return f"dynarag_jax/{key}/{turn}/{process}"

    store.key_value_set_bytes(name(here), own)
    everyone = [
        own if i == here else store.blocking_key_value_get_bytes(name(i), TIMEOUT_MS)
        for i in range(count())
    ]
    if turn:
        # Whoever speaks in this turn has read all of the last one: the service need not keep it.
        store.key_value_delete(name(here, turn - 1))
    return everyone


class ProcessTeam:
    """The team of this process: the processes of a mesh that hold the same batch rows.

    A team works on one share of the questions; its first process, the leader, writes.

    Attributes:
      several: whether there is more than one process.
      processes: how many processes there are.
      count: how many teams there are.
      index: this process's, from 0.
      leader: whether this process writes for its team.
      shares: whether some team has several processes.

    Args:
      mesh: None where each process works by itself, on its own devices.

    Raises:
      InputError: two processes hold some rows in common, but not all.
    """

    def __init__(self, mesh: Mesh | None):
        self.processes = count()
        self.several = self.processes > 1
        self.count, self.index, self.leader = 1, 0, True
        if self.several and mesh is None:
            self.count, self.index = self.processes, index()
        elif self.several and mesh is not None:
            held = _rows_of_processes(mesh)
            shares = sorted(set(held.values()), key=min)
            if sum(map(len, shares)) != len(set().union(*shares)):
                raise InputError(
                    "the mesh gives some processes a part of another's batch rows; choose sizes "
                    "so that a process holds whole rows, or shares all of them"
                )
            mine = held[index()]
            self.count, self.index = len(shares), shares.index(mine)
            self.leader = index() == min(p for p, rows in held.items() if rows == mine)
        self.shares = self.count < self.processes

    def mine(self, some: Sequence[T]) -> Sequence[T]:
        """This team's share of what all teams work on."""
        return some[self.index :: self.count]

    def groups(self, some: Sequence[T], size: int) -> Iterator[tuple[Sequence[T], Sequence[T]]]:
        """So many at a time, of all teams, and of these this team's: equally often in all."""
        for first in range(0, len(some), size):
            group = some[first : first + size]
            yield group, self.mine(group)

    def told(self, work: Callable[[], Any]) -> Any:
        """What the leader's work gives, JSON, in every process of the team; it works alone.

        Raises:
          InputError: in every process of the team, where it fails so.
        """
        if not self.shares:
            return work()
        turn = next(_turns)
        if not self.leader:
            said = json.loads(_heard(f"{_TEAM}/{self.index}/{turn}"))
            if "failed" in said:
                raise InputError(said["failed"])
            return said["value"]
        try:
            value = work()
        except InputError as error:
            self._tell(turn, {"failed": str(error)})
            raise
        self._tell(turn, {"value": value})
        return value

    def _tell(self, turn: int, value: Any) -> None:
        _say(f"{_TEAM}/{self.index}/{turn}", json.dumps(value).encode())
        # Work in common lies between turns, so that what is older has been heard.
        client().key_value_delete(f"{_TEAM}/{self.index}/{turn - 8}/")

    def _gather(self, values: Sequence[int]) -> np.ndarray:
        """[processes, values]."""
        from jax.experimental import multihost_utils

        # In halves of 30 bits: JAX would cut 64-bit integers silently.
        wide = np.asarray(values, np.int64)
        halves = np.stack([wide >> 30, wide & (2**30 - 1)]).astype(np.int32)
        gathered = np.asarray(multihost_utils.process_allgather(halves), np.int64)
        return (gathered[:, 0] << 30) + gathered[:, 1]

    def sum(self, values: Sequence[int]) -> list[int]:
        """The sums over teams."""
        if not self.several:
            return list(values)
        own = values if self.leader else [0] * len(values)
        return self._gather(own).sum(0).tolist()

    def max(self, values: Sequence[int]) -> list[int]:
        """The largest of all processes."""
        return self._gather(values).max(0).tolist() if self.several else list(values)

    def min(self, value: int) -> int:
        """The smallest of all processes."""
        return int(self._gather([value]).min()) if self.several else value

    def any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.max([int(value)])[0])


def _rows_of_processes(mesh: Mesh) -> dict[int, frozenset[int]]:
    """The batch shards that each process holds."""
    shards = batch_shards(mesh)
    held: dict[int, set[int]] = {}
    layout: Any = named(mesh, ("batch",)).devices_indices_map((shards,))
    for device, where in layout.items():
        first, last, _ = where[0].indices(shards)
        held.setdefault(device.process_index, set()).update(range(first, last))
    return {process: frozenset(rows) for process, rows in held.items()}
