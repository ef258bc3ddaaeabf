"""Different lists of each question: requests in, found lists out, and what they are worth as draws.

**Expectations from distinct lists.** Lists drawn without replacement are no independent sample: the
most probable ones are nearly always among them. Let ``kappa`` be the largest perturbed score of any
list that was not returned. Given it, list x is in the sample with probability

    q(x) = P(Gumbel(log p(x)) > kappa) = 1 - exp(-exp(log p(x) - kappa)),

and  sum over the sample of  pi(x) / q(x) * f(x)  is an unbiased estimate of the expectation of f
under pi (arXiv 1903.06059, section 4.1: priority sampling's estimator). ``p`` is what was drawn
from, ``pi`` any distribution on the same lists; here the policy at temperature 1. Divided by the
sum of the weights it is biased and varies less. Where every list was returned, kappa is -inf, the
weights are pi itself, and the estimate is the expectation. A nucleus (top_p) excludes lists: then
the estimate is of the part of the expectation that the nucleus holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.sampling.pool import local_part
from dynarag_jax.sampling.pool_sizes import PoolShape, largest_pool, slot_bytes
from dynarag_jax.sampling.requests import STOPS, Request, request_key
from dynarag_jax.sampling.search import ListSearch
from dynarag_jax.sharding import batch_shards, named, require_divisible


@dataclass(frozen=True)
class Distinct:
    """The different branches of one request, best score first; fewer where fewer exist.

    Attributes:
      branches: tokens without padding, end included.
      logps: log-probability of each at temperature 1.
      drawn: log-probability of each under the distribution that was drawn from.
      scores: what they are ranked by.
      threshold: the largest score of any branch that is not among them, -inf if there is none.
    """

    branches: tuple[tuple[int, ...], ...]
    logps: tuple[float, ...]
    drawn: tuple[float, ...]
    scores: tuple[float, ...]
    threshold: float

    def weights(self) -> tuple[float, ...]:
        """The weight of each branch in an unbiased estimate of an expectation under the policy."""
        return tuple(importance_weights(self.logps, self.drawn, self.threshold).tolist())


def importance_weights(target: Any, drawn: Any, threshold: Any) -> np.ndarray:
    """``exp(target) / q`` for each drawn list; see the module's docstring.

    Args:
      target: [..., N], log-probabilities under the distribution whose expectation is wanted.
      drawn: [..., N], log-probabilities under the one that was drawn from.
      threshold: [...].
    """
    excess = np.asarray(drawn, np.float64) - np.asarray(threshold, np.float64)[..., None]
    with np.errstate(over="ignore"):
        included = -np.expm1(-np.exp(excess))
    return np.exp(np.asarray(target, np.float64)) / included


def by_length(
    requests: Sequence[Request], lengths: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Places of the requests of each padded length, also of none: yields (length, places).

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
    yield from grouped.items()


def search_shape(rows: int, length: int, width: int, longest: int) -> PoolShape:
    """What a search of ``rows`` prompts holds, as a pool's shape.

    Prompts are there twice while their layers are taken apart, and so are prefixes while they are
    put into their new order.
    """
    return PoolShape(rows, rows, 2 * width, length, longest, STOPS)


def find(
    search: ListSearch,
    cfg: DecoderConfig,
    params: Any,
    arrays: Any,
    mesh: Mesh,
    requests: Sequence[Request],
    *,
    batch: int,
    budget: int,
    width: int,
    longest: int,
    lengths: Sequence[int],
    seed: int,
    team: ProcessTeam,
) -> Iterator[tuple[int, Distinct | InputError]]:
    """Search for the different lists of every request; yields (index, result) batch by batch.

    In a run of several processes each calls it with requests of its own, and gets their lists.
    Where not even one prompt on every shard fits the memory, the reason stands in their place.

    Args:
      search: of ``ListSearch``.
      arrays: the layers' of ``decoding.unstack``.
      batch: prompts a call at most, of all processes; rows that are missing are padding.
      budget: bytes for caches over all devices.
      width: prefixes that the search keeps; longest: tokens of a list at most.
      lengths: padded prompt lengths to choose from.
      seed: with a request's id, decides its random numbers: not its place in a batch.
    """
    require_divisible(batch, mesh, "sampling batch")
    sharding, shards = named(mesh, ("batch",)), batch_shards(mesh)
    budget = team.min(budget)
    keys_of = jax.jit(jax.vmap(jax.random.key), out_shardings=sharding)

    for length, every in by_length(requests, lengths):

        def shape(rows: int, length: int = length) -> PoolShape:
            return search_shape(rows, length, width, longest)

        rows = largest_pool(cfg, batch, budget, shape, shards)
        if not rows:
            need = shards * slot_bytes(cfg, shape(shards)) / 2**30
            why = (
                f"a search among lists of up to {longest} tokens, {width} at a time, behind "
                f"prompts of up to {length} tokens needs {need:.3g} GiB for caches, and "
                f"{budget / 2**30:.3g} GiB are to be had; use fewer lists, shorter prompts or more "
                f"memory"
            )
            for index in every:
                yield index, InputError(f"question '{requests[index].id}': {why}")
            continue
        share = rows // team.count

        def placed(x: np.ndarray, rows: int = rows) -> jax.Array:
            shape = (rows, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x, shape)

        (rounds,) = team.max([-(-len(every) // share)])
        for start in range(0, rounds * share, share):
            indices = every[start : start + share]
            trunk = np.zeros((share, length), np.int32)
            sizes, shown = np.ones(share, np.int32), np.zeros(share, np.int32)
            seeds = np.zeros(share, np.uint32)
            for row, index in enumerate(indices):
                request = requests[index]
                trunk[row, : len(request.prompt)] = request.prompt
                sizes[row], shown[row] = len(request.prompt), request.shown or 0
                seeds[row] = request_key(seed, request.id)
            keys = keys_of(placed(seeds))
            out = search(params, arrays, placed(trunk), placed(sizes), keys, placed(shown))
            found = {name: local_part(x) for name, x in out._asdict().items()}
            yield from _found(found, indices)


def _found(
    arrays: Mapping[str, np.ndarray], indices: Sequence[int]
) -> Iterator[tuple[int, Distinct]]:
    """The lists in the rows of a batch, for whom they are."""
    for row, index in enumerate(indices):
        kept = arrays["valid"][row]
        tokens, counts = arrays["tokens"][row][kept], arrays["lengths"][row][kept]
        logps, drawn, scores = (
            tuple(arrays[name][row][kept].tolist()) for name in ("logps", "drawn", "scores")
        )
        branches = (tuple(t[:n].tolist()) for t, n in zip(tokens, counts, strict=True))
        threshold = float(arrays["threshold"][row])
        yield index, Distinct(tuple(branches), logps, drawn, scores, threshold)
