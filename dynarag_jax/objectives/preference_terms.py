"""Terms of preference: a chosen branch against a rejected one, or all branches by their rewards.

They serve lists and answers alike: log-probabilities are those of the policy, which for a list are
under its grammar and for an answer over the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.objectives import preference, ranked
from dynarag_jax.objectives.preference import Preference
from dynarag_jax.objectives.scores import LossInputs, Term, Value, over, summed
from dynarag_jax.objectives.supervised import token_nll


def _require(right: bool, term: Term, name: str, mend: str) -> None:
    if not right:
        raise InputError(f"{type(term).__name__}: {name} = {getattr(term, name)} {mend}")


@dataclass(frozen=True)
class _Pairwise(Term):
    """A mean over pairs; ``pair`` makes the loss from both branches' log-probabilities."""

    reads_pairs: ClassVar[bool] = True

    beta: float = 0.1
    """strength of the pull toward the reference"""
    chosen_nll: float = 0.0
    """weight, beside the loss, of the chosen branch's likelihood per token: RPO (arXiv 2404.19733,
    equation 1) where the loss is DPO's"""

    def __post_init__(self) -> None:
        _require(self.beta > 0, self, "beta", "must be positive")

    @property
    def per_token(self) -> bool:
        """Whether log-probabilities are averaged over a branch's tokens."""
        return False

    @property
    def reads_reference(self) -> bool:
        return True

    def pair(
        self, chosen: jax.Array, rejected: jax.Array, chosen_ref: jax.Array, rejected_ref: jax.Array
    ) -> Preference:
        """The loss [B] of log-probabilities [B], in the order of ``preference.dpo_sigmoid``."""
        raise TypeError(f"{type(self).__name__} does not say how to score a pair")

    def __call__(self, scores: LossInputs) -> Value:
        rows = scores.preferred
        # Other rows are left out here already: a list outside the grammar has probability 0 there.
        where = (scores.token_mask & rows[:, None, None])[:, :2]
        logps = summed(scores.constrained_logps[:, :2], where)
        reference = summed(scores.reference[:, :2], where)
        tokens = jnp.maximum(where.sum(-1), 1)
        scale = 1 / tokens if self.per_token else jnp.ones_like(logps)
        ours, theirs = logps * scale, reference * scale
        pair = self.pair(ours[:, 0], ours[:, 1], theirs[:, 0], theirs[:, 1])
        nll = token_nll(scores.constrained_logps[:, 0], where=where[:, 0]) / tokens[:, 0]
        mean = {
            "preference": pair.loss,
            "chosen_nll": nll,
            "accuracy": (pair.chosen_reward > pair.rejected_reward).astype(jnp.float32),
            "margin": pair.chosen_reward - pair.rejected_reward,
            "chosen_reward": pair.chosen_reward,
            "rejected_reward": pair.rejected_reward,
            "chosen_logp": logps[:, 0],
            "rejected_logp": logps[:, 1],
        }
        total = pair.loss + self.chosen_nll * nll if self.chosen_nll else pair.loss
        return over(rows, total, mean)


@dataclass(frozen=True)
class Dpo(_Pairwise):
    """Direct preference optimization (arXiv 2305.18290); conservative with label smoothing."""

    label_smoothing: float = 0.0
    """share of preferences taken to be the wrong way round (conservative DPO)"""
    length_normalized: bool = False
    """take log-probabilities per token, so that long branches weigh no more than short ones"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.label_smoothing < 0.5, self, "label_smoothing", "must lie in [0, 0.5)")

    @property
    def per_token(self) -> bool:
        return self.length_normalized

    def pair(
        self, chosen: jax.Array, rejected: jax.Array, chosen_ref: jax.Array, rejected_ref: jax.Array
    ) -> Preference:
        return preference.dpo_sigmoid(
            chosen, rejected, chosen_ref, rejected_ref, self.beta, self.label_smoothing
        )


@dataclass(frozen=True)
class RobustDpo(_Pairwise):
    """DPO, unbiased where a share of the preferences is flipped (arXiv 2403.00409)."""

    flipped: float = 0.1
    """share of the preferences that are the wrong way round"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.flipped < 0.5, self, "flipped", "must lie in [0, 0.5)")

    def pair(
        self, chosen: jax.Array, rejected: jax.Array, chosen_ref: jax.Array, rejected_ref: jax.Array
    ) -> Preference:
        return preference.dpo_robust(
            chosen, rejected, chosen_ref, rejected_ref, self.beta, self.flipped
        )


@dataclass(frozen=True)
class Hinge(_Pairwise):
    """Hinge on the margin of DPO's rewards (SLiC; arXiv 2309.06657)."""

    def pair(
        self, chosen: jax.Array, rejected: jax.Array, chosen_ref: jax.Array, rejected_ref: jax.Array
    ) -> Preference:
        return preference.hinge(chosen, rejected, chosen_ref, rejected_ref, self.beta)


@dataclass(frozen=True)
class Ipo(_Pairwise):
    """Identity preference optimization (arXiv 2310.12036), per token as its authors run it."""

    length_normalized: bool = True
    """take log-probabilities per token; False takes the paper's sums"""

    @property
    def per_token(self) -> bool:
        return self.length_normalized

    def pair(
        self, chosen: jax.Array, rejected: jax.Array, chosen_ref: jax.Array, rejected_ref: jax.Array
    ) -> Preference:
        return preference.ipo(chosen, rejected, chosen_ref, rejected_ref, self.beta)


@dataclass(frozen=True)
class SimPo(_Pairwise):
    """SimPO: the average log-probability as reward, without a reference (arXiv 2405.14734)."""

    beta: float = 2.0
    """scale of the rewards"""
    gamma: float = 1.0
    """margin the rewards should have"""

    @property
    def per_token(self) -> bool:
        return True

    @property
    def reads_reference(self) -> bool:
        return False

    def pair(
        self, chosen: jax.Array, rejected: jax.Array, chosen_ref: jax.Array, rejected_ref: jax.Array
    ) -> Preference:
        del chosen_ref, rejected_ref
        return preference.simpo(chosen, rejected, self.beta, self.gamma)


@dataclass(frozen=True)
class _Ranked(Term):
    """A mean over groups of a loss on implicit rewards and the rewards that were earned."""

    beta: float = 0.1
    """strength of the pull toward the reference"""

    reads_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require(self.beta > 0, self, "beta", "must be positive")

    @property
    def reads_reference(self) -> bool:
        return True

    def loss(self, implicit: jax.Array, rewards: jax.Array, where: jax.Array) -> jax.Array:
        """[B, N] implicit rewards, rewards and branches that exist -> [B]."""
        raise TypeError(f"{type(self).__name__} does not say how to score a ranking")

    def __call__(self, scores: LossInputs) -> Value:
        exist = scores.counts > 0
        highest = jnp.where(exist, scores.rewards, -jnp.inf).max(-1)
        lowest = jnp.where(exist, scores.rewards, jnp.inf).min(-1)
        rows = highest > lowest
        where = exist & rows[:, None]
        tokens = scores.token_mask & where[..., None]
        logps, reference = (summed(x, tokens) for x in (scores.constrained_logps, scores.reference))
        implicit = self.beta * (logps - reference)
        best = where & (scores.rewards >= highest[:, None])
        worst = where & (scores.rewards <= lowest[:, None])

        def mean(x: jax.Array, of: jax.Array) -> jax.Array:
            return jnp.where(of, x, 0.0).sum(-1) / jnp.maximum(of.sum(-1), 1)

        ordered = rows[:, None, None] & where[:, :, None] & where[:, None, :]
        ordered &= scores.rewards[:, :, None] > scores.rewards[:, None, :]
        agrees = ordered & (implicit[:, :, None] > implicit[:, None, :])
        chosen, rejected = mean(implicit, best), mean(implicit, worst)
        figures = {
            "accuracy": agrees.sum((1, 2)) / jnp.maximum(ordered.sum((1, 2)), 1),
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_logp": mean(logps, best),
            "rejected_logp": mean(logps, worst),
        }
        return over(rows, self.loss(implicit, scores.rewards, where), figures)


@dataclass(frozen=True)
class PlackettLuce(_Ranked):
    """DPO over the ranking of all sampled branches by reward (arXiv 2305.18290, appendix A.3)."""

    def loss(self, implicit: jax.Array, rewards: jax.Array, where: jax.Array) -> jax.Array:
        return ranked.plackett_luce(implicit, rewards, where=where)


@dataclass(frozen=True)
class LipoLambda(_Ranked):
    """LiPO-lambda: pairs weighted by reward gap and rank (arXiv 2402.01878)."""

    def loss(self, implicit: jax.Array, rewards: jax.Array, where: jax.Array) -> jax.Array:
        return ranked.lipo_lambda(implicit, rewards, where=where)
