"""What serving knows of a policy: questions with candidates go in, lists come out.

A kind of policy is a class with the methods of ``ListPolicy``. ``language_model`` writes lists
token by token, ``scored`` cuts a scorer's order off by a rule; ``loading`` tells them apart by
their directories.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.records import Question

Chosen = tuple[int, ...]
"""1-based positions in a question's candidates, best first."""


@dataclass(frozen=True)
class RankedList:
    """A policy's list for one question.

    Attributes:
      chosen: 1-based positions in the question's candidates, best first.
      scores: of every candidate between 0 and 1, where the policy scores candidates one by one;
        else empty.
      calls: prompts or batches of pairs that were read for it.
      tokens: of these; 0 where nobody counts them.
      shown: candidates that the policy saw.
    """

    chosen: Chosen
    scores: tuple[float, ...] = ()
    calls: int = 1
    tokens: int = 0
    shown: int = 0


STOP = 0
"""In place of a position: the list ends here."""


@dataclass(frozen=True)
class ListStep:
    """One step of a list.

    Attributes:
      chosen: the position taken, or ``STOP``.
      logps: the log-probability of every alternative, by position, ``STOP`` among them; natural
        logarithm. Empty where the policy draws no lists but cuts an order off by a rule.
    """

    chosen: int
    logps: dict[int, float]


@dataclass(frozen=True)
class ExplainedList:
    """A list and why it is as it is.

    Attributes:
      chosen: the list, as in ``RankedList``.
      logp: its log-probability, natural logarithm; None where the policy draws no lists.
      steps: one a passage, and the one at which the list stops. A list as long as lists may be
        stops by itself.
      scores: as in ``RankedList``.
    """

    chosen: Chosen
    logp: float | None
    steps: tuple[ListStep, ...]
    scores: tuple[float, ...] = ()


class ListWorker(Protocol):
    """A policy at work on questions that come and go; used by one thread."""

    @property
    def busy(self) -> bool:
        """Whether some question is still to come out."""
        ...

    @property
    def full(self) -> bool:
        """Whether it has work enough: what comes now had better wait outside."""
        ...

    def warm(self) -> None:
        """Compile what is needed before the first question comes."""
        ...

    def submit(self, key: str, question: Question) -> None:
        """Take a question; ``key`` names it among those in work."""
        ...

    def step(self) -> list[tuple[str, RankedList | InputError]]:
        """Work for a while and return what has finished, each with its key."""
        ...

    def cancel(self, key: str) -> None:
        """Stop working on a question; nothing comes out for it. An unknown key is passed over."""
        ...


class ListPolicy(Protocol):
    """Whatever chooses lists: for each question, which passages, in which order, how many."""

    @property
    def kind(self) -> str:
        """What it is, for records: 'language model', 'cross-encoder', ..."""
        ...

    def rank_lists(self, questions: Sequence[Question]) -> list[RankedList | InputError]:
        """A list for every question; in place of one that cannot be given, the reason."""
        ...

    def explain(self, question: Question, chosen: Chosen | None = None) -> ExplainedList:
        """A list's log-probability and each step's alternatives.

        Args:
          chosen: the list; None takes the policy's own.

        Raises:
          InputError: the list is none over what a prompt shows, or is longer than lists may be.
        """
        ...

    def worker(self) -> ListWorker:
        """It at work on questions that come and go; ``BatchedLists`` will do for most kinds."""
        ...


class BatchedLists:
    """A ``ListWorker`` out of ``rank_lists``: what has come is worked on together.

    Args:
      most: candidates of all questions of a batch, at most; one question may have more.
    """

    def __init__(self, policy: ListPolicy, most: int = 1024):
        self._policy, self._most = policy, most
        self._waiting: deque[tuple[str, Question]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        return sum(len(question.passages) for _, question in self._waiting) >= self._most

    def warm(self) -> None:
        warm = getattr(self._policy, "warm", None)
        if warm is not None:
            warm()

    def submit(self, key: str, question: Question) -> None:
        self._waiting.append((key, question))

    def cancel(self, key: str) -> None:
        self._waiting = deque(pair for pair in self._waiting if pair[0] != key)

    def step(self) -> list[tuple[str, RankedList | InputError]]:
        batch: list[tuple[str, Question]] = []
        candidates = 0
        while self._waiting:
            candidates += len(self._waiting[0][1].passages)
            if batch and candidates > self._most:
                break
            batch.append(self._waiting.popleft())
        found = self._policy.rank_lists([question for _, question in batch]) if batch else []
        return [(key, one) for (key, _), one in zip(batch, found, strict=True)]


def served_scores(ranked: RankedList, candidates: int) -> dict[int, float]:
    """A relevance score for every candidate, by position, that says which are on the list.

    The list's passages have scores above 0.5, the others below, and scores fall strictly in the
    list's order, then in that of the others: by their own scores where there are some, else as
    they came. So a threshold of 0.5 gives exactly the list, and so does sorting.
    """
    chosen = ranked.chosen
    left = [p for p in range(1, candidates + 1) if p not in set(chosen)]
    if ranked.scores:
        left.sort(key=lambda p: -ranked.scores[p - 1])
    upper = {p: 1 - (place + 1) / (2 * len(chosen) + 2) for place, p in enumerate(chosen)}
    lower = {p: 0.5 - (place + 1) / (2 * len(left) + 2) for place, p in enumerate(left)}
    return upper | lower


def list_scores(ranked: RankedList, candidates: int) -> list[float]:
    """A relevance score for each passage of the list, between 0 and 1, in the list's order.

    The policy's own where it scores candidates one by one and they fall in the list's order;
    otherwise as in ``served_scores``, from which places alone can be read.
    """
    own = [ranked.scores[p - 1] for p in ranked.chosen] if ranked.scores else []
    if own and own == sorted(own, reverse=True):
        return own
    placed = served_scores(ranked, candidates)
    return [placed[p] for p in ranked.chosen]
