"""From questions to rollouts: lists, an answer from each, its reward, and log-probabilities.

Log-probabilities under the sampling policy and under the reference are computed here, once, with
the training forward, by token, and kept in the rollout with the fingerprints of the weights, the
tokenizer and the prompt behind them. Training reads them and holds no second model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import tokenizer_fingerprint
from dynarag_jax.files import fingerprint
from dynarag_jax.prompts import answer_tokens
from dynarag_jax.records import Answers, Question, Rollout, Trajectory, valid_list
from dynarag_jax.rewards.combine import RewardWeights, score_answer
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.writer import Writer


def sample_rollouts(
    writer: Writer,
    reference: Writer,
    questions: Sequence[Question],
    sampling: Sampling,
    samples: int,
    reward: RewardWeights,
    answers: bool = False,
) -> list[Rollout]:
    """Sample ``samples`` lists for each question, answer from each distinct one, reward it.

    Args:
      writer: the policy; it writes the lists and the answers.
      reference: the model behind the reference log-probabilities; may be ``writer`` itself.
      answers: gather the distinct answers, too, for preference training of the generator.
    """
    sampled = writer.lists(questions, sampling, samples)
    distinct = [tuple(dict.fromkeys(s.lists)) for s in sampled]
    asked = [(q, chosen) for q, lists in zip(questions, distinct, strict=True) for chosen in lists]
    given = iter(writer.answers(asked))
    rollouts = []
    for i, question in enumerate(questions):
        trajectories = []
        for j, chosen in enumerate(distinct[i]):
            answer = next(given)
            value, terms = score_answer(answer, question.answers, len(chosen), reward)
            count = sampled[i].lists.count(chosen)
            weight = sampled[i].weights[j] if sampled[i].weights else None
            trajectories.append(Trajectory(chosen, count, answer, terms, value, weight=weight))
        rollouts.append(
            Rollout(
                id=question.id,
                shown=sampled[i].shown,
                trajectories=tuple(trajectories),
                policy=writer.policy.fingerprint,
                reference=reference.policy.fingerprint,
            )
        )
    rollouts = with_behavior(writer, questions, rollouts, samples)
    if reference is writer:
        rollouts = [
            replace(
                r,
                trajectories=tuple(
                    replace(t, reference_logp=t.logp, reference_logps=t.logps)
                    for t in r.trajectories
                ),
            )
            for r in rollouts
        ]
    else:
        rollouts = with_reference(reference, questions, rollouts, samples)
    return with_answers(reference, questions, rollouts, samples, reward) if answers else rollouts


def _list_logps(
    writer: Writer, questions: Sequence[Question], rollouts: Sequence[Rollout], branches: int
) -> list[list[tuple[float, ...]]]:
    """Log-probabilities by token of every rollout's lists.

    Raises:
      InputError: a list cannot be written over this model's prompt.
    """
    longest = writer.prompts.max_list
    for question, rollout in zip(questions, rollouts, strict=True):
        shown = writer.maker.rerank_prompt(question).shown
        for t in rollout.trajectories:
            wrong = valid_list(t.list, shown)
            if not wrong and len(t.list) > longest:
                wrong = f"is longer than prompts.max_list = {longest}"
            if wrong:
                raise InputError(
                    f"question '{question.id}': the list {list(t.list)} {wrong}; the prompt shows "
                    f"{shown} passages: take the prompts it was sampled with"
                )
    return writer.logps(questions, [[t.list for t in r.trajectories] for r in rollouts], branches)


def _stamped(writer: Writer, question: Question, rollout: Rollout) -> Rollout:
    prompt = writer.maker.rerank_prompt(question)
    return replace(
        rollout,
        shown=prompt.shown,
        tokenizer=tokenizer_fingerprint(writer.policy.tokenizer),
        prompt=fingerprint(list(prompt.tokens)),
    )


def with_behavior(
    writer: Writer, questions: Sequence[Question], rollouts: Sequence[Rollout], branches: int
) -> list[Rollout]:
    """Rollouts with log-probabilities under ``writer`` as the policy that sampled them.

    Args:
      questions: in the order of ``rollouts``.
      branches: the most distinct lists of one rollout.
    """
    logps = _list_logps(writer, questions, rollouts, branches)
    return [
        replace(
            _stamped(writer, question, rollout),
            policy=writer.policy.fingerprint,
            trajectories=tuple(
                replace(t, logp=math.fsum(x), logps=x)
                for t, x in zip(rollout.trajectories, each, strict=True)
            ),
        )
        for question, rollout, each in zip(questions, rollouts, logps, strict=True)
    ]


def with_reference(
    writer: Writer, questions: Sequence[Question], rollouts: Sequence[Rollout], branches: int
) -> list[Rollout]:
    """Rollouts with log-probabilities under ``writer`` as the reference; as ``with_behavior``."""
    logps = _list_logps(writer, questions, rollouts, branches)
    return [
        replace(
            _stamped(writer, question, rollout),
            reference=writer.policy.fingerprint,
            trajectories=tuple(
                replace(t, reference_logp=math.fsum(x), reference_logps=x)
                for t, x in zip(rollout.trajectories, each, strict=True)
            ),
        )
        for question, rollout, each in zip(questions, rollouts, logps, strict=True)
    ]


def answer_reward(trajectory: Trajectory, reward: RewardWeights) -> float:
    """The part of a trajectory's reward that its answer earned, from the terms on record.

    Raises:
      InputError: a term that carries weight is not on record.
    """
    weights = {f.name: getattr(reward, f.name) for f in fields(reward) if f.name != "passages"}
    carrying = {name: weight for name, weight in weights.items() if weight}
    if lacking := [name for name in carrying if name not in trajectory.terms]:
        raise InputError(
            f"the reward weighs '{lacking[0]}', and the rollouts have recorded only "
            f"{', '.join(trajectory.terms) or 'no terms'}; set its weight to 0"
        )
    if not carrying:
        raise InputError("no reward term judges answers: 'passages' judges lists; weigh another")
    return math.fsum(weight * trajectory.terms[name] for name, weight in carrying.items())


def with_answers(
    reference: Writer,
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
      reward: its terms on answers rank them; ``passages``, which judges lists, is left out.
    """
    limit, tokenizer = reference.prompts.answer_tokens, reference.policy.tokenizer
    contexts, groups = [], []
    for rollout in rollouts:
        if not rollout.trajectories:
            raise InputError(f"question '{rollout.id}': the rollout has no lists")
        best = max(rollout.trajectories, key=lambda t: t.reward)
        contexts.append(best.list)
        # By tokens, the best list's first: what differs only beyond the longest answer is one.
        distinct: dict[tuple[int, ...], Trajectory] = {}
        for t in (best, *rollout.trajectories):
            distinct.setdefault(tuple(answer_tokens(tokenizer, t.answer, limit)), t)
        groups.append(distinct)
    logps = reference.answer_logps(questions, contexts, [list(g) for g in groups], branches)
    found = []
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
        )
        found.append(replace(rollout, answers=answers))
    return found
