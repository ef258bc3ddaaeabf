"""Log-probabilities of rollouts that stand: under the policy that sampled, or under a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import tokenizer_fingerprint
from dynarag_jax.files import fingerprint
from dynarag_jax.policy.thoughts import ThoughtSpelling
from dynarag_jax.records import Question, valid_list
from dynarag_jax.rollout_records import Rollout, Thought, Trajectory
from dynarag_jax.sampling.policy_sampler import PolicySampler

Role = Literal["behavior", "reference"]
"""What weights are to a rollout: those that sampled it, or those it is compared with."""


def _list_logps(
    sampler: PolicySampler,
    questions: Sequence[Question],
    rollouts: Sequence[Rollout],
    branches: int,
) -> list[list[tuple[float, ...]]]:
    """Log-probabilities by token of every rollout's lists.

    Raises:
      InputError: a list cannot be written over this model's prompt.
    """
    longest, spelling = sampler.prompts.max_list, sampler.policy.spelling.thought
    for question, rollout in zip(questions, rollouts, strict=True):
        shown = sampler.maker.rerank_prompt(question).shown
        for t in rollout.trajectories:
            wrong = valid_list(t.list, shown)
            if not wrong and len(t.list) > longest:
                wrong = f"is longer than prompts.max_list = {longest}"
            if wrong:
                raise InputError(
                    f"question '{question.id}': the list {list(t.list)} {wrong}; the prompt shows "
                    f"{shown} passages: take the prompts it was sampled with"
                )
            _check_thought(spelling, question.id, t.thought)
    lists = [[t.list for t in r.trajectories] for r in rollouts]
    thoughts = [[t.thought.tokens if t.thought else () for t in r.trajectories] for r in rollouts]
    return sampler.logps(questions, lists, branches, thoughts)


def _check_thought(spelling: ThoughtSpelling | None, qid: str, thought: Thought | None) -> None:
    """Refuse a thought of another policy than the one that is to score it."""
    if spelling is None and thought is None:
        return
    if spelling is None or thought is None:
        says = "has a thought before it" if thought else "has no thought before it"
        raise InputError(
            f"question '{qid}': a list of its rollout {says}, and prompts.thought_tokens = "
            f"{spelling.limit if spelling else 0}; take the prompts it was sampled with"
        )
    try:
        found = spelling.split(thought.tokens)
    except ValueError:
        found = None
    if found != (len(thought.tokens), thought.cut):
        raise InputError(
            f"question '{qid}': the tokens of a thought of its rollout do not end as this model "
            f"closes thoughts of at most prompts.thought_tokens = {spelling.limit}; take the "
            f"model's tokenizer and the limit it was sampled with"
        )


def stamped(sampler: PolicySampler, question: Question, rollout: Rollout) -> Rollout:
    """The rollout with what its log-probabilities depend on beside the weights."""
    prompt = sampler.maker.rerank_prompt(question)
    return replace(
        rollout,
        shown=prompt.shown,
        tokenizer=tokenizer_fingerprint(sampler.policy.tokenizer),
        prompt=fingerprint(list(prompt.tokens)),
        max_list=min(sampler.prompts.max_list, sampler.prompts.ids),
        dtype=sampler.policy.cfg.dtype,
        thought_tokens=sampler.prompts.thought_tokens,
    )


def with_logps(
    sampler: PolicySampler,
    questions: Sequence[Question],
    rollouts: Sequence[Rollout],
    branches: int,
    role: Role,
) -> list[Rollout]:
    """Rollouts with log-probabilities by token of their lists, by the training forward.

    Args:
      sampler: the model that computes them.
      questions: in the order of ``rollouts``.
      branches: the most distinct lists of one rollout.
      role: what the model is to the rollouts: the policy that sampled them, or the reference.

    Raises:
      InputError: a list cannot be written over this model's prompt.
    """
    logps = _list_logps(sampler, questions, rollouts, branches)
    return [
        in_role(stamped(sampler, question, rollout), each, role, sampler.policy.fingerprint)
        for question, rollout, each in zip(questions, rollouts, logps, strict=True)
    ]


_FIELDS = {
    "behavior": ("policy", "logp", "logps"),
    "reference": ("reference", "reference_logp", "reference_logps"),
}


def in_role(
    rollout: Rollout, logps: Sequence[tuple[float, ...]], role: Role, weights: str
) -> Rollout:
    """The rollout with log-probabilities of its lists by token, under the weights of a role."""
    name, total, tokens = _FIELDS[role]
    own = (_with(t, total, tokens, x) for t, x in zip(rollout.trajectories, logps, strict=True))
    return replace(rollout, **{name: weights}, trajectories=tuple(own))


def _with(t: Trajectory, total: str, tokens: str, logps: tuple[float, ...]) -> Trajectory:
    """A trajectory with log-probabilities of its thought's tokens and its list's."""
    if t.thought is None:
        return replace(t, **{total: math.fsum(logps), tokens: logps})
    n = len(t.thought.tokens)
    return replace(
        t,
        **{total: math.fsum(logps[n:]), tokens: logps[n:]},
        thought=replace(t.thought, **{tokens: logps[:n]}),
    )
