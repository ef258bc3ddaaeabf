"""The order in which examples are read: a pure function of (seed, name, position).

Nothing here has state that a checkpoint would have to hold: a step number restores the input
exactly, on any number of hosts.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynarag_jax.errors import InputError


class Order:
    """An endless shuffled order of ``size`` items, a pure function of (seed, name, position).

    Position p belongs to epoch ``p // size``; every epoch is a permutation of its own. The
    position is all the state there is, so that a step number restores the input exactly.
    """

    def __init__(self, size: int, seed: int, name: str):
        if size < 1:
            raise InputError(f"the stream '{name}' has no examples to train on")
        self.size = size
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self._key = int.from_bytes(digest[:16], "little")
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def _permutation(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._epochs:
                near = range(epoch - 1, epoch + 2)
                self._epochs = {e: p for e, p in self._epochs.items() if e in near}
                bits = np.random.Philox(key=self._key, counter=epoch << 128)
                self._epochs[epoch] = np.random.Generator(bits).permutation(self.size)
            return self._epochs[epoch]

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, index) of a position."""
        epoch, place = divmod(position, self.size)
        return epoch, int(self._permutation(epoch)[place])


def uniform_hash(seed: int, name: str, epoch: int, index: int) -> float:
    """A number in [0, 1) that depends on these alone: how an example varies between epochs."""
    # Python's own hash of text differs between processes.
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


class MixtureItem(NamedTuple):
    """One example of a mixture: the part it comes from, that part's epoch, its index there."""

    part: int
    epoch: int
    index: int


class Mixture:
    """An endless order over several sets of examples, each with its share by weight.

    Of any first n positions a part of share s has n * s, but for less than one per part: shares
    hold exactly in every stretch of training, not on average. Within its part, every example comes
    once an epoch.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, name: str):
        """Args:
        sizes: examples of each part.
        weights: of each part, in any unit.

        Raises:
          InputError: a weight is not positive, or a part has no examples.
        """
        if min(weights, default=0) <= 0 or not all(map(np.isfinite, weights)):
            raise InputError(
                f"the stream '{name}' mixes with weights {list(weights)}: they must be positive"
            )
        self._orders = [
            Order(size, seed, f"{name}/{i}" if i else name) for i, size in enumerate(sizes)
        ]
        # Each part against all that follow it, in units of 2**-40, so that counts are exact.
        rest = [sum(weights[i:]) for i in range(len(weights))]
        self._splits = [round(w / r * 2**40) for w, r in zip(weights, rest, strict=True)][:-1]
        self.size = max(1, round(sizes[0] * rest[0] / weights[0]))
        """positions of an epoch, which is one of the first part's"""

    def at(self, position: int) -> MixtureItem:
        """What stands at a position."""
        for part, split in enumerate(self._splits):
            before, after = (p * split + 2**39 >> 40 for p in (position, position + 1))
            if after > before:
                return MixtureItem(part, *self._orders[part].at(before))
            position -= before
        return MixtureItem(len(self._splits), *self._orders[-1].at(position))
