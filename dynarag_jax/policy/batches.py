"""From examples to arrays: the trunk-and-branches batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.records import valid_list
from dynarag_jax.sharding import batch_shards, named, require_divisible


@dataclass(frozen=True)
class Example:
    """One prompt and its continuations, as tokens.

    Attributes:
      id: of the question, for messages.
      prompt: tokens.
      branches: continuations, end of text included.
      shown: passages the prompt shows if the branches are lists, else 0.
      supervised: weight of each branch in supervised terms.
      reference: log-probability of each branch's tokens under the reference; empty is all 0, for
        objectives that read none.
      behavior: the same under the weights that sampled the branches.
      rewards: of sampled branches; empty is all 0.
      counts: samples that each branch stands for in a group; empty where it is none.
      preferred: whether branch 0 is preferred to branch 1.
      ranking: the expert's 1-based ids, best first, for listwise supervision.
      dropped: passages that did not fit the prompt, from the end of the list.
      dropped_ids: ids of the expert's list that cannot be imitated: not shown, or one too many.
      dropped_tokens: tokens of answers beyond the longest answer, their ends included; of thoughts
        beyond the longest one.
      thoughts: tokens at the front of each branch that are its thought, what closes it included;
        empty where there are none.
      step_rewards: of each step of each branch, that of stopping included; empty where there are
        none.
      step_ends: the place of each step's last token in each branch.
      deciding: the places of the tokens that say whether a list goes on.
      given: tokens at the front of each branch that are given and not learned; empty is all 0.
    """

    id: str
    prompt: Sequence[int]
    branches: Sequence[Sequence[int]]
    shown: int = 0
    supervised: Sequence[float] = (1.0,)
    reference: Sequence[Sequence[float]] = ()
    behavior: Sequence[Sequence[float]] = ()
    rewards: Sequence[float] = ()
    counts: Sequence[float] = ()
    preferred: bool = False
    ranking: Sequence[int] = ()
    dropped: int = 0
    dropped_ids: int = 0
    dropped_tokens: int = 0
    thoughts: Sequence[int] = ()
    given: Sequence[int] = ()
    step_rewards: Sequence[Sequence[float]] = ()
    step_ends: Sequence[Sequence[int]] = ()
    deciding: Sequence[Sequence[int]] = ()


class Batch(NamedTuple):
    """Examples as arrays, right-padded. B examples, P prompt and R branch positions, I ids."""

    trunk: Any
    """[B, P] int32"""
    trunk_lengths: Any
    """[B]"""
    branches: Any
    """[B, N, R] int32"""
    branch_lengths: Any
    """[B, N]"""
    shown: Any
    """[B], 0 where the branches are no lists"""
    supervised: Any
    """[B, N] float32"""
    reference: Any
    """[B, N, R] float32"""
    behavior: Any
    """[B, N, R] float32"""
    rewards: Any
    """[B, N] float32"""
    counts: Any
    """[B, N] float32"""
    preferred: Any
    """[B] bool"""
    relevance: Any
    """[B, I] float32: k for the expert's first id down to 1, 0 for the others"""
    dropped: Any
    """[B] passages that did not fit the prompt"""
    dropped_ids: Any
    """[B] ids of the expert's list that cannot be imitated"""
    dropped_tokens: Any
    """[B] tokens of answers beyond the longest answer, or of thoughts beyond the longest thought"""
    thoughts: Any = None
    """[B, N] tokens of each branch's thought; None where the branches have none"""
    given: Any = None
    """[B, N] tokens at the front of each branch that are not learned; None where all are"""
    step_rewards: Any = None
    """[B, N, R] float32 rewards of steps, at their last tokens; None where branches have none"""
    step_ends: Any = None
    """[B, N, R] bool"""
    deciding: Any = None
    """[B, N, R] bool, the tokens that say whether a list goes on"""


@dataclass(frozen=True)
class BatchShape:
    """The fixed shape of a stream's batches, so that one compilation serves them all."""

    prompt: int
    branches: int
    branch: int
    ids: int
    thoughts: bool = False
    """whether lists stand behind thoughts"""
    steps: bool = False
    """whether the steps of lists are known"""


def _require_one_each(example: Example, name: str, values: Sequence, of: Sequence) -> None:
    """Raise InputError unless there is one value for each branch, or for each of its tokens."""
    if len(values) != len(of):
        raise InputError(
            f"example '{example.id}': {name} has {len(values)} values for {len(of)} "
            f"{'branches' if of is example.branches else 'tokens'}"
        )


def collate(examples: Sequence[Example], shape: BatchShape) -> Batch:
    """Pad examples to ``shape``.

    Raises:
      InputError: an example is larger than the shape, or contradicts itself; nothing is cut or
        guessed silently.
    """
    b, n = len(examples), shape.branches
    batch = Batch(
        np.zeros((b, shape.prompt), np.int32),
        np.zeros(b, np.int32),
        np.zeros((b, n, shape.branch), np.int32),
        np.zeros((b, n), np.int32),
        np.zeros(b, np.int32),
        np.zeros((b, n), np.float32),
        np.zeros((b, n, shape.branch), np.float32),
        np.zeros((b, n, shape.branch), np.float32),
        np.zeros((b, n), np.float32),
        np.zeros((b, n), np.float32),
        np.zeros(b, bool),
        np.zeros((b, shape.ids), np.float32),
        np.zeros(b, np.int32),
        np.zeros(b, np.int32),
        np.zeros(b, np.int32),
        np.zeros((b, n), np.int32) if shape.thoughts else None,
        np.zeros((b, n), np.int32) if shape.thoughts else None,
        np.zeros((b, n, shape.branch), np.float32) if shape.steps else None,
        np.zeros((b, n, shape.branch), bool) if shape.steps else None,
        np.zeros((b, n, shape.branch), bool) if shape.steps else None,
    )
    for row, example in enumerate(examples):
        longest = max(map(len, example.branches), default=0)
        if not 1 <= len(example.prompt) <= shape.prompt or longest > shape.branch:
            raise InputError(
                f"example '{example.id}': prompt of {len(example.prompt)} and branch of {longest} "
                f"tokens do not fit the configured {shape.prompt} and {shape.branch}"
            )
        if len(example.branches) > n:
            raise InputError(
                f"example '{example.id}' has {len(example.branches)} branches, more than {n}"
            )
        if example.shown > shape.ids:
            raise InputError(
                f"example '{example.id}' shows {example.shown} passages, more than {shape.ids} ids"
            )
        if wrong := valid_list(example.ranking, example.shown):
            raise InputError(f"example '{example.id}': the ranking {list(example.ranking)} {wrong}")
        if example.preferred and len(example.branches) < 2:
            raise InputError(f"example '{example.id}' prefers a branch to none: it needs two")
        batch.trunk[row, : len(example.prompt)] = example.prompt
        batch.trunk_lengths[row] = len(example.prompt)
        for i, tokens in enumerate(example.branches):
            batch.branches[row, i, : len(tokens)] = tokens
            batch.branch_lengths[row, i] = len(tokens)
        for name in ("supervised", "rewards", "counts", "thoughts", "given"):
            values = getattr(example, name)
            if values:
                _require_one_each(example, name, values, example.branches)
                getattr(batch, name)[row, : len(values)] = values
        for name in ("reference", "behavior"):
            branches = getattr(example, name)
            if branches:
                _require_one_each(example, name, branches, example.branches)
                for i, values in enumerate(branches):
                    _require_one_each(example, f"{name}[{i}]", values, example.branches[i])
                    getattr(batch, name)[row, i, : len(values)] = values
        for i, ends in enumerate(example.step_ends if shape.steps else ()):
            place_steps(batch, row, i, ends, example.step_rewards[i])
            batch.deciding[row, i, list(example.deciding[i])] = True
        batch.shown[row] = example.shown
        batch.preferred[row] = example.preferred
        batch.dropped[row] = example.dropped
        batch.dropped_ids[row] = example.dropped_ids
        batch.dropped_tokens[row] = example.dropped_tokens
        for place, i in enumerate(example.ranking):
            batch.relevance[row, i - 1] = len(example.ranking) - place
    return batch


def place_steps(batch: Any, row: int, branch: int, ends: Sequence[int], rewards: Any) -> None:
    """Put the rewards of a branch's steps at their last tokens."""
    if ends:
        batch.step_rewards[row, branch, list(ends)] = rewards
        batch.step_ends[row, branch, list(ends)] = True


def process_rows(mesh: Mesh, batch: int) -> list[int]:
    """The rows of a global batch that lie on this process's devices, in order.

    Processes that share batch rows, since an axis of the model runs across them, have the same.

    Raises:
      InputError: the batch does not divide over the mesh.
    """
    require_divisible(batch, mesh, "batch")
    parts = named(mesh, ("batch",)).addressable_devices_indices_map((batch,)).values()
    ranges = {part[0].indices(batch)[:2] for part in parts if part is not None}
    return [row for low, high in sorted(ranges) for row in range(low, high)]


def place(mesh: Mesh, batch: Batch) -> Batch:
    """Put this process's rows, those of ``process_rows``, on the mesh as a part of the batch."""
    sharding = named(mesh, ("batch",))
    shards = batch_shards(mesh)
    rows = len(batch.trunk) // len(process_rows(mesh, shards)) * shards
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:])), batch
    )
