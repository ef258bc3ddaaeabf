"""Streams of examples, mixed from sources by weight, and the input of every step from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.policy.batches import Batch, collate, place, process_rows
from dynarag_jax.sharding import axis_size, padded_prompt, require_divisible
from dynarag_jax.training.bucketing import BucketedStream, LengthBuckets
from dynarag_jax.training.config import Stream, Train
from dynarag_jax.training.flops import PaddedShape, step_work
from dynarag_jax.training.order import Mixture, MixtureItem


@dataclass(frozen=True)
class ExampleSource:
    """An endless stream of examples: how many there are, and the one at (epoch, index)."""

    name: str
    stream: Stream
    size: int
    make: Callable[[int, int], Any]
    """an ``Example``, or a ``ListExample`` of an encoder policy"""
    shape: Any
    """``BatchShape``, or ``ListShape``"""
    others: tuple[tuple[ExampleSource, float], ...] = ()
    """sources mixed in, each with its number of examples for one of this source's own"""

    def mixture(self, seed: int) -> Mixture:
        """The order of the examples, of all parts."""
        sizes = [self.size, *(other.size for other, _ in self.others)]
        return Mixture(sizes, [1.0, *(weight for _, weight in self.others)], seed, self.name)

    def example(self, item: MixtureItem) -> Any:
        """The example that a mixture names."""
        part = self.others[item.part - 1][0] if item.part else self
        return part.make(item.epoch, item.index)


def require_batches(
    stage: Train, sources: Sequence[ExampleSource], mesh: Mesh
) -> list[ExampleSource]:
    """The sources that take part, whose batches divide over the mesh and into microbatches.

    Raises:
      InputError: one's do not, or none takes part.
    """
    sources = [s for s in sources if s.stream.batch > 0 and s.stream.objectives.active()]
    if not sources:
        raise InputError("nothing to train on: every stream has batch 0 or no objective")
    for source in sources:
        require_divisible(source.stream.batch, mesh, f"{source.name}.batch")
        if source.stream.batch % stage.accumulate:
            raise InputError(
                f"{source.name}.batch = {source.stream.batch} does not divide into "
                f"accumulate = {stage.accumulate} microbatches"
            )
        require_divisible(
            source.stream.batch // stage.accumulate, mesh, f"{source.name}.batch / accumulate"
        )
    return sources


def total_steps(stage: Train, sources: Sequence[ExampleSource]) -> int:
    """Updates of a stage: as configured, or what ``epochs`` over the first source takes."""
    if stage.steps:
        return stage.steps
    lead = next(s for s in sources if s.stream.batch)
    return max(1, math.ceil(stage.epochs * lead.mixture(0).size / lead.stream.batch))


class Input:
    """The input of every step of a run: this process's rows, on the mesh."""

    def __init__(
        self, stage: Train, sources: Sequence[ExampleSource], mesh: Mesh, seed: int, steps: int
    ):
        self._sources, self._mesh = sources, mesh
        self._mixtures = {s.name: s.mixture(seed) for s in sources}
        streams = {
            s.name: BucketedStream(
                self._mixtures[s.name].size,
                s.stream.batch,
                s.shape.prompt,
                partial(self._length, s),
                partial(padded_prompt, parts=axis_size("positions", mesh)),
            )
            for s in sources
        }
        self.buckets = LengthBuckets(streams, stage.lengths, seed, steps)

    def _length(self, source: ExampleSource, position: int) -> int:
        return len(source.example(self._mixtures[source.name].at(position)).prompt)

    def __call__(self, step: int) -> tuple[Mapping[str, Batch], list[str]]:
        """A step's batches, and the ids of this process's records in them."""
        batches, ids, bucket = {}, [], self.buckets.bucket(step)
        for source in self._sources:
            name = source.name
            positions = self.buckets.positions(name, step)
            examples = [
                source.example(self._mixtures[name].at(int(positions[row])))
                for row in process_rows(self._mesh, source.stream.batch)
            ]
            shape = replace(source.shape, prompt=self.buckets.lengths[name][bucket])
            batches[name] = place(self._mesh, collate(examples, shape))
            ids += [e.id for e in examples]
        return batches, ids


def step_operations(
    cfg: DecoderConfig, sources: Sequence[ExampleSource], lora: LoraConfig | None
) -> Callable[[Mapping[str, Batch]], float]:
    """A function from a step's batches to its model operations, by their padded shapes."""
    whole = {s.name: bool(s.stream.objectives.reads("prompt")) for s in sources}

    @functools.cache
    def work(shapes: tuple[tuple[str, tuple[int, ...], int], ...]) -> float:
        rows = [
            PaddedShape(batch, prompt, branches, branch, prompt_loss=whole[name])
            for name, (batch, branches, branch), prompt in shapes
        ]
        return step_work(cfg, rows, lora).model

    return lambda batches: work(
        tuple((name, b.branches.shape, b.trunk.shape[1]) for name, b in batches.items())
    )
