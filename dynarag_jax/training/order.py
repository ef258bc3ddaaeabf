"""Which examples a step reads, and how long their prompts are padded: pure functions of the step.

Nothing here has state that a checkpoint would have to hold. The order of examples follows from
(seed, name, position), the grouping by length from (seed, step) and the examples' own lengths, so
that a step number restores the input exactly, on any number of hosts.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynarag_jax import processes
from dynarag_jax.errors import InputError

WINDOW = 16
"""steps whose examples are sorted by length together"""
SAMPLE = 512
"""examples of a stream from which the padded lengths are chosen"""


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


class Draw(NamedTuple):
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

    def at(self, position: int) -> Draw:
        """What stands at a position."""
        for part, split in enumerate(self._splits):
            before, after = (p * split + 2**39 >> 40 for p in (position, position + 1))
            if after > before:
                return Draw(part, *self._orders[part].at(before))
            position -= before
        return Draw(len(self._splits), *self._orders[-1].at(position))


def window_of(step: int, size: int, batch: int, length: int = WINDOW) -> range:
    """The steps that are sorted by length together with ``step``.

    Windows end where an epoch of ``size`` positions ends, so that a run of whole epochs has seen
    every example equally often, and otherwise hold ``length`` steps.
    """
    epoch = step * batch // size
    first, last = -(-epoch * size // batch), -(-(epoch + 1) * size // batch)
    begin = first + (step - first) // length * length
    return range(begin, min(begin + length, last))


def _rank(seed: int, step: int) -> bytes:
    """A step's place among others by length: the same in every stream, so that streams are long
    together, and one compiled program serves each length."""
    return hashlib.sha256(f"{seed}/rank/{step}".encode()).digest()


def choose_lengths(
    samples: Sequence[np.ndarray],
    batches: Sequence[int],
    limits: Sequence[int],
    levels: int,
    grid: int = 64,
) -> list[tuple[int, ...]]:
    """Padded lengths of several streams by level, chosen so that least is padded.

    A level serves the same share of the steps in every stream: the streams' longest batches meet.
    The shares are those that minimize the padded positions of the sampled lengths (by dynamic
    programming over ``grid`` quantiles).

    Args:
      samples: per stream, prompt lengths of some of its examples.
      batches: per stream, examples a step.
      limits: per stream, the length that no prompt exceeds.
      levels: how many padded lengths there may be.

    Returns:
      per stream, ascending lengths, as many for each; the last is the limit. One more level than
      asked for where the samples stay below the limits: it waits for what the samples missed.
    """
    tops = []
    for lengths, limit in zip(samples, limits, strict=True):
        multiple = 128 if limit >= 1024 else 8
        at = np.quantile(lengths, np.arange(1, grid + 1) / grid, method="inverted_cdf")
        tops.append(np.minimum(-(-at.astype(int) // multiple) * multiple, limit))
    cost = np.asarray(batches) @ np.stack(tops)
    # best[n][j]: the least positions with n levels up to quantile j, the last of them ending there.
    best = np.full((levels + 1, grid + 1), np.inf)
    cut = np.zeros((levels + 1, grid + 1), int)
    best[0, 0] = 0
    for n in range(1, levels + 1):
        for j in range(1, grid + 1):
            options = best[n - 1, :j] + (j - np.arange(j)) * cost[j - 1]
            cut[n, j] = int(np.argmin(options))
            best[n, j] = options[cut[n, j]]
    n, j, ends = int(np.argmin(best[:, grid])), grid, []
    while j:
        ends.append(j - 1)
        n, j = n - 1, cut[n, j]
    ends.reverse()
    if any(top[-1] < limit for top, limit in zip(tops, limits, strict=True)):
        return [
            (*(int(top[e]) for e in ends), limit) for top, limit in zip(tops, limits, strict=True)
        ]
    return [tuple(int(top[e]) for e in ends) for top in tops]


@dataclass(frozen=True)
class Lane:
    """A stream as its grouping sees it."""

    size: int
    """positions of an epoch"""
    batch: int
    """examples a step"""
    limit: int
    """length that no prompt exceeds"""
    measure: Callable[[int], int]
    """prompt length of the example at a position; called in a thread"""


class Grouping:
    """Which positions each step reads, and the padded length of its prompts.

    With one level, steps read positions in order and prompts are padded to the limit. With more,
    the examples of a window of steps are sorted by length and dealt to its steps, which keep a
    random order; a step's level is the least that holds its longest prompts in every stream.

    Every process comes to the same answer: each measures its part of a window's examples, and they
    tell each other the lengths. A window is measured in a thread while the one before is read.

    Attributes:
      lengths: per stream, its padded lengths by level.
    """

    def __init__(self, lanes: Mapping[str, Lane], levels: int, seed: int, last: int):
        """Args:
        lanes: the streams.
        levels: padded lengths of each; 1 pads everything to the limits.
        last: no step from here on is asked for.
        """
        self._lanes, self._seed, self._last = dict(lanes), seed, last
        self._plans: dict[tuple[str, int], Future[dict[int, tuple[np.ndarray, int]]]] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.lengths = {name: (lane.limit,) for name, lane in lanes.items()}
        if levels > 1:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="lengths")
            streams = list(lanes.values())
            chosen = choose_lengths(
                [self._sample(lane) for lane in streams],
                [lane.batch for lane in streams],
                [lane.limit for lane in streams],
                levels,
            )
            self.lengths = dict(zip(lanes, chosen, strict=True))

    @staticmethod
    def _sample(lane: Lane) -> np.ndarray:
        count = min(lane.size, SAMPLE)
        return np.array([lane.measure(i * lane.size // count) for i in range(count)])

    def positions(self, name: str, step: int) -> np.ndarray:
        """The positions that are the rows of a stream's batch."""
        if self._pool is None:
            batch = self._lanes[name].batch
            return np.arange(step * batch, (step + 1) * batch)
        return self._plan(name, step)[0]

    def level(self, step: int) -> int:
        """The least level that holds the step's prompts in every stream."""
        if self._pool is None:
            return 0
        longest = ((self._plan(name, step)[1], self.lengths[name]) for name in self._lanes)
        return max(int(np.searchsorted(lengths, most)) for most, lengths in longest)

    def _plan(self, name: str, step: int) -> tuple[np.ndarray, int]:
        lane = self._lanes[name]
        window = window_of(step, lane.size, lane.batch)
        following = range(0)
        if window.stop < self._last:
            following = window_of(window.stop, lane.size, lane.batch)
        with self._lock:
            for steps in (window, following):
                key = (name, steps.start)
                if steps and key not in self._plans and self._pool is not None:
                    self._plans[key] = self._pool.submit(self._measure, name, steps)
            for old in [k for k in self._plans if k[0] == name and k[1] < window.start]:
                del self._plans[old]
            plan = self._plans[name, window.start]
        return plan.result()[step]

    def _measure(self, name: str, steps: range) -> dict[int, tuple[np.ndarray, int]]:
        """Per step of a window, its positions and the longest prompt among them."""
        lane = self._lanes[name]
        positions = np.arange(steps.start * lane.batch, steps.stop * lane.batch)
        count, index = processes.count(), processes.index()
        own = np.array([lane.measure(int(p)) for p in positions[index::count]], np.int64)
        lengths = np.zeros(len(positions), np.int64)
        for i, part in enumerate(processes.gather(f"lengths/{name}/{steps.start}", own.tobytes())):
            lengths[i::count] = np.frombuffer(part, np.int64)
        by_length = np.argsort(lengths, kind="stable").reshape(len(steps), lane.batch)
        ranked = sorted(steps, key=lambda step: _rank(self._seed, step))
        return {
            step: (positions[rows], int(lengths[rows].max()))
            for step, rows in zip(ranked, by_length, strict=True)
        }

    def close(self) -> None:
        """Stop measuring."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
