"""From questions to rollouts: lists, an answer from each, and its reward, as they finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.records import Question, Rollout, Trajectory
from dynarag_jax.rewards.combine import RewardWeights, score_answer
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
      logps: of each, where who wrote them says; else empty, and they are computed.
      policy: who wrote them.
    """

    question: Question
    shown: int
    lists: tuple[Chosen, ...]
    logps: tuple[float, ...]
    policy: str


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
            results.append(Draft(question, shown, lists.lists, lists.logps, policy))
        return results


def roll_out(
    writer: Writer,
    reference: Writer,
    source: Source,
    samples: int,
    reward: RewardWeights,
) -> Iterator[Rollout | Reject]:
    """Answer from each distinct list of a source, and reward the answers.

    Answers are asked for a batch of questions at a time, while the lists of others go on. In a run
    of several processes all of them call this, each with a source of its share.

    Args:
      writer: writes the answers.
      reference: the model behind the reference log-probabilities; may be ``writer`` itself.
      samples: lists a question at most.
    """
    together = writer.together
    ready: list[Draft] = []
    while True:
        for result in source.step():
            if isinstance(result, Reject):
                yield result
            else:
                ready.append(result)
        waiting, busy = together.sum([len(ready), int(source.busy)])
        if waiting >= writer.batch or not busy:
            if waiting:
                yield from _complete(writer, reference, ready, samples, reward)
            ready = []
        if not busy:
            return


def _complete(
    writer: Writer,
    reference: Writer,
    drafts: Sequence[Draft],
    samples: int,
    reward: RewardWeights,
) -> Iterator[Rollout | Reject]:
    questions = [d.question for d in drafts]
    distinct = [tuple(dict.fromkeys(d.lists)) for d in drafts]
    # The sampler's own log-probabilities are the training forward's, up to float32's rounding. In
    # a narrower type the two round differently, and what training subtracts must be its own.
    exact = writer.policy.cfg.dtype == "float32"
    known = _all_of_all(writer, [bool(d.logps) and exact for d in drafts])
    if known:
        logps = [
            [d.logps[d.lists.index(c)] for c in own]
            for d, own in zip(drafts, distinct, strict=True)
        ]
    else:
        logps = writer.logps(questions, distinct, samples)
    references = logps
    if reference is not writer:
        references = reference.logps(questions, distinct, samples)
    asked = [(q, chosen) for q, own in zip(questions, distinct, strict=True) for chosen in own]
    answers = iter(writer.try_answers(asked))
    for i, (draft, own) in enumerate(zip(drafts, distinct, strict=True)):
        given = [next(answers) for _ in own]
        if refused := [a for a in given if isinstance(a, InputError)]:
            yield Reject(draft.question.id, str(refused[0]))
            continue
        trajectories = []
        for j, (chosen, answer) in enumerate(zip(own, given, strict=True)):
            value, terms = score_answer(str(answer), draft.question.answers, len(chosen), reward)
            trajectories.append(
                Trajectory(
                    list=chosen,
                    count=draft.lists.count(chosen),
                    answer=str(answer),
                    terms=terms,
                    reward=value,
                    logp=logps[i][j],
                    reference_logp=references[i][j],
                )
            )
        yield Rollout(
            id=draft.question.id,
            shown=draft.shown,
            trajectories=tuple(trajectories),
            policy=draft.policy,
            reference=reference.policy.fingerprint,
        )


def _all_of_all(writer: Writer, flags: Sequence[bool]) -> bool:
    """Whether all of all processes are true."""
    return not writer.together.any(not all(flags))


def sample_rollouts(
    writer: Writer,
    reference: Writer,
    questions: Sequence[Question],
    sampling: Sampling,
    samples: int,
    reward: RewardWeights,
) -> list[Rollout]:
    """The rollouts of some questions, in their order.

    Raises:
      InputError: a question cannot be served; it is named.
    """
    source = OwnLists(writer, questions, sampling, samples)
    found: dict[str, Rollout] = {}
    for result in roll_out(writer, reference, source, samples, reward):
        if isinstance(result, Reject):
            raise InputError(result.reason)
        found[result.id] = result
    return [found[q.id] for q in questions]
