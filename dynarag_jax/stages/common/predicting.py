"""Lists and answers of whole question files: what is expected, counted, appended."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.answering import answer
from dynarag_jax.evaluation.predictions import (
    Prediction,
    prediction_to_json,
    thoughts_to_json,
)
from dynarag_jax.launch.progress import Progress
from dynarag_jax.parts import SharedRows
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.rollout_records import Thought
from dynarag_jax.sampling.answer_server import ServerAnswers
from dynarag_jax.sampling.list_sources import Reject
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler
from dynarag_jax.sampling.reranking import expected_prompts, try_rerank
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Windows


class PromptCount:
    """About how many prompts some work takes: ``least`` to ``most``, for the windows' sake."""

    def __init__(self, prompts: PromptConfig, windows: Windows):
        self.least = self.most = 0
        self._prompts, self._windows = prompts, windows

    def add(self, questions: Sequence[Question], *, lists: bool, answers: bool) -> PromptCount:
        """Count writing the questions' lists, answering them, or both."""
        if lists:
            least, most = expected_prompts(questions, self._prompts, self._windows)
            self.least, self.most = self.least + least, self.most + most
        if answers:
            self.least, self.most = self.least + len(questions), self.most + len(questions)
        return self

    def add_systems(
        self,
        questions: Sequence[Question],
        systems: Iterable[str],
        done: Collection[str],
        *,
        lists: bool,
    ) -> None:
        """Count the predictions of systems that are not in ``done``, as ``system/id``."""
        for system in systems:
            left = [q for q in questions if f"{system}/{q.id}" not in done]
            self.add(left, lists=lists, answers=True)

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.most} prompts"
        return f"about {self.least} to {self.most} prompts"


@contextlib.contextmanager
def counted(sampler: PolicySampler, bar: Progress, expected: int) -> Iterator[None]:
    """Count every list and answer of the sampler on a bar whose total took ``expected`` of them.

    Of several processes each counts what it hears for all of them.
    """
    first, teams = bar.n, sampler.team.count
    sampler.heard = lambda: bar.update(teams)
    try:
        yield
    finally:
        sampler.heard = lambda: None
    if bar.total is not None and bar.n != first + expected:
        bar.total += bar.n - first - expected


def without(questions: Sequence[Question], others: Sequence[Reject]) -> list[Question]:
    """The questions that are not set aside."""
    ids = {other.id for other in others}
    return [question for question in questions if question.id not in ids]


def add_aside(
    rows: SharedRows,
    questions: Sequence[Question],
    aside: Sequence[Reject],
    systems: Sequence[str],
) -> None:
    """Append what every system makes of the questions that are set aside: a failure.

    Of several processes one calls it.
    """
    reasons = {reject.id: reject.reason for reject in aside}
    for question in (q for q in questions if q.id in reasons):
        for system in systems:
            if f"{system}/{question.id}" not in rows.done:
                none = Prediction(question.id, answer="", failed=reasons[question.id])
                rows.append(prediction_to_json(none, question, system))


@dataclass(frozen=True)
class Reranking:
    """How a model writes its own lists."""

    sampling: Sampling
    windows: Windows


def predict(
    sampler: PolicySampler,
    lists: Reranking | Sequence[Chosen],
    rows: SharedRows,
    system: str,
    questions: Sequence[Question],
    bar: Progress,
    generator: ServerAnswers | None = None,
) -> None:
    """Append a system's predictions of one dataset, those that are not there.

    In a run of several processes all of them call it, each with all questions.

    Args:
      lists: how the model writes its own lists, or a list for each question.
      generator: a server that answers in place of the model.
    """
    left = [i for i, q in enumerate(questions) if f"{system}/{q.id}" not in rows.done]
    # Some batches at once, so that the windows of many questions meet.
    for group, places in sampler.team.groups(left, sampler.together):
        part = [questions[i] for i in places]
        if isinstance(lists, Reranking):
            lines = _rerank_and_answer(sampler, lists, system, part, generator)
            count = PromptCount(sampler.prompts, lists.windows)
            expected = count.add([questions[i] for i in group], lists=True, answers=True).most
        else:
            found = answer(sampler, part, [lists[i] for i in places], generator)
            lines = (prediction_to_json(one, question, system) for question, one in found)
            expected = len(group)
        with counted(sampler, bar, expected):
            for line in lines:
                rows.append(line)


def _rerank_and_answer(
    sampler: PolicySampler,
    how: Reranking,
    system: str,
    questions: Sequence[Question],
    generator: ServerAnswers | None,
) -> Iterator[dict[str, Any]]:
    """A model's lists and its answers from them; a question without a list fails."""
    # For a question without candidates there is one list.
    bare: list[Question] = [question for question in questions if not question.passages]
    chosen: list[Chosen] = [()] * len(bare)
    thoughts: list[tuple[Thought, ...]] = [()] * len(bare)
    questions = [question for question in questions if question.passages]
    reranked = try_rerank(sampler, questions, how.sampling, how.windows)
    for question, result in zip(questions, reranked, strict=True):
        if isinstance(result, InputError):
            none = Prediction(question.id, answer="", failed=str(result))
            yield prediction_to_json(none, question, system)
        else:
            bare.append(question)
            chosen.append(result.list)
            thoughts.append(result.thoughts)
    found = answer(sampler, bare, chosen, generator)
    for (question, one), own in zip(found, thoughts, strict=True):
        yield prediction_to_json(one, question, system) | thoughts_to_json(own)
