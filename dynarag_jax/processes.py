"""Several processes as one run: who writes, what they agree on, and files they append to together.

Every function here does the obvious thing in one process, so that callers need not ask. Processes
count as several once they have joined by ``jax.distributed.initialize``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.atomic import atomic_write
from dynarag_jax.errors import InputError
from dynarag_jax.files import parse_object, read_jsonl
from dynarag_jax.sharding import batch_shards, named

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
    """Raise in every process if one of them has failed: its own failure, or that another has one.

    Raises:
      OSError: another process failed.
    """
    if in_any(failure is not None):
        raise failure or OSError("another process could not write its part")


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


_STOP = "dynarag_jax/stops"


def tell_stop() -> None:
    """Tell all processes that this one leaves before its work is done."""
    if count() > 1:
        with contextlib.suppress(RuntimeError):  # the service may have gone before us
            _client().key_value_set(f"{_STOP}/any", str(index()), allow_overwrite=True)


def meet_before_leaving(seconds: float) -> None:
    """Process 0 waits for the others' word that they leave: it holds the service that ends them.

    Args:
      seconds: for which it waits at most; one that is killed says nothing.
    """
    if count() == 1:
        return
    with contextlib.suppress(RuntimeError):
        if index():
            _client().key_value_set(f"{_STOP}/{index()}", "leaves", allow_overwrite=True)
            return
        end = time.monotonic() + seconds
        for other in range(1, count()):
            left = max(1, int(1000 * (end - time.monotonic())))
            _client().blocking_key_value_get(f"{_STOP}/{other}", left)


def await_stop(closed: threading.Event, seconds: float = math.inf) -> bool:
    """Block until a process says that it leaves; False where ``closed`` is set before.

    It asks now and then: a thread that waits in the service's client is in the way of leaving.

    Args:
      seconds: for which it waits at most.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and not closed.wait(0.5):
        try:
            _client().key_value_try_get(f"{_STOP}/any")
        except RuntimeError:  # nobody has said so
            continue
        return True
    return False


def _client() -> Any:
    # JAX's only door to the service's key-value store, which Orbax goes through, too.
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None
    return client


_calls: dict[str, itertools.count] = {}


def gather(key: str, own: bytes) -> list[bytes]:
    """Every process's bytes, by process; all of them call this with the same key.

    It goes by way of the coordination service, not of the devices, so that a thread may call it
    while the main thread trains. A key may be used again: calls are matched in their order.

    Raises:
      RuntimeError: another process says nothing for ten minutes.
    """
    if count() == 1:
        return [own]
    client = _client()
    turn = next(_calls.setdefault(key, itertools.count()))
    here = index()

    def name(process: int, turn: int = turn) -> str:
        return f"dynarag_jax/{key}/{turn}/{process}"

    client.key_value_set_bytes(name(here), own)
    everyone = [
        own if i == here else client.blocking_key_value_get_bytes(name(i), TIMEOUT_MS)
        for i in range(count())
    ]
    if turn:
        # Whoever speaks in this turn has read all of the last one: the service need not keep it.
        client.key_value_delete(name(here, turn - 1))
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

    Raises:
      InputError: two processes hold some rows in common, but not all.
    """

    def __init__(self, mesh: Mesh):
        self.processes = count()
        self.several = self.processes > 1
        self.count, self.index, self.leader = 1, 0, True
        if self.several:
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


# ---------------------------------------------------------------------------- files in parts
# A team appends to NAME.part-0.jsonl and so on; in the end the parts become NAME.jsonl, in a given
# order of ids. What stands in the parts is not made again, in however many processes it goes on.


def part(directory: Path, kind: str, team: int) -> Path:
    """The file that a team of processes appends to."""
    return directory / f"{kind}.part-{team}.jsonl"


def parts(directory: Path, kind: str) -> list[Path]:
    """All that stands of a kind: the merged file of an earlier end, and parts."""
    whole = directory / f"{kind}.jsonl"
    return [*([whole] if whole.exists() else []), *sorted(directory.glob(f"{kind}.part-*.jsonl"))]


def ids_of(paths: Iterable[Path]) -> set[str]:
    """The ids of the records that stand."""
    return {str(record["id"]) for path in paths for _, record in read_jsonl(path)}


def merge(directory: Path, kind: str, order: Sequence[str], always: bool = True) -> int:
    """Make one file of all parts, in the given order of ids; return how many records it holds.

    Lines are copied as they are, and only their places are held in memory. Records of other ids
    are left out, and of several with one id all but the first.

    Args:
      always: write the file even if there is no record.
    """
    standing = parts(directory, kind)
    places: dict[str, tuple[int, int, int]] = {}
    for file, path in enumerate(standing):
        with path.open("rb") as stream:
            start = 0
            for number, line in enumerate(stream, 1):
                name = str(parse_object(line, f"{path}:{number}")["id"])
                places.setdefault(name, (file, start, len(line)))
                start += len(line)
    whole = directory / f"{kind}.jsonl"
    if places or always:
        streams = [path.open("rb") for path in standing]
        try:
            with atomic_write(whole, "wb") as out:
                for name in dict.fromkeys(order):
                    if name in places:
                        file, start, length = places[name]
                        streams[file].seek(start)
                        out.write(streams[file].read(length))
        finally:
            for stream in streams:
                stream.close()
    for path in standing:
        if path != whole:
            path.unlink()
    return len(places)
