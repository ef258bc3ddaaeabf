"""Terms of group objectives: REINFORCE leave-one-out and GRPO on all samples of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.objectives import group
from dynarag_jax.objectives.scores import LossInputs, Term, Value, over, summed


@dataclass(frozen=True)
class _Group(Term):
    """What group objectives share: clipping, the pull toward the reference, their figures."""

    reads_groups: ClassVar[bool] = True
    reads_behavior: ClassVar[bool] = True

    clip_low: float = 0.2
    """the ratio to the sampling policy counts from 1 minus this ..."""
    clip_high: float = 0.2
    """... to 1 plus this"""
    kl: float = 0.0
    """strength of the pull toward the reference"""
    credit: float = 0.0
    """share of a token's advantage that comes from the rewards of its step and those behind it
    (process supervision, arXiv 2402.03300, section 4.1.3) and not from the list's reward; needs
    rollouts with ``credit``"""

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "kl"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"{type(self).__name__}: {name} = {getattr(self, name)} must not be negative"
                )
        if not 0 <= self.credit <= 1:
            raise InputError(
                f"{type(self).__name__}: credit = {self.credit} must lie between 0 and 1"
            )

    @property
    def reads_steps(self) -> bool:
        return self.credit > 0

    def _with_steps(
        self,
        advantages: jax.Array,
        scores: LossInputs,
        counts: jax.Array,
        where: jax.Array,
        scale: bool,
        leave_out: bool = False,
    ) -> jax.Array:
        """Advantages [B, N] of lists as those [B, N, R] of tokens, the steps' share in them."""
        whole = jnp.broadcast_to(advantages[..., None], where.shape)
        if not self.credit:
            return whole
        assert scores.step_rewards is not None and scores.step_ends is not None
        steps = group.step_advantages(
            scores.step_rewards, scores.step_ends & where, counts, scale=scale, leave_out=leave_out
        )
        return (1 - self.credit) * whole + self.credit * steps

    @property
    def reads_reference(self) -> bool:
        return self.kl > 0


def _samples(scores: LossInputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows that are groups [B], counts [B, N] in them, and their real tokens [B, N, R]."""
    size = scores.counts.sum(-1)
    rows = size > 1
    counts = jnp.where(rows[:, None], scores.counts, 0)
    return rows, counts, scores.token_mask & (counts > 0)[..., None]


def _mean(x: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean [B] over the samples of each group of something [B, N]."""
    size = jnp.maximum(counts.sum(-1), 1)
    return jnp.where(counts > 0, x * counts, 0.0).sum(-1) / size


@dataclass(frozen=True)
class Rloo(_Group):
    """REINFORCE leave-one-out (arXiv 2402.14740): advantage over the other samples' mean.

    A branch is one action. On rollouts that an earlier policy sampled, the gradient is weighted by
    the clipped ratio of a branch's probabilities. ``kl`` lowers the reward of a branch by
    ``kl * log(sampling policy / reference)``.
    """

    def __call__(self, scores: LossInputs) -> Value:
        rows, counts, where = _samples(scores)
        logps, behavior, reference = (
            summed(x, where) for x in (scores.constrained_logps, scores.behavior, scores.reference)
        )
        rewards = scores.rewards
        if self.kl:
            rewards = rewards - self.kl * (behavior - reference)
        advantages = group.leave_one_out(rewards, counts)
        if self.credit:
            # Each token is an action: what is behind it is what it leads to.
            by_token = self._with_steps(advantages, scores, counts, where, False, leave_out=True)
            ratio = jnp.where(where, scores.constrained_logps - scores.behavior, 0.0)
            out = group.clipped_surrogate(ratio, by_token, self.clip_low, self.clip_high)
            loss = summed(out.loss, where)
            clipped = summed(out.clipped.astype(jnp.float32), where) / jnp.maximum(where.sum(-1), 1)
        else:
            ratio = logps - behavior
            out = group.clipped_surrogate(ratio, advantages, self.clip_low, self.clip_high)
            loss, clipped = out.loss, out.clipped.astype(jnp.float32)
        figures = {
            "reward": _mean(scores.rewards, counts),
            "clipped": _mean(clipped, counts),
            "kl_to_sampler": _mean(behavior - logps, counts),
        }
        if self.kl:
            figures["kl"] = _mean(logps - reference, counts)
        return over(rows, _mean(loss, counts), figures)


@dataclass(frozen=True)
class Grpo(_Group):
    """Group relative policy optimization (arXiv 2402.03300, equation 3): per-token ratios.

    ``kl`` adds its k3 estimate of the divergence from the reference to the loss of each token. Dr.
    GRPO (arXiv 2503.20783) is ``scale=False, normalize='none'``.
    """

    scale: bool = True
    """divide advantages by the standard deviation of the group's rewards"""
    normalize: Literal["sequence", "tokens", "none"] = "sequence"
    """sequence: mean over each branch's tokens, then over samples (the paper's); tokens: mean over
    all tokens of the batch (DAPO, arXiv 2503.14476); none: sum over tokens, mean over samples"""
    ratio: Literal["token", "sequence"] = "token"
    """token: a ratio for each token; sequence: the geometric mean over the branch (GSPO,
    arXiv 2507.18071)"""
    weighted_kl: bool = False
    """multiply the KL estimate by the ratio, so that its gradient is unbiased (arXiv 2512.02556)"""

    def __call__(self, scores: LossInputs) -> Value:
        rows, counts, where = _samples(scores)
        logps = jnp.where(where, scores.constrained_logps, 0.0)
        behavior = jnp.where(where, scores.behavior, 0.0)
        tokens = where.sum(-1)
        log_ratio = logps - behavior
        if self.ratio == "sequence":
            mean = log_ratio.sum(-1) / jnp.maximum(tokens, 1)
            log_ratio = jnp.broadcast_to(mean[..., None], logps.shape)
        advantages = group.relative(scores.rewards, counts, scale=self.scale)[..., None]
        if self.credit:
            advantages = self._with_steps(advantages[..., 0], scores, counts, where, self.scale)
        out = group.clipped_surrogate(log_ratio, advantages, self.clip_low, self.clip_high)
        loss, kl = out.loss, jnp.zeros_like(logps)
        if self.kl:
            kl = group.kl_estimate(logps, jnp.where(where, scores.reference, 0.0))
            kl = kl * jnp.exp(log_ratio) if self.weighted_kl else kl
            loss = loss + self.kl * kl

        def per_branch(x: jax.Array, mean: bool) -> jax.Array:
            total = jnp.where(where, x, 0.0).sum(-1)
            return total / jnp.maximum(tokens, 1) if mean else total

        loss = per_branch(loss, self.normalize == "sequence")
        of_tokens = {
            "clipped": out.clipped.astype(jnp.float32), "kl": kl, "kl_to_sampler": behavior - logps,
        }  # fmt: skip
        if self.normalize == "tokens":
            figures = {n: (per_branch(x, False) * counts).sum() for n, x in of_tokens.items()}
            figures["reward"] = (scores.rewards * counts * tokens).sum()
            return Value((loss * counts).sum(), (tokens * counts).sum(), figures)
        # Whatever the loss is divided by, figures are means over tokens.
        figures = {n: _mean(per_branch(x, True), counts) for n, x in of_tokens.items()}
        figures["reward"] = _mean(scores.rewards, counts)
        return over(rows, _mean(loss, counts), figures)


@dataclass(frozen=True)
class Dro(Term):
    """Direct retrieval-augmented optimization: lists as latent variables (arXiv 2505.03075).

    An importance-weighted EM step: each sampled list is imitated by its share in making the
    reference answer likely, ``-sum of w_i log pi(list_i)`` with constant
    ``w_i = softmax of log p(answer | list_i)``. The rewards are the likelihoods, so the rollouts
    are to be rewarded by ``likelihood`` alone. A list sampled several times counts as often, which
    makes the policy the proposal; the E-step's quality is the figure ``effective_samples``.
    """

    reads_groups: ClassVar[bool] = True
    reads_likelihoods: ClassVar[bool] = True

    temperature: float = 1.0
    """of the weights, ``p**(1/temperature)``; above 1 they are more even"""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"Dro: temperature = {self.temperature} must be positive")

    def __call__(self, scores: LossInputs) -> Value:
        rows, counts, where = _samples(scores)
        likelihoods = jnp.maximum(scores.rewards, 0.0)
        weights = group.posterior(likelihoods ** (1 / self.temperature), counts)
        rows = rows & (weights.sum(-1) > 0)
        loss = -(weights * summed(scores.constrained_logps, where)).sum(-1)
        one = weights / jnp.maximum(counts, 1)
        squares = (counts * jnp.square(one)).sum(-1)
        figures = {
            "likelihood": _mean(likelihoods, counts),
            "effective_samples": 1 / jnp.maximum(squares, 1e-30),
        }
        return over(rows, loss, figures)
