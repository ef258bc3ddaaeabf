"""Objectives as configuration: each term is a frozen dataclass that scores a batch of branches.

A training stage sums terms by weight. To add one, write a function on arrays in this package and
a ``Term`` here that feeds it, and name the term in ``Objectives``; nothing else changes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynarag_jax.objectives.preference import dpo_sigmoid
from dynarag_jax.objectives.supervised import list_mle, token_nll


class Scores(NamedTuple):
    """What a forward pass knows about a batch; every term reads from here.

    Attributes:
      free_logps: [B, N, R] token log-probabilities over the whole vocabulary.
      policy_logps: [B, N, R] the same under the list grammar (as ``free_logps`` for answers).
      token_mask: [B, N, R] bool, real branch tokens.
      supervised: [B, N] weight of each branch in supervised terms; 0 for sampled branches.
      preferred: [B] bool, rows whose branch 0 is preferred to branch 1.
      reference: [B, N] log-probabilities of the branches under the reference, policy form.
      prompt_logps: [B, P - 1], or None where no term asks for them.
      prompt_mask: [B, P - 1] bool.
      id_scores: [B, I] scores of the ids as a list's first, or None.
      relevance: [B, I] the expert's ranking: k for its first id down to 1, 0 for the others.
      shown: [B, I] bool, the ids that exist.
    """

    free_logps: jax.Array
    policy_logps: jax.Array
    token_mask: jax.Array
    supervised: jax.Array
    preferred: jax.Array
    reference: jax.Array
    prompt_logps: jax.Array | None
    prompt_mask: jax.Array
    id_scores: jax.Array | None
    relevance: jax.Array
    shown: jax.Array


class Value(NamedTuple):
    """A term on a batch: its loss is ``total / count``, so that shards and microbatches add up."""

    total: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    figures: dict[str, jax.Array]
    """sums over the same ``count``, reported as means"""


@dataclass(frozen=True)
class Term:
    """One summand of the loss."""

    weight: float = 0.0
    """factor of this term in the sum; 0 leaves it out"""

    def __call__(self, scores: Scores) -> Value:
        raise TypeError(f"{type(self).__name__} does not say how to score a batch")


@dataclass(frozen=True)
class TokenNll(Term):
    """Mean negative log-likelihood per token of the supervised branches (behavior cloning, SFT).

    It uses the unconstrained log-probabilities: the model must learn the form of a list, too, so
    that what is exported writes lists on any server.
    """

    def __call__(self, scores: Scores) -> Value:
        nll = token_nll(scores.free_logps, where=scores.token_mask)
        tokens = scores.token_mask.sum(-1)
        return Value((nll * scores.supervised).sum(), (tokens * scores.supervised).sum(), {})


@dataclass(frozen=True)
class PromptNll(Term):
    """Mean negative log-likelihood per prompt token; makes copying emerge in small models."""

    def __call__(self, scores: Scores) -> Value:
        assert scores.prompt_logps is not None
        rows = (scores.supervised > 0).any(-1)[:, None]
        where = scores.prompt_mask & rows
        return Value(token_nll(scores.prompt_logps, where=where).sum(), where.sum(), {})


@dataclass(frozen=True)
class ListMle(Term):
    """Listwise supervision: ListMLE over the candidate ids at the first id's place.

    As in FIRST (arXiv 2406.15657), where it is joined with the token likelihood.
    """

    def __call__(self, scores: Scores) -> Value:
        assert scores.id_scores is not None
        loss = list_mle(scores.id_scores, scores.relevance, where=scores.shown)
        ranked = ((scores.relevance > 0).any(-1)) & (scores.supervised[:, 0] > 0)
        return Value(jnp.where(ranked, loss, 0.0).sum(), ranked.sum(), {})


@dataclass(frozen=True)
class Dpo(Term):
    """Direct preference optimization on pairs of sampled lists (arXiv 2305.18290)."""

    beta: float = 0.1
    """strength of the pull toward the reference"""
    chosen_nll: float = 0.0
    """weight, beside the DPO loss, of the chosen list's likelihood per token (arXiv 2404.19733)"""

    def __call__(self, scores: Scores) -> Value:
        rows = scores.preferred
        # Other rows are left out here already: a list outside the grammar has probability 0 there.
        where = scores.token_mask & rows[:, None, None]
        logps = jnp.where(where, scores.policy_logps, 0.0).sum(-1)
        pair = dpo_sigmoid(
            logps[:, 0], logps[:, 1], scores.reference[:, 0], scores.reference[:, 1], self.beta
        )
        tokens = jnp.maximum(scores.token_mask[:, 0].sum(-1), 1)
        nll = token_nll(scores.policy_logps[:, 0], where=where[:, 0]) / tokens
        mean = {
            "dpo": pair.loss,
            "chosen_nll": nll,
            "accuracy": (pair.chosen_reward > pair.rejected_reward).astype(jnp.float32),
            "margin": pair.chosen_reward - pair.rejected_reward,
            "chosen_reward": pair.chosen_reward,
            "rejected_reward": pair.rejected_reward,
            "chosen_logp": logps[:, 0],
            "rejected_logp": logps[:, 1],
        }
        total = pair.loss + self.chosen_nll * nll
        figures = {name: jnp.where(rows, x, 0.0).sum() for name, x in mean.items()}
        return Value(jnp.where(rows, total, 0.0).sum(), rows.sum(), figures)


@dataclass(frozen=True)
class Objectives:
    """The weighted sum of terms that a stream of examples is trained on."""

    nll: TokenNll = field(default_factory=lambda: TokenNll(weight=1.0))
    prompt_nll: PromptNll = PromptNll()
    listwise: ListMle = ListMle()
    dpo: Dpo = Dpo()

    def active(self) -> dict[str, Term]:
        """The terms of nonzero weight, by name."""
        terms = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: term for name, term in terms.items() if term.weight != 0}
