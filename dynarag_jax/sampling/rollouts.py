"""From questions to rollouts: lists, an answer from each, its reward, and log-probabilities.

Log-probabilities under the sampling policy and under the reference are computed here, once, by
token, and kept in the rollout with the fingerprints of the weights, the tokenizer and the prompt
behind them. Training reads them and holds no second model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.scorer import Answered, Scorer
from dynarag_jax.rollout_records import Rollout, Trajectory
from dynarag_jax.sampling.answer_scoring import gold_likelihood, with_answers
from dynarag_jax.sampling.answer_server import NoAnswer, ServerAnswers
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.credit import CreditKind, SharedLikelihood, with_credit, with_parts
from dynarag_jax.sampling.list_sources import Draft, ListSource, Reject, policy_lists
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.rescoring import stamped, with_logps


def roll_out(
    sampler: PolicySampler,
    reference: PolicySampler,
    source: ListSource,
    samples: int,
    reward: RewardWeights | Scorer,
    answers: bool = False,
    generator: ServerAnswers | None = None,
    credit: CreditKind = "",
) -> Iterator[Rollout | Reject]:
    """Answer from each distinct list of a source, and reward the answers.

    Answers are asked for a batch of questions at a time, while the lists of others go on; where the
    reward judges none, and none are gathered, they are left empty. In a run of several processes
    all of them call this, each with a source of its share.

    Args:
      sampler: writes the answers, unless ``generator`` does.
      reference: the model behind the reference log-probabilities; may be ``sampler`` itself.
      samples: lists a question at most.
      reward: weights alone where no term needs another model than ``sampler``.
      answers: gather the distinct answers, too, for preference training of the generator.
      credit: how credit by step is found; empty finds none.
      generator: a server that answers instead; a question none of whose lists it answered is
        rejected, and of others the lists without an answer say so.

    Raises:
      InputError: ``answers`` or the likelihood is wanted of a server's answers, which have no
        log-probabilities.
    """
    team = sampler.team
    scorer = reward if isinstance(reward, Scorer) else Scorer(reward)
    if generator is not None:
        check_server_rewards(scorer.weights, answers)
    if scorer.weights.likelihood and scorer.likelihood is None:
        scorer.likelihood = SharedLikelihood(sampler) if credit else gold_likelihood(sampler)
    ready: list[Draft] = []
    while True:
        for result in source.step():
            if isinstance(result, Reject):
                yield result
            else:
                ready.append(result)
        waiting, busy = team.sum([len(ready), int(source.busy)])
        if waiting >= sampler.batch or not busy:
            if waiting:
                yield from _complete(
                    sampler, reference, ready, samples, scorer, answers, generator, credit
                )
            ready = []
        if not busy:
            return


def _complete(
    sampler: PolicySampler,
    reference: PolicySampler,
    drafts: Sequence[Draft],
    samples: int,
    scorer: Scorer,
    answers: bool,
    generator: ServerAnswers | None,
    credit: CreditKind,
) -> Iterator[Rollout | Reject]:
    """Answers, rewards and log-probabilities; equally many programs run in all processes."""
    distinct = [_distinct(d) for d in drafts]
    # Where answers are judged, those from parts of lists are asked for with the lists': their
    # prompts begin alike.
    judged = scorer.weights.judged()
    pairs = with_parts(
        [(d.question, d.lists[p[0]]) for d, own in zip(drafts, distinct, strict=True) for p in own],
        credit if judged else "",
    )
    replies: Sequence[str | InputError | NoAnswer] = [""] * len(pairs)
    if judged or answers:
        replies = (generator or sampler).try_answers(pairs)
    given = {(q.id, one): text for (q, one), text in zip(pairs, replies, strict=True)}
    kept: list[tuple[Draft, list[list[int]]]] = []
    answered: list[list[Answered]] = []
    for draft, own in zip(drafts, distinct, strict=True):
        texts = [given[draft.question.id, draft.lists[places[0]]] for places in own]
        if refused := [a for a in texts if isinstance(a, InputError)]:
            yield Reject(draft.question.id, str(refused[0]))
            continue
        if (none := [a for a in texts if isinstance(a, NoAnswer)]) and len(none) == len(texts):
            yield Reject(draft.question.id, f"question '{draft.question.id}': {none[0].reason}")
            continue
        kept.append((draft, own))
        answered.append(
            [
                Answered(draft.question, draft.lists[places[0]], "", missing=True)
                if isinstance(text, NoAnswer)
                else Answered(draft.question, draft.lists[places[0]], str(text))
                for places, text in zip(own, texts, strict=True)
            ]
        )
    if credit and isinstance(scorer.likelihood, SharedLikelihood):
        lists = [(a.question, a.list) for each in answered for a in each if not a.missing]
        scorer.likelihood.prepare(lists, credit)
    # All at once: a model behind a term sees one large batch.
    rewards = iter(scorer.score([one for each in answered for one in each]))
    rollouts: list[Rollout] = []
    for (draft, own), each in zip(kept, answered, strict=True):
        trajectories = []
        for one, places in zip(each, own, strict=True):
            earned = next(rewards)
            trajectories.append(
                Trajectory(
                    one.list, len(places), one.text, earned.terms, earned.value,
                    weight=draft.weights[places[0]] if draft.weights else None,
                    missing=earned.missing,
                    thought=draft.thoughts[places[-1]] if draft.thoughts else None,
                )
            )  # fmt: skip
        rollouts.append(
            Rollout(
                id=draft.question.id,
                shown=draft.shown,
                trajectories=tuple(trajectories),
                policy=draft.policy,
                reference=reference.policy.fingerprint,
                generator={} if generator is None else generator.config.record(),
            )
        )
    questions = [d.question for d, _ in kept]
    if credit:
        parts = given if judged else None
        rollouts = with_credit(parts, questions, rollouts, scorer, credit)
    # The sampler's own log-probabilities are the training forward's, up to float32's rounding. In
    # a narrower type the two round differently, and what training subtracts must be its own.
    exact = sampler.policy.cfg.dtype == "float32" and all(d.token_logps for d, _ in kept)
    if sampler.team.any(not exact):
        rollouts = with_logps(sampler, questions, rollouts, samples, "behavior")
    else:
        rollouts = [
            _sampled_logps(sampler, d, own, r) for (d, own), r in zip(kept, rollouts, strict=True)
        ]
    rollouts = [replace(r, policy=d.policy) for (d, _), r in zip(kept, rollouts, strict=True)]
    if reference is sampler:
        rollouts = [
            replace(
                r,
                trajectories=tuple(
                    replace(
                        t,
                        reference_logp=t.logp,
                        reference_logps=t.logps,
                        thought=t.thought and replace(t.thought, reference_logps=t.thought.logps),
                    )
                    for t in r.trajectories
                ),
            )
            for r in rollouts
        ]
    else:
        rollouts = with_logps(reference, questions, rollouts, samples, "reference")
    if answers:
        rollouts = with_answers(reference, questions, rollouts, samples, scorer.weights)
    yield from rollouts


def check_server_rewards(weights: RewardWeights, answers: bool) -> None:
    """Refuse what a server's answers cannot give.

    Raises:
      InputError: the reward weighs the likelihood, or answers are to be preferred to one another.
    """
    if weights.likelihood:
        raise InputError(
            "the reward weighs 'likelihood', the probability of the reference under the weights "
            "that answer, and a server answers (generator.url): set reward.likelihood to 0"
        )
    if answers:
        raise InputError(
            "answers = true gathers answers to train the generator on, and a server answers "
            "(generator.url): set one of them only"
        )


def _distinct(draft: Draft) -> list[list[int]]:
    """The places of each list among the samples, in the order in which lists were first sampled.

    The same list behind another thought is another one.
    """
    places: dict[Any, list[int]] = {}
    for place, (chosen, thought) in enumerate(draft.written):
        places.setdefault((chosen, thought and thought.tokens), []).append(place)
    return list(places.values())


def _sampled_logps(
    sampler: PolicySampler, draft: Draft, own: Sequence[Sequence[int]], rollout: Rollout
) -> Rollout:
    """The rollout with the log-probabilities that the sampler computed."""
    logps = [draft.token_logps[places[-1]] for places in own]
    return replace(
        stamped(sampler, draft.question, rollout),
        trajectories=tuple(
            replace(t, logp=math.fsum(each), logps=each)
            for t, each in zip(rollout.trajectories, logps, strict=True)
        ),
    )


def sample_rollouts(
    sampler: PolicySampler,
    reference: PolicySampler,
    questions: Sequence[Question],
    sampling: Sampling,
    samples: int,
    reward: RewardWeights | Scorer,
    answers: bool = False,
) -> list[Rollout]:
    """The rollouts of some questions, in their order.

    Raises:
      InputError: a question cannot be served; it is named.
    """
    source = policy_lists(sampler, questions, sampling, samples)
    by_id: dict[str, Rollout] = {}
    for result in roll_out(sampler, reference, source, samples, reward, answers):
        if isinstance(result, Reject):
            raise InputError(result.reason)
        by_id[result.id] = result
    return [by_id[q.id] for q in questions]
