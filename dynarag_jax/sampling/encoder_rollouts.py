"""Rollouts of an encoder policy: lists, answers, rewards, and what a rollout keeps of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.policy.encoder_model import tokenizer_hash
from dynarag_jax.records import Question
from dynarag_jax.rewards.scorer import Answered, Scorer
from dynarag_jax.rollout_records import Rollout, Trajectory
from dynarag_jax.sampling.answer_server import NoAnswer, ServerAnswers
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.credit import CreditKind, SharedLikelihood, with_credit, with_parts
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.list_sources import Reject
from dynarag_jax.sampling.policy_sampler import Chosen, Lists, PolicySampler
from dynarag_jax.sampling.rescoring import Role, in_role


def roll_out_lists(
    sampler: EncoderSampler,
    reference: EncoderSampler,
    generator: PolicySampler | ServerAnswers | None,
    questions: Sequence[Question],
    sampling: Sampling,
    samples: int,
    scorer: Scorer,
    credit: CreditKind = "",
) -> Iterator[Rollout | Reject]:
    """Lists of an encoder policy, answers from each where there is a generator, and rewards.

    Args:
      reference: the policy behind the reference log-probabilities; may be ``sampler`` itself.
      generator: the language model or server that answers; None leaves answers empty, and only
        terms that judge the list can be weighed. Where none judges an answer it is not asked.
      scorer: the reward.
      credit: how credit by step is found; empty finds none.
    """
    found = sampler.try_lists(questions, sampling, samples)
    kept: list[tuple[Question, Lists, list[Chosen]]] = []
    for question, one in zip(questions, found, strict=True):
        if isinstance(one, InputError):
            yield Reject(question.id, str(one))
        else:
            kept.append((question, one, list(dict.fromkeys(one.lists))))
    judged = generator is not None and scorer.weights.judged()
    pairs = with_parts(
        [(question, chosen) for question, _, own in kept for chosen in own],
        credit if judged else "",
    )
    texts: Sequence[str | InputError | NoAnswer] = [""] * len(pairs)
    if generator is not None and judged:
        texts = generator.try_answers(pairs)
    given = {(q.id, chosen): text for (q, chosen), text in zip(pairs, texts, strict=True)}
    answered: list[list[Answered]] = []
    whole: list[tuple[Question, Lists, list[Chosen]]] = []
    for question, one, own in kept:
        mine = [given[question.id, chosen] for chosen in own]
        if refused := [text for text in mine if isinstance(text, InputError)]:
            yield Reject(question.id, str(refused[0]))
            continue
        none = [text for text in mine if isinstance(text, NoAnswer)]
        if none and len(none) == len(mine):
            yield Reject(question.id, f"question '{question.id}': {none[0].reason}")
            continue
        whole.append((question, one, own))
        answered.append(
            [
                Answered(question, chosen, "", missing=True)
                if isinstance(text, NoAnswer)
                else Answered(question, chosen, str(text))
                for chosen, text in zip(own, mine, strict=True)
            ]
        )
    if credit and isinstance(scorer.likelihood, SharedLikelihood):
        had = [(a.question, a.list) for each in answered for a in each if not a.missing]
        scorer.likelihood.prepare(had, credit)
    rewards = iter(scorer.score([one for each in answered for one in each]))
    asked, lists = [question for question, _, _ in whole], [own for _, _, own in whole]
    behavior = _behavior(sampler, whole)
    other = behavior if reference is sampler else reference.logps(asked, lists)
    rollouts: list[Rollout] = []
    for (question, one, own), each, logps, references in zip(
        whole, answered, behavior, other, strict=True
    ):
        trajectories = []
        for answer, steps, from_reference in zip(each, logps, references, strict=True):
            earned = next(rewards)
            at = one.lists.index(answer.list)
            trajectories.append(
                Trajectory(
                    answer.list,
                    one.lists.count(answer.list),
                    answer.text,
                    earned.terms,
                    earned.value,
                    logp=math.fsum(steps),
                    reference_logp=math.fsum(from_reference),
                    logps=steps,
                    reference_logps=from_reference,
                    weight=one.weights[at] if one.weights else None,
                    missing=earned.missing,
                )
            )
        del own
        rollouts.append(
            replace(
                stamped_lists(sampler, question, tuple(trajectories)),
                reference=reference.policy.fingerprint,
            )
        )
    if credit:
        rollouts = with_credit(given if judged else None, asked, rollouts, scorer, credit)
    yield from rollouts


def _behavior(
    sampler: EncoderSampler, whole: Sequence[tuple[Question, Lists, list[Chosen]]]
) -> list[list[tuple[float, ...]]]:
    """Log-probabilities of the distinct lists' steps under the policy that drew them."""
    exact = sampler.policy.cfg.encoder.dtype == "float32"
    if exact and all(one.token_logps for _, one, _ in whole):
        return [
            [one.token_logps[one.lists.index(chosen)] for chosen in own] for _, one, own in whole
        ]
    return sampler.logps([q for q, _, _ in whole], [own for _, _, own in whole])


def with_list_logps(
    sampler: EncoderSampler,
    questions: Sequence[Question],
    rollouts: Sequence[Rollout],
    role: Role,
) -> list[Rollout]:
    """Rollouts with log-probabilities by step of their lists; as ``rescoring.with_logps``.

    Raises:
      InputError: a list is none of the policy's.
    """
    found = sampler.logps(questions, [[t.list for t in r.trajectories] for r in rollouts])
    return [
        in_role(
            replace(rollout, **_stamps(sampler, question)), logps, role, sampler.policy.fingerprint
        )
        for question, rollout, logps in zip(questions, rollouts, found, strict=True)
    ]


def _stamps(sampler: EncoderSampler, question: Question) -> dict[str, Any]:
    """What log-probabilities depend on beside the weights, as a rollout says it."""
    policy, pairs = sampler.policy, sampler.maker.pairs(question)
    return {
        "shown": pairs.count,
        "tokenizer": tokenizer_hash(policy.tokenizer),
        "prompt": pairs.fingerprint(),
        "max_list": policy.cfg.max_list,
        "dtype": policy.cfg.encoder.dtype,
    }


def stamped_lists(
    sampler: EncoderSampler, question: Question, trajectories: tuple[Trajectory, ...]
) -> Rollout:
    """A rollout with what its log-probabilities depend on."""
    policy = sampler.policy.fingerprint
    return Rollout(
        id=question.id, trajectories=trajectories, policy=policy, reference=policy,
        **_stamps(sampler, question),
    )  # fmt: skip
