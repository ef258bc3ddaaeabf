"""What a term reads and returns: the arrays a forward pass knows about a batch, and a sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp


class LossInputs(NamedTuple):
    """What a forward pass knows about a batch; every term reads from here.

    Attributes:
      unconstrained_logps: [B, N, R] token log-probabilities over the whole vocabulary.
      constrained_logps: [B, N, R] the same under the list grammar; for answers as
        ``unconstrained_logps``.
      token_mask: [B, N, R] bool, real branch tokens.
      supervised: [B, N] weight of each branch in supervised terms; 0 for sampled branches.
      preferred: [B] bool, rows whose branch 0 is preferred to branch 1.
      reference: [B, N, R] token log-probabilities under the reference, constrained.
      behavior: [B, N, R] the same under the weights that sampled the branches.
      rewards: [B, N] rewards of sampled branches.
      counts: [B, N] samples that each branch of a group stands for; 0 for what is no group.
      step_rewards: [B, N, R] the reward of each step of a list, at its last token; ``step_ends``
        [B, N, R] bool says where that is. Both None where branches are no sampled lists.
      decisions: [B, N, R] log-probability of each decision to stop or go on, at the end of its
        step, where ``decided`` [B, N, R] bool says that there was one; both None as these.
      prompt_logps: [B, P - 1], or None where no term asks for them.
      prompt_mask: [B, P - 1] bool.
      prompt_again: [B, P - 1] bool, tokens that follow the one before them as they did earlier in
        the prompt, or None.
      id_scores: [B, I] scores of the ids as a list's first, or None.
      relevance: [B, I] the expert's ranking: k for its first id down to 1, 0 for the others.
      shown: [B, I] bool, the ids that exist.
      set_logps: [B, N] log-probability of each branch's ids in any order, or None.
    """

    unconstrained_logps: jax.Array
    constrained_logps: jax.Array
    token_mask: jax.Array
    supervised: jax.Array
    preferred: jax.Array
    reference: jax.Array
    behavior: jax.Array
    rewards: jax.Array
    counts: jax.Array
    prompt_logps: jax.Array | None
    prompt_mask: jax.Array
    id_scores: jax.Array | None
    relevance: jax.Array
    shown: jax.Array
    step_rewards: jax.Array | None = None
    step_ends: jax.Array | None = None
    decisions: jax.Array | None = None
    decided: jax.Array | None = None
    set_logps: jax.Array | None = None
    prompt_again: jax.Array | None = None


class Value(NamedTuple):
    """A term on a batch: its loss is ``total / count``, so that shards and microbatches add up."""

    total: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    figures: dict[str, jax.Array]
    """sums over the same ``count``, reported as means"""


@dataclass(frozen=True)
class Term:
    """One summand of the loss.

    A class says by its ``reads_*`` which arrays it needs beyond the log-probabilities: those of
    the forward pass are computed, and those of the data asked for, only where a term reads them.
    """

    reads_prompt: ClassVar[bool] = False
    """of the forward pass: log-probabilities of the prompt"""
    reads_ids: ClassVar[bool] = False
    """of the forward pass: scores of the first id"""
    reads_sets: ClassVar[bool] = False
    """of the forward pass: log-probabilities of lists in any order of theirs"""
    reads_pairs: ClassVar[bool] = False
    """of the data: a branch that is preferred to another"""
    reads_groups: ClassVar[bool] = False
    """of the data: all branches sampled for a prompt, with rewards and counts"""
    reads_behavior: ClassVar[bool] = False
    """of the data: log-probabilities under the weights that sampled"""
    reads_likelihoods: ClassVar[bool] = False
    """of the data: rewards that are the likelihood of a reference answer and nothing else"""

    weight: float = 0.0
    """factor of this term in the sum; 0 leaves it out"""

    @property
    def reads_again(self) -> bool:
        """Of the prompt: which of its tokens it says again."""
        return False

    @property
    def reads_steps(self) -> bool:
        """Of the data: rewards of the steps of lists."""
        return False

    @property
    def reads_reference(self) -> bool:
        """Of the data: log-probabilities under the reference."""
        return False

    def __call__(self, scores: LossInputs) -> Value:
        raise TypeError(f"{type(self).__name__} does not say how to score a batch")


def summed(logps: jax.Array, where: jax.Array) -> jax.Array:
    """Sum of token log-probabilities [..., R] over the real tokens of each branch, [...]."""
    return jnp.where(where, logps, 0.0).sum(-1)


def over(rows: jax.Array, total: jax.Array, mean: dict[str, jax.Array]) -> Value:
    """The value of a term that is a mean over ``rows`` [B] bool of ``total`` [B] and figures."""
    figures = {name: jnp.where(rows, x, 0.0).sum() for name, x in mean.items()}
    return Value(jnp.where(rows, total, 0.0).sum(), rows.sum(), figures)
