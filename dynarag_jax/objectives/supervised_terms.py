"""Terms of supervised training: token likelihood, and the ranking of ids at the first place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.objectives import listwise
from dynarag_jax.objectives.scores import LossInputs, Term, Value
from dynarag_jax.objectives.supervised import token_nll


@dataclass(frozen=True)
class TokenNll(Term):
    """Mean negative log-likelihood per token of the supervised branches (behavior cloning, SFT).

    It uses the unconstrained log-probabilities: the model must learn the form of a list, too, so
    that what is exported writes lists on any server.
    """

    def __call__(self, scores: LossInputs) -> Value:
        nll = token_nll(scores.unconstrained_logps, where=scores.token_mask)
        tokens = scores.token_mask.sum(-1)
        return Value((nll * scores.supervised).sum(), (tokens * scores.supervised).sum(), {})


@dataclass(frozen=True)
class SetNll(Term):
    """Mean negative log-likelihood, per step, of supervised lists in any order of theirs.

    For experts that say which passages are needed and not in which order: the model chooses the
    order, and no passage is held down at a step because the file named another first. Encoder
    policies alone compute it: a sum over all orders, exactly; of one that reads again what was
    chosen, the mean over states, one of every length, of how likely a needed passage, or stop
    behind the last, comes next.
    """

    reads_sets: ClassVar[bool] = True

    def __call__(self, scores: LossInputs) -> Value:
        assert scores.set_logps is not None
        steps = scores.token_mask.sum(-1)
        there = (scores.supervised > 0) & (steps > 0)
        nll = -jnp.where(there, scores.set_logps, 0.0)
        return Value((nll * scores.supervised).sum(), (steps * scores.supervised).sum(), {})


@dataclass(frozen=True)
class PromptNll(Term):
    """Mean negative log-likelihood per prompt token; makes copying emerge in small models."""

    reads_prompt: ClassVar[bool] = True

    again: float = 1.0
    """weight of a token that follows the one before it as it did earlier in the prompt, such as
    those of a question that is asked twice: what a model can copy it learns to copy sooner"""

    def __post_init__(self) -> None:
        if not self.again >= 0:
            raise InputError(f"PromptNll: again = {self.again} must not be negative")

    @property
    def reads_again(self) -> bool:
        return self.again != 1

    def __call__(self, scores: LossInputs) -> Value:
        assert scores.prompt_logps is not None
        rows = (scores.supervised > 0).any(-1)[:, None]
        where = scores.prompt_mask & rows
        if not self.reads_again:
            return Value(token_nll(scores.prompt_logps, where=where).sum(), where.sum(), {})
        assert scores.prompt_again is not None
        weights = jnp.where(where, jnp.where(scores.prompt_again, self.again, 1.0), 0.0)
        logps = jnp.where(where, scores.prompt_logps, 0.0)
        return Value(-(logps * weights).sum(), weights.sum(), {})


@dataclass(frozen=True)
class _Ranking(Term):
    """A mean, over supervised rows that rank something, of a loss on the first id's scores."""

    reads_ids: ClassVar[bool] = True

    def loss(self, scores: jax.Array, relevance: jax.Array, where: jax.Array) -> jax.Array:
        """[B, I] scores, relevance and shown ids -> [B]."""
        raise TypeError(f"{type(self).__name__} does not say how to score a ranking")

    def __call__(self, scores: LossInputs) -> Value:
        assert scores.id_scores is not None
        loss = self.loss(scores.id_scores, scores.relevance, scores.shown)
        ranked = ((scores.relevance > 0).any(-1)) & (scores.supervised[:, 0] > 0)
        return Value(jnp.where(ranked, loss, 0.0).sum(), ranked.sum(), {})


@dataclass(frozen=True)
class ListMle(_Ranking):
    """Listwise supervision: ListMLE over the candidate ids at the first id's place (by rax).

    As in FIRST (arXiv 2406.15657), where a ranking loss is joined with the token likelihood.
    """

    def loss(self, scores: jax.Array, relevance: jax.Array, where: jax.Array) -> jax.Array:
        return listwise.list_mle(scores, relevance, where=where)


@dataclass(frozen=True)
class ListNet(_Ranking):
    """Listwise supervision: softmax cross-entropy over the ids at the first id's place."""

    graded: bool = True
    """the target falls from an expert's first id to its last; False takes all listed ids alike"""

    def loss(self, scores: jax.Array, relevance: jax.Array, where: jax.Array) -> jax.Array:
        if not self.graded:
            relevance = (relevance > 0).astype(relevance.dtype)
        return listwise.list_net(scores, relevance, where=where)


@dataclass(frozen=True)
class RankNet(_Ranking):
    """Listwise supervision: logistic loss of pairs of ids at the first id's place."""

    by_rank: bool = True
    """weigh a pair by 1 / (sum of its ranks), as FIRST does; False weighs all pairs alike"""

    def loss(self, scores: jax.Array, relevance: jax.Array, where: jax.Array) -> jax.Array:
        return listwise.rank_net(scores, relevance, where=where, by_rank=self.by_rank)


@dataclass(frozen=True)
class LambdaLoss(_Ranking):
    """Listwise supervision: LambdaLoss over the ids at the first id's place (by rax)."""

    normalize: bool = True
    """weigh pairs by what they do to nDCG; False by DCG"""

    def loss(self, scores: jax.Array, relevance: jax.Array, where: jax.Array) -> jax.Array:
        return listwise.lambda_loss(scores, relevance, where=where, normalize=self.normalize)
