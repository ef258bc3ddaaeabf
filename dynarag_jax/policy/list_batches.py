"""From lists over candidates to arrays: the batch that an encoder policy is trained and scored on.

The fields that objectives read are those of ``batches.Batch``; a list's tokens are 1-based
candidates and 0, stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.models.packed import Room
from dynarag_jax.policy.batches import place_steps, process_rows
from dynarag_jax.policy.encoder_policy import CandidateBatch
from dynarag_jax.policy.kept_vectors import collate_vectors
from dynarag_jax.policy.pair_tokens import QuestionPairs, collate_pairs
from dynarag_jax.records import valid_list
from dynarag_jax.sharding import batch_shards, named


@dataclass(frozen=True)
class ListExample:
    """A question's candidates and lists over them.

    Attributes:
      id: of the question, for messages.
      pairs: what the policy reads; ``vectors`` [N, D] and ``scores`` [N] in its place where they
        were computed before.
      lists: 1-based candidates, best first.
      supervised: weight of each list in supervised terms.
      reference, behavior: log-probabilities of each list's steps, stop included; empty is all 0.
      rewards, counts: of sampled lists; empty is all 0.
      preferred: whether list 0 is preferred to list 1.
      step_rewards: of each step of each list, stop's last; empty where there are none.
      ranking: the expert's list, for losses on scores.
      dropped_ids: of the expert's list, beyond the longest list.
      following: of a state, in which the one list is what was chosen: all that may come next, where
        0 is stop.
    """

    id: str
    pairs: QuestionPairs
    lists: Sequence[Sequence[int]]
    supervised: Sequence[float] = (1.0,)
    reference: Sequence[Sequence[float]] = ()
    behavior: Sequence[Sequence[float]] = ()
    rewards: Sequence[float] = ()
    counts: Sequence[float] = ()
    preferred: bool = False
    step_rewards: Sequence[Sequence[float]] = ()
    ranking: Sequence[int] = ()
    dropped_ids: int = 0
    following: Sequence[int] = ()
    vectors: np.ndarray | None = None
    scores: np.ndarray | None = None


class ListBatch(NamedTuple):
    """Examples as arrays, right-padded. B questions, N candidates, L lists of R steps."""

    candidates: CandidateBatch
    branches: Any
    """[B, L, R] int32, 1-based candidates, 0 for stop"""
    branch_lengths: Any
    """[B, L], steps with stop; 0 of a list that is none"""
    supervised: Any
    """[B, L] float32"""
    reference: Any
    """[B, L, R] float32"""
    behavior: Any
    """[B, L, R] float32"""
    rewards: Any
    """[B, L] float32"""
    counts: Any
    """[B, L] float32"""
    preferred: Any
    """[B] bool"""
    relevance: Any
    """[B, N] float32: k for the expert's first candidate down to 1, 0 for the others"""
    dropped_ids: Any
    """[B], of experts' lists, beyond the longest list"""
    cut: Any
    """[B], pairs that lost word pieces"""
    step_rewards: Any = None
    """[B, L, R] float32, and ``step_ends`` bool, where steps have rewards; else None"""
    step_ends: Any = None
    following: Any = None
    """[B, N + 1] bool, what may come next, stop first, where rows are states; else None. Branch 0
    is then what was chosen, and its length 1: the one step that is learned"""


@dataclass(frozen=True)
class ListShape:
    """The fixed shape of a stream's batches."""

    lists: int
    steps: int
    pieces: int
    step_rewards: bool = False
    """whether steps have rewards, be they 0"""
    states: bool = False
    """whether an example is a state, with what may follow, in place of whole lists"""
    room: Room | None = None
    """for the word pieces of so many rows with what is chosen, where pairs are computed without
    padding; None: they are padded"""


def collate_lists(examples: Sequence[ListExample], shape: ListShape, candidates: int) -> ListBatch:
    """Pad examples to a shape and a number of candidates.

    Raises:
      InputError: an example is larger, or contradicts itself.
    """
    b, n, r = len(examples), shape.lists, shape.steps
    batch = ListBatch(
        _candidates(examples, candidates, shape),
        np.zeros((b, n, r), np.int32),
        np.zeros((b, n), np.int32),
        supervised=np.zeros((b, n), np.float32),
        reference=np.zeros((b, n, r), np.float32),
        behavior=np.zeros((b, n, r), np.float32),
        rewards=np.zeros((b, n), np.float32),
        counts=np.zeros((b, n), np.float32),
        preferred=np.zeros(b, bool),
        relevance=np.zeros((b, candidates), np.float32),
        dropped_ids=np.zeros(b, np.int32),
        cut=np.zeros(b, np.int32),
        step_rewards=np.zeros((b, n, r), np.float32) if shape.step_rewards else None,
        step_ends=np.zeros((b, n, r), bool) if shape.step_rewards else None,
        following=np.zeros((b, candidates + 1), bool) if shape.states else None,
    )
    for row, example in enumerate(examples):
        if len(example.lists) > n or max(map(len, example.lists), default=0) >= r:
            raise InputError(
                f"example '{example.id}': {len(example.lists)} lists of at most "
                f"{max(map(len, example.lists), default=0)} passages do not fit {n} of {r - 1}"
            )
        if example.preferred and len(example.lists) < 2:
            raise InputError(f"example '{example.id}' prefers a list to none: it needs two")
        for i, one in enumerate([*example.lists, example.ranking]):
            if wrong := valid_list(one, example.pairs.count):
                what = "ranking" if i == len(example.lists) else "list"
                raise InputError(f"example '{example.id}': the {what} {list(one)} {wrong}")
        for i, one in enumerate(example.lists):
            batch.branches[row, i, : len(one)] = one
            batch.branch_lengths[row, i] = 1 if shape.states else len(one) + 1
        for name in ("supervised", "rewards", "counts"):
            values = getattr(example, name)
            if values:
                _one_each(example, name, values, len(example.lists))
                getattr(batch, name)[row, : len(values)] = values
        for name in ("reference", "behavior"):
            steps = getattr(example, name)
            if steps:
                _one_each(example, name, steps, len(example.lists))
                for i, values in enumerate(steps):
                    _one_each(example, f"{name}[{i}]", values, len(example.lists[i]) + 1)
                    getattr(batch, name)[row, i, : len(values)] = values
        for i, rewards in enumerate(example.step_rewards if shape.step_rewards else ()):
            place_steps(batch, row, i, range(len(rewards)), rewards)
        batch.preferred[row] = example.preferred
        batch.dropped_ids[row] = example.dropped_ids
        batch.cut[row] = example.pairs.cut
        if shape.states:
            batch.following[row, list(example.following)] = True
        for place, i in enumerate(example.ranking):
            batch.relevance[row, i - 1] = len(example.ranking) - place
    return batch


def _candidates(examples: Sequence[ListExample], n: int, shape: ListShape) -> CandidateBatch:
    pairs = [example.pairs for example in examples]
    if all(example.vectors is None for example in examples):
        return collate_pairs(pairs, n, shape.pieces, shape.room)
    kept = []
    for example in examples:
        assert example.vectors is not None and example.scores is not None
        kept.append((example.vectors, example.scores))
    return collate_vectors(pairs, kept, n)


def _one_each(example: ListExample, name: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise InputError(
            f"example '{example.id}': {name} has {len(values)} values for {count} lists or steps"
        )


def place_rows(mesh: Mesh, batch: Any) -> Any:
    """Put this process's rows of a tree of arrays on the mesh, as a part of the whole batch."""
    sharding, shards = named(mesh, ("batch",)), batch_shards(mesh)
    here = len(process_rows(mesh, shards))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            sharding, x, (len(x) // here * shards, *x.shape[1:])
        ),
        batch,
    )
