"""Length bucketing: steps of prompts of like length, padded to one of a few lengths.

Bucketing follows from (seed, step) and the examples' own lengths, so that a step number restores
the input exactly, on any number of hosts.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dynarag_jax import processes

WINDOW = 16
"""steps whose examples are sorted by length together"""
SAMPLE = 512
"""examples of a stream from which the padded lengths are chosen"""
DRAWN = 1024
"""batches drawn from these where rows share a length"""


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


def choose_buckets(
    samples: Sequence[np.ndarray],
    batches: Sequence[int],
    limits: Sequence[int],
    buckets: int,
    grid: int = 64,
) -> list[tuple[int, ...]]:
    """Padded lengths of several streams by bucket, chosen so that least is padded.

    A bucket serves the same share of the steps in every stream: the streams' longest batches meet.
    The shares are those that minimize the padded positions of the sampled lengths (by dynamic
    programming over ``grid`` quantiles).

    Args:
      samples: per stream, prompt lengths of some of its examples.
      batches: per stream, examples a step.
      limits: per stream, the length that no prompt exceeds.
      buckets: how many padded lengths there may be.

    Returns:
      per stream, ascending lengths, as many for each; the last is the limit. One more bucket than
      asked for where the samples stay below the limits: it waits for what the samples missed.
    """
    tops = []
    for lengths, limit in zip(samples, limits, strict=True):
        multiple = 128 if limit >= 1024 else 8
        at = np.quantile(lengths, np.arange(1, grid + 1) / grid, method="inverted_cdf")
        tops.append(np.minimum(-(-at.astype(int) // multiple) * multiple, limit))
    cost = np.asarray(batches) @ np.stack(tops)
    # best[n][j]: the least positions with n buckets up to quantile j, where the last of them ends.
    best = np.full((buckets + 1, grid + 1), np.inf)
    cut = np.zeros((buckets + 1, grid + 1), int)
    best[0, 0] = 0
    for n in range(1, buckets + 1):
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
class BucketedStream:
    """What bucketing by length needs to know of a stream."""

    size: int
    """positions of an epoch"""
    batch: int
    """examples a step"""
    limit: int
    """length that no prompt exceeds"""
    measure: Callable[[int], int]
    """prompt length of the example at a position; called in a thread"""
    padded: Callable[[int], int] = int
    """a length made one that the mesh can cut"""
    groups: tuple[tuple[int, ...], ...] = ()
    """rows of a batch that share a padded length, the sum of theirs: all of them, in groups of one
    size. Then batches are not sorted by length, for lengths that say something of what is to be
    learned; a batch's rows are dealt to groups of like sums. Empty: each row has a length"""


def dealt(lengths: np.ndarray, groups: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, int]:
    """Examples dealt to groups of rows, so that the groups' sums are alike.

    The longest comes first, each to the group that has least so far and is not full.

    Returns:
      [B], which example each row gets, and the largest sum.
    """
    taken: list[list[int]] = [[] for _ in groups]
    sums = [0] * len(groups)
    for one in np.argsort(-lengths, kind="stable"):
        open_ = (g for g, rows in enumerate(groups) if len(taken[g]) < len(rows))
        least = min(open_, key=lambda g: sums[g])
        taken[least].append(int(one))
        sums[least] += int(lengths[one])
    rows = np.zeros(len(lengths), np.int64)
    for places, own in zip(groups, taken, strict=True):
        rows[list(places)] = own
    return rows, max(sums)


class LengthBuckets:
    """Which positions each step reads, and the padded length of its prompts.

    With one bucket, steps read positions in order and prompts are padded to the limit. With more,
    the examples of a window of steps are sorted by length and dealt to its steps, which keep a
    random order; a step's bucket is the least that holds its longest prompts in every stream. A
    stream whose rows share lengths (``BucketedStream.groups``) is read in order.

    Every process comes to the same answer: each measures its part of a window's examples, and they
    tell each other the lengths. A window is measured in a thread while the one before is read.

    Attributes:
      lengths: per stream, its padded lengths by bucket.
    """

    def __init__(
        self,
        streams: Mapping[str, BucketedStream],
        buckets: int,
        seed: int,
        last: int,
    ):
        """Args:
        streams: the streams.
        buckets: padded lengths of each; 1 pads everything to the limits.
        last: no step from here on is asked for.
        """
        self._streams, self._seed, self._last = dict(streams), seed, last
        self._plans: dict[tuple[str, int], Future[dict[int, tuple[np.ndarray, int]]]] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.lengths = {name: (stream.limit,) for name, stream in streams.items()}
        if buckets > 1:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="lengths")
            each = list(streams.values())
            chosen = choose_buckets(
                [self._sample(stream) for stream in each],
                [len(stream.groups) or stream.batch for stream in each],
                [stream.limit for stream in each],
                buckets,
            )
            self.lengths = dict(zip(streams, chosen, strict=True))
        self.lengths = {
            name: tuple(streams[name].padded(length) for length in lengths)
            for name, lengths in self.lengths.items()
        }

    @staticmethod
    def _sample(stream: BucketedStream) -> np.ndarray:
        count = min(stream.size, SAMPLE)
        found = np.array([stream.measure(i * stream.size // count) for i in range(count)])
        if not stream.groups:
            return found
        drawn = np.random.default_rng(0).choice(found, (DRAWN, stream.batch))
        return np.array([dealt(lengths, stream.groups)[1] for lengths in drawn])

    def positions(self, name: str, step: int) -> np.ndarray:
        """The positions that are the rows of a stream's batch."""
        if self._pool is None:
            batch = self._streams[name].batch
            return np.arange(step * batch, (step + 1) * batch)
        return self._plan(name, step)[0]

    def bucket(self, step: int) -> int:
        """The least bucket that holds the step's prompts in every stream."""
        if self._pool is None:
            return 0
        longest = ((self._plan(name, step)[1], self.lengths[name]) for name in self._streams)
        return max(int(np.searchsorted(lengths, most)) for most, lengths in longest)

    def _plan(self, name: str, step: int) -> tuple[np.ndarray, int]:
        stream = self._streams[name]
        window = window_of(step, stream.size, stream.batch)
        following = range(0)
        if window.stop < self._last:
            following = window_of(window.stop, stream.size, stream.batch)
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
        stream = self._streams[name]
        positions = np.arange(steps.start * stream.batch, steps.stop * stream.batch)
        count, index = processes.count(), processes.index()
        own = np.array([stream.measure(int(p)) for p in positions[index::count]], np.int64)
        lengths = np.zeros(len(positions), np.int64)
        for i, part in enumerate(processes.gather(f"lengths/{name}/{steps.start}", own.tobytes())):
            lengths[i::count] = np.frombuffer(part, np.int64)
        if stream.groups:
            plans = {}
            for i, step in enumerate(steps):
                own = slice(i * stream.batch, (i + 1) * stream.batch)
                rows, longest = dealt(lengths[own], stream.groups)
                plans[step] = positions[own][rows], longest
            return plans
        by_length = np.argsort(lengths, kind="stable").reshape(len(steps), stream.batch)
        ranked = sorted(steps, key=lambda step: _rank(self._seed, step))
        return {
            step: (positions[rows], int(lengths[rows].max()))
            for step, rows in zip(ranked, by_length, strict=True)
        }

    def close(self) -> None:
        """Stop measuring."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
