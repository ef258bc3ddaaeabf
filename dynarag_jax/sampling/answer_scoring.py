"""Answers in rollouts: what of a reward they earned, their log-probabilities, and references'."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from dynarag_jax.errors import InputError
from dynarag_jax.files import fingerprint
from dynarag_jax.prompts import answer_tokens
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import LIST_TERMS, RewardWeights
from dynarag_jax.rewards.scorer import Likelihood
from dynarag_jax.rollout_records import Answers, Rollout, Trajectory
from dynarag_jax.sampling.policy_sampler import PolicySampler


def answer_reward(trajectory: Trajectory, reward: RewardWeights) -> float:
    """The part of a trajectory's reward that its answer earned, from the terms on record.

    Terms on record as missing add nothing.

    Raises:
      InputError: a term that carries weight is not on record.
    """
    weights = {n: w for n, w in reward.terms().items() if n not in LIST_TERMS}
    carrying = {n: w for n, w in weights.items() if w and n not in trajectory.missing}
    if lacking := [name for name in carrying if name not in trajectory.terms]:
        raise InputError(
            f"the reward weighs '{lacking[0]}', and the rollouts have recorded only "
            f"{', '.join(trajectory.terms) or 'no terms'}; set its weight to 0"
        )
    if not any(weights.values()):
        raise InputError(
            f"no reward term judges answers: {' and '.join(LIST_TERMS)} judge lists; weigh another"
        )
    return math.fsum(weight * trajectory.terms[name] for name, weight in carrying.items())


def with_answers(
    reference: PolicySampler,
    questions: Sequence[Question],
    rollouts: Sequence[Rollout],
    branches: int,
    reward: RewardWeights,
) -> list[Rollout]:
    """Rollouts with their distinct answers, all scored as answers from the best list's passages.

    A preference between answers needs one prompt. Answers were given from different lists; the
    passages of the list with the highest reward are those with which the better answer can be
    known to be better, so that all are compared there.

    Args:
      reference: the model behind the answers' reference log-probabilities.
      questions: in the order of ``rollouts``.
      branches: the most distinct answers of one rollout.
      reward: its terms on answers rank them; those that judge lists are left out.
    """
    limit, tokenizer = reference.prompts.answer_tokens, reference.policy.tokenizer
    contexts, groups = [], []
    for rollout in rollouts:
        if not rollout.trajectories:
            raise InputError(f"question '{rollout.id}': the rollout has no lists")
        # Rewards that lack a term compare with none, unless all of them do.
        whole = [t for t in rollout.trajectories if not t.missing]
        best = max(whole or rollout.trajectories, key=lambda t: t.reward)
        contexts.append(best.list)
        # By tokens, the best list's first: what differs only beyond the longest answer is one.
        distinct: dict[tuple[int, ...], Trajectory] = {}
        for t in (best, *whole, *rollout.trajectories):
            distinct.setdefault(tuple(answer_tokens(tokenizer, t.answer, limit)), t)
        groups.append(distinct)
    logps = reference.answer_logps(questions, contexts, [list(g) for g in groups], branches)
    scored = []
    for question, rollout, context, group, each in zip(
        questions, rollouts, contexts, groups, logps, strict=True
    ):
        prompt = reference.maker.answer_prompt(question, context)
        answers = Answers(
            list=context,
            prompt=fingerprint(list(prompt.tokens)),
            texts=tuple(t.answer for t in group.values()),
            rewards=tuple(answer_reward(t, reward) for t in group.values()),
            reference_logps=tuple(each),
            missing=tuple(i for i, t in enumerate(group.values()) if not _judged(t, reward)),
        )
        scored.append(replace(rollout, answers=answers))
    return scored


def _judged(trajectory: Trajectory, reward: RewardWeights) -> bool:
    """Whether every term that judges its answer could be had."""
    return not any(n not in LIST_TERMS and reward.terms().get(n) for n in trajectory.missing)


GOLD_ANSWERS = 8
"""References of a question whose likelihood is asked for at most, the first ones: some have dozens
of aliases, and each is a branch of the prompt."""


def references_of(sampler: PolicySampler) -> Callable[[Question], list[list[int]]]:
    """Finds the tokens of a question's references whose likelihood is asked for.

    The first ``GOLD_ANSWERS`` that are no longer than an answer may be; none where the question is
    longer than a prompt even without passages.
    """
    limit, tokenizer = sampler.prompts.answer_tokens, sampler.policy.tokenizer
    known: dict[str, bool] = {}

    def fits(question: Question) -> bool:
        if question.text not in known:
            try:
                sampler.maker.answer_prompt(question, ())
                known[question.text] = True
            except InputError:
                known[question.text] = False
        return known[question.text]

    def references(question: Question) -> list[list[int]]:
        spelled = [answer_tokens(tokenizer, a, limit + 1) for a in question.answers if a.strip()]
        short = [g for g in spelled if len(g) <= limit][:GOLD_ANSWERS]
        return short if short and fits(question) else []

    return references


def gold_likelihood(sampler: PolicySampler) -> Likelihood:
    """How likely ``sampler`` finds a reference answer, given a list's passages.

    The geometric mean of the probabilities of its tokens, end of text included, so that a long
    reference is not punished; the best of those of ``references_of``, None where there is none.
    """
    references = references_of(sampler)

    def likelihood(pairs: Sequence[tuple[Question, tuple[int, ...]]]) -> list[float | None]:
        golds = [references(question) for question, _ in pairs]
        some = [i for i, gold in enumerate(golds) if gold]
        logps = sampler.answer_logps(
            [pairs[i][0] for i in some],
            [pairs[i][1] for i in some],
            [golds[i] for i in some],
            GOLD_ANSWERS,
        )
        likelihoods: list[float | None] = [None] * len(pairs)
        for i, each in zip(some, logps, strict=True):
            likelihoods[i] = max(math.exp(math.fsum(one) / len(one)) for one in each)
        return likelihoods

    return likelihood
