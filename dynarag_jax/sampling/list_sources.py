"""Where lists come from: questions go in, drafts of rollouts come out as they finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.records import Question
from dynarag_jax.rollout_records import Thought
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler


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
      thoughts: before each, where the policy thinks.
    """

    question: Question
    shown: int
    lists: tuple[Chosen, ...]
    token_logps: tuple[tuple[float, ...], ...]
    policy: str
    weights: tuple[float, ...] = ()
    thoughts: tuple[Thought, ...] = ()

    @property
    def written(self) -> list[tuple[Chosen, Thought | None]]:
        """Each list with its thought."""
        return list(zip(self.lists, self.thoughts or [None] * len(self.lists), strict=True))


class ListSource(Protocol):
    """Where lists come from: a share of the questions goes in, drafts come out as they finish."""

    @property
    def busy(self) -> bool:
        """Whether some question is still to come out."""
        ...

    def step(self) -> list[Draft | Reject]:
        """Work for a while and return what has finished; called equally often in all processes."""
        ...


class DrawnLists:
    """Lists that the policy draws one by one."""

    def __init__(
        self,
        sampler: PolicySampler,
        questions: Sequence[Question],
        sampling: Sampling,
        samples: int,
    ):
        self._sampler, self._sampling = sampler, sampling
        self._engine = sampler.list_engine(samples)
        self._todo = deque(questions)
        self._inside: dict[str, tuple[Question, int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._todo or self._inside)

    def step(self) -> list[Draft | Reject]:
        results: list[Draft | Reject] = []
        # Some beyond those in flight, so that what enters can be chosen by length and beginning.
        while self._todo and len(self._inside) < 4 * self._sampler.batch:
            question = self._todo.popleft()
            try:
                request = self._sampler.list_request(question, self._sampling)
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
            lists = self._sampler.read(shown, sampled)
            policy = self._sampler.policy.fingerprint
            results.append(
                Draft(
                    question, shown, lists.lists, lists.token_logps, policy,
                    thoughts=lists.thoughts,
                )
            )  # fmt: skip
        return results


class SearchedLists:
    """Different lists of each question that the policy searches, a few batches at a time."""

    def __init__(
        self,
        sampler: PolicySampler,
        questions: Sequence[Question],
        sampling: Sampling,
        samples: int,
    ):
        self._sampler, self._sampling, self._samples = sampler, sampling, samples
        self._todo = deque(questions)

    @property
    def busy(self) -> bool:
        return bool(self._todo)

    def step(self) -> list[Draft | Reject]:
        results: list[Draft | Reject] = []
        share = self._sampler.batch // self._sampler.team.count
        asked = [self._todo.popleft() for _ in range(min(4 * share, len(self._todo)))]
        policy = self._sampler.policy.fingerprint
        searched = self._sampler.try_lists(asked, self._sampling, self._samples)
        for question, one in zip(asked, searched, strict=True):
            results.append(
                Reject(question.id, str(one))
                if isinstance(one, InputError)
                else Draft(question, one.shown, one.lists, (), policy, weights=one.weights)
            )
        return results


def policy_lists(
    sampler: PolicySampler, questions: Sequence[Question], sampling: Sampling, samples: int
) -> ListSource:
    """Lists that the policy writes, by the sampling's method."""
    independent = sampling.method == "independent"
    return (DrawnLists if independent else SearchedLists)(sampler, questions, sampling, samples)
