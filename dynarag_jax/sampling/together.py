"""What several processes that hold one mesh must agree on, a few numbers at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.sharding import batch_shards, named


class Together:
    """The processes of a mesh as teams: those of a team hold the same batch rows.

    A team samples one share of the questions; its first process, the leader, writes.

    Attributes:
      several: whether there is more than one process.
      teams: how many teams there are.
      team: this process's, from 0.
      leader: whether this process writes for its team.
      processes: how many processes there are.

    Raises:
      InputError: two processes hold some rows in common, but not all.
    """

    def __init__(self, mesh: Mesh):
        self.processes = jax.process_count()
        self.several = self.processes > 1
        self.teams, self.team, self.leader = 1, 0, True
        if self.several:
            held = _rows_of_processes(mesh)
            parts = sorted(set(held.values()), key=min)
            if sum(map(len, parts)) != len(set().union(*parts)):
                raise InputError(
                    "the mesh gives some processes a part of another's batch rows; choose sizes "
                    "so that a process holds whole rows, or shares all of them"
                )
            mine = held[jax.process_index()]
            self.teams, self.team = len(parts), parts.index(mine)
            self.leader = jax.process_index() == min(p for p, h in held.items() if h == mine)

    def _gather(self, values: Sequence[int]) -> np.ndarray:
        """[processes, values]."""
        from jax.experimental import multihost_utils

        # In halves of 30 bits: JAX would cut 64-bit integers silently.
        wide = np.asarray(values, np.int64)
        halves = np.stack([wide >> 30, wide & (2**30 - 1)]).astype(np.int32)
        found = np.asarray(multihost_utils.process_allgather(halves), np.int64)
        return (found[:, 0] << 30) + found[:, 1]

    def sum(self, values: Sequence[int]) -> list[int]:
        """The sums over teams."""
        if not self.several:
            return list(values)
        own = values if self.leader else [0] * len(values)
        return self._gather(own).sum(0).tolist()

    def most(self, values: Sequence[int]) -> list[int]:
        """The largest of all processes."""
        return self._gather(values).max(0).tolist() if self.several else list(values)

    def least(self, value: int) -> int:
        """The smallest of all processes."""
        return int(self._gather([value]).min()) if self.several else value

    def any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.most([int(value)])[0])

    def wait(self, name: str) -> None:
        """Until all processes are here."""
        if self.several:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(name)


def _rows_of_processes(mesh: Mesh) -> dict[int, frozenset[int]]:
    """The batch shards that each process holds."""
    shards = batch_shards(mesh)
    held: dict[int, set[int]] = {}
    places: Any = named(mesh, ("batch",)).devices_indices_map((shards,))
    for device, index in places.items():
        first, last, _ = index[0].indices(shards)
        held.setdefault(device.process_index, set()).update(range(first, last))
    return {process: frozenset(rows) for process, rows in held.items()}
