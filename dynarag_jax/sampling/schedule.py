"""Many prompts through a sampler: length buckets, fixed batch shapes, results as they finish."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.sampling.sampler import Samples
from dynarag_jax.sharding import named, require_divisible


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
      id: names the request in messages, and with the seed decides its random numbers.
      prompt: tokens.
      shown: ids the grammar may use; ignored without a grammar.
    """

    id: str
    prompt: Sequence[int]
    shown: int = 0


@dataclass(frozen=True)
class Sampled:
    """The branches of one request: tokens without padding, end included, and log-probabilities."""

    branches: tuple[tuple[int, ...], ...]
    finished: tuple[bool, ...]
    logps: tuple[float, ...]


def request_key(seed: int, request_id: str) -> int:
    """A 32-bit number for a request's random key, from the seed and the id alone."""
    return zlib.crc32(f"{seed}/{request_id}".encode())


def batches(
    requests: Sequence[Request], batch: int, lengths: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Group requests into batches of one padded length: yields (length, indices), longest first.

    The longest come first, so that a shape that does not fit the memory fails at once.

    Raises:
      InputError: a prompt is longer than the longest length.
    """
    grouped: dict[int, list[int]] = {length: [] for length in sorted(lengths, reverse=True)}
    for index, request in enumerate(requests):
        fits = [length for length in lengths if len(request.prompt) <= length]
        if not fits:
            raise InputError(
                f"request '{request.id}': {len(request.prompt)} tokens exceed the longest "
                f"bucket of {max(lengths)}"
            )
        grouped[min(fits)].append(index)
    for length, indices in grouped.items():
        for start in range(0, len(indices), batch):
            yield length, indices[start : start + batch]


def run(
    sampler: Callable[..., Samples],
    params: Any,
    mesh: Mesh,
    requests: Sequence[Request],
    *,
    batch: int,
    lengths: Sequence[int],
    seed: int,
) -> Iterator[tuple[int, Sampled]]:
    """Sample every request; yields (index, result) batch by batch.

    Args:
      sampler: of ``make_sampler``.
      batch: prompts a call; rows that are missing in the last batch are padding.
      lengths: padded prompt lengths to choose from.
      seed: with a request's id, decides its random numbers: not its place in a batch.
    """
    require_divisible(batch, mesh, "sampling batch")
    rows = named(mesh, ("batch",))
    for length, indices in batches(requests, batch, lengths):
        trunk = np.zeros((batch, length), np.int32)
        sizes = np.ones(batch, np.int32)
        shown = np.zeros(batch, np.int32)
        seeds = np.zeros(batch, np.uint32)
        for row, index in enumerate(indices):
            request = requests[index]
            trunk[row, : len(request.prompt)] = request.prompt
            sizes[row], shown[row] = len(request.prompt), request.shown
            seeds[row] = request_key(seed, request.id)
        keys = jax.vmap(jax.random.key)(jax.device_put(seeds, rows))
        out = sampler(params, *jax.device_put((trunk, sizes), rows), keys, shown)
        tokens, counts, finished, logps = (np.asarray(x) for x in out)
        for row, index in enumerate(indices):
            yield (
                index,
                Sampled(
                    tuple(
                        tuple(t[:n].tolist()) for t, n in zip(tokens[row], counts[row], strict=True)
                    ),
                    tuple(finished[row].tolist()),
                    tuple(logps[row].tolist()),
                ),
            )
