"""From questions to rollouts: lists, an answer from each, its reward, and log-probabilities.

Log-probabilities under the sampling policy and under the reference are computed here, once, by
token, and kept in the rollout with the fingerprints of the weights, the tokenizer and the prompt
behind them. Training reads them and holds no second model.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import tokenizer_fingerprint
from dynarag_jax.files import fingerprint
from dynarag_jax.prompts import answer_tokens
from dynarag_jax.records import Answers, Question, Rollout, Trajectory, valid_list
from dynarag_jax.rewards.combine import LIST_TERMS, RewardWeights
from dynarag_jax.rewards.scorer import Answered, Likelihood, Scorer
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.writer import Chosen, Writer


@dataclass(frozen=True)
class Reject:
    """A question that is set aside."""

    id: str
    reason: str


@dataclass(frozen=True)
class Draft:
    """A question and the lists sampled for it.

    Attributes:
      shown: passages the reranker saw.
      lists: all samples, repeats included.
      token_logps: of each, where who wrote them says; else empty, and they are computed.
      policy: who wrote them.
      weights: of each, where they were drawn without replacement.
    """

    question: Question
    shown: int
    lists: tuple[Chosen, ...]
    token_logps: tuple[tuple[float, ...], ...]
    policy: str
    weights: tuple[float, ...] = ()


class Source(Protocol):
    """Where lists come from: a share of the questions goes in, drafts come out as they finish."""

    @property
    def busy(self) -> bool:
        """Whether some question is still to come out."""
        ...

    def step(self) -> list[Draft | Reject]:
        """Work for a while and return what has finished; called equally often in all processes."""
        ...


class OwnLists:
    """Lists by the writer's own policy."""

    def __init__(
        self, writer: Writer, questions: Sequence[Question], sampling: Sampling, samples: int
    ):
        self._writer, self._sampling = writer, sampling
        self._engine = writer.list_engine(samples)
        self._todo = deque(questions)
        self._inside: dict[str, tuple[Question, int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._todo or self._inside)

    def step(self) -> list[Draft | Reject]:
        results: list[Draft | Reject] = []
        # Some beyond those in flight, so that what enters can be chosen by length and beginning.
        while self._todo and len(self._inside) < 4 * self._writer.batch:
            question = self._todo.popleft()
            try:
                request = self._writer.list_request(question, self._sampling)
            except InputError as error:
                results.append(Reject(question.id, str(error)))
                continue
            self._inside[question.id] = question, request.shown or 0
            self._engine.submit(request)
        for sampled in self._engine.step():
            question, shown = self._inside.pop(sampled.id)
            if sampled.refused:
                reason = f"question '{question.id}': {sampled.refused}"
                results.append(Reject(question.id, reason))
                continue
            lists = self._writer.read(shown, sampled)
            policy = self._writer.policy.fingerprint
            results.append(Draft(question, shown, lists.lists, lists.token_logps, policy))
        return results


class SearchedLists:
    """Different lists of each question by the writer's own policy, a few batches at a time.

    Raises:
      InputError: this is one of several processes.
    """

    def __init__(
        self, writer: Writer, questions: Sequence[Question], sampling: Sampling, samples: int
    ):
        if writer.team.several:
            raise InputError(
                f"method '{sampling.method}' searches in one process, and this is one of several; "
                f"set method = 'independent', or start it on one host alone"
            )
        self._writer, self._sampling, self._samples = writer, sampling, samples
        self._todo = deque(questions)

    @property
    def busy(self) -> bool:
        return bool(self._todo)

    def step(self) -> list[Draft | Reject]:
        results: list[Draft | Reject] = []
        good: list[Question] = []
        while self._todo and len(good) < 4 * self._writer.batch:
            question = self._todo.popleft()
            try:
                self._writer.maker.rerank_prompt(question)
                good.append(question)
            except InputError as error:
                results.append(Reject(question.id, str(error)))
        policy = self._writer.policy.fingerprint
        found = self._writer.lists(good, self._sampling, self._samples)
        for question, one in zip(good, found, strict=True):
            results.append(Draft(question, one.shown, one.lists, (), policy, weights=one.weights))
        return results


def own_lists(
    writer: Writer, questions: Sequence[Question], sampling: Sampling, samples: int
) -> Source:
    """Lists by the writer's own policy, drawn by the sampling's method."""
    independent = sampling.method == "independent"
    return (OwnLists if independent else SearchedLists)(writer, questions, sampling, samples)


def roll_out(
    writer: Writer,
    reference: Writer,
    source: Source,
    samples: int,
    reward: RewardWeights | Scorer,
    answers: bool = False,
) -> Iterator[Rollout | Reject]:
    """Answer from each distinct list of a source, and reward the answers.

    Answers are asked for a batch of questions at a time, while the lists of others go on. In a run
    of several processes all of them call this, each with a source of its share.

    Args:
      writer: writes the answers.
      reference: the model behind the reference log-probabilities; may be ``writer`` itself.
      samples: lists a question at most.
      reward: weights alone where no term needs another model than ``writer``.
      answers: gather the distinct answers, too, for preference training of the generator.
    """
    team = writer.team
    scorer = reward if isinstance(reward, Scorer) else Scorer(reward)
    if scorer.weights.likelihood and scorer.likelihood is None:
        scorer.likelihood = gold_likelihood(writer)
    ready: list[Draft] = []
    while True:
        for result in source.step():
            if isinstance(result, Reject):
                yield result
            else:
                ready.append(result)
        waiting, busy = team.sum([len(ready), int(source.busy)])
        if waiting >= writer.batch or not busy:
            if waiting:
                yield from _complete(writer, reference, ready, samples, scorer, answers)
            ready = []
        if not busy:
            return


def _complete(
    writer: Writer,
    reference: Writer,
    drafts: Sequence[Draft],
    samples: int,
    scorer: Scorer,
    answers: bool,
) -> Iterator[Rollout | Reject]:
    """Answers, rewards and log-probabilities; equally many programs run in all processes."""
    distinct = [tuple(dict.fromkeys(d.lists)) for d in drafts]
    asked = [(d.question, c) for d, own in zip(drafts, distinct, strict=True) for c in own]
    given = iter(writer.try_answers(asked))
    kept: list[Draft] = []
    answered: list[list[Answered]] = []
    for draft, own in zip(drafts, distinct, strict=True):
        texts = [next(given) for _ in own]
        if refused := [a for a in texts if isinstance(a, InputError)]:
            yield Reject(draft.question.id, str(refused[0]))
            continue
        kept.append(draft)
        pairs = zip(own, texts, strict=True)
        answered.append([Answered(draft.question, chosen, str(text)) for chosen, text in pairs])
    # All at once: a model behind a term sees one large batch.
    rewards = iter(scorer.score([one for each in answered for one in each]))
    rollouts: list[Rollout] = []
    for draft, each in zip(kept, answered, strict=True):
        trajectories = []
        for one in each:
            earned, count = next(rewards), draft.lists.count(one.list)
            weight = draft.weights[draft.lists.index(one.list)] if draft.weights else None
            trajectories.append(
                Trajectory(
                    one.list, count, one.text, earned.terms, earned.value, weight=weight,
                    missing=earned.missing,
                )
            )  # fmt: skip
        rollouts.append(
            Rollout(
                id=draft.question.id,
                shown=draft.shown,
                trajectories=tuple(trajectories),
                policy=draft.policy,
                reference=reference.policy.fingerprint,
            )
        )
    questions = [d.question for d in kept]
    # The sampler's own log-probabilities are the training forward's, up to float32's rounding. In
    # a narrower type the two round differently, and what training subtracts must be its own.
    exact = writer.policy.cfg.dtype == "float32" and all(d.token_logps for d in kept)
    if writer.team.any(not exact):
        rollouts = with_behavior(writer, questions, rollouts, samples)
    else:
        rollouts = [_sampled_logps(writer, d, r) for d, r in zip(kept, rollouts, strict=True)]
    rollouts = [replace(r, policy=d.policy) for d, r in zip(kept, rollouts, strict=True)]
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
    if answers:
        rollouts = with_answers(reference, questions, rollouts, samples, scorer.weights)
    yield from rollouts


def _sampled_logps(writer: Writer, draft: Draft, rollout: Rollout) -> Rollout:
    """The rollout with the log-probabilities that the sampler computed."""
    by_list = dict(zip(draft.lists, draft.token_logps, strict=True))
    return replace(
        _stamped(writer, draft.question, rollout),
        trajectories=tuple(
            replace(t, logp=math.fsum(by_list[t.list]), logps=by_list[t.list])
            for t in rollout.trajectories
        ),
    )


def sample_rollouts(
    writer: Writer,
    reference: Writer,
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
    source = own_lists(writer, questions, sampling, samples)
    found: dict[str, Rollout] = {}
    for result in roll_out(writer, reference, source, samples, reward, answers):
        if isinstance(result, Reject):
            raise InputError(result.reason)
        found[result.id] = result
    return [found[q.id] for q in questions]


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
            missing=tuple(i for i, t in enumerate(group.values()) if not _judged(t, reward)),
        )
        found.append(replace(rollout, answers=answers))
    return found


def _judged(trajectory: Trajectory, reward: RewardWeights) -> bool:
    """Whether every term that judges its answer could be had."""
    return not any(n not in LIST_TERMS and reward.terms().get(n) for n in trajectory.missing)


GOLD_ANSWERS = 8
"""References of a question whose likelihood is asked for at most, the first ones: some have dozens
of aliases, and each is a branch of the prompt."""


def gold_likelihood(writer: Writer) -> Likelihood:
    """How likely ``writer`` finds a reference answer, given a list's passages.

    The geometric mean of the probabilities of its tokens, end of text included, so that a long
    reference is not punished; the best of the first ``GOLD_ANSWERS`` references that are no longer
    than an answer may be.
    """
    limit, tokenizer = writer.prompts.answer_tokens, writer.policy.tokenizer

    def likelihood(asked: Sequence[tuple[Question, tuple[int, ...]]]) -> list[float | None]:
        golds = []
        for question, _ in asked:
            spelled = [
                answer_tokens(tokenizer, a, limit + 1) for a in question.answers if a.strip()
            ]
            golds.append([g for g in spelled if len(g) <= limit][:GOLD_ANSWERS])
        some = [i for i, gold in enumerate(golds) if gold]
        logps = writer.answer_logps(
            [asked[i][0] for i in some],
            [asked[i][1] for i in some],
            [golds[i] for i in some],
            GOLD_ANSWERS,
        )
        found: list[float | None] = [None] * len(asked)
        for i, each in zip(some, logps, strict=True):
            found[i] = max(math.exp(math.fsum(one) / len(one)) for one in each)
        return found

    return likelihood
