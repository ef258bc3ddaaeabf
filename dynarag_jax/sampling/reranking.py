"""A policy's list for each question, whatever the number of its candidates."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dynarag_jax.errors import InputError
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.rollout_records import Thought
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Positions, Seen, Windows, expected_calls, run_plans


@dataclass(frozen=True)
class Reranked:
    """What came of one question.

    Attributes:
      list: 1-based positions in the question's candidates, best first.
      calls: prompts the reranker read for it.
      shown: candidates it saw; without windows those beyond the prompt's limits are left out.
      thoughts: what was thought before the lists of its calls, in their order.
    """

    list: Chosen
    calls: int
    shown: int
    thoughts: tuple[Thought, ...] = ()


def rerank(
    sampler: PolicySampler, questions: Sequence[Question], sampling: Sampling, windows: Windows
) -> list[Reranked]:
    """Rerank every question: in one prompt where its candidates fit the ids, by windows otherwise.

    Raises:
      InputError: a question has no passages, or one that is longer than a prompt; it has more
        than fit a prompt, and windows of one passage compare nothing.
    """
    found: list[Reranked] = []
    for one in try_rerank(sampler, questions, sampling, windows):
        if isinstance(one, InputError):
            raise one
        found.append(one)
    return found


def try_rerank(
    sampler: PolicySampler, questions: Sequence[Question], sampling: Sampling, windows: Windows
) -> list[Reranked | InputError]:
    """As ``rerank``; in place of a question that cannot be reranked, the reason.

    In a run of several processes all of them call this, each with its share, however small.
    """
    results: dict[int, Reranked | InputError] = {
        i: error for i, q in enumerate(questions) if (error := _unread(sampler, q))
    }
    good = [i for i in range(len(questions)) if i not in results]
    many = [i for i in good if len(questions[i].passages) > sampler.prompts.ids]
    few = sorted(set(good).difference(many))
    if sampler.team.any(bool(few)):
        whole = sampler.try_lists([questions[i] for i in few], sampling)
        for i, one in zip(few, whole, strict=True):
            results[i] = (
                one
                if isinstance(one, InputError)
                else Reranked(one.lists[0], 1, one.shown, one.thoughts)
            )
    try:
        if many:
            windows = windows.within(sampler.prompts.ids, sampler.prompts.max_list)
    except InputError as error:
        results |= dict.fromkeys(many, error)
        many = []
    calls = [0] * len(many)
    thoughts: list[list[Thought]] = [[] for _ in many]

    def read(views: list[tuple[int, Positions]]) -> list[Seen | InputError]:
        parts = []
        for which, view in views:
            calls[which] += 1
            parts.append(_part(questions[many[which]], view, calls[which]))
        seen: list[Seen | InputError] = []
        for (which, _), one in zip(views, sampler.try_lists(parts, sampling), strict=True):
            if isinstance(one, InputError):
                seen.append(one)
            else:
                thoughts[which] += one.thoughts
                seen.append(Seen(one.lists[0], one.shown))
        return seen

    counts = [len(questions[i].passages) for i in many]
    lists = run_plans(counts, windows, read, sampler.team.any)
    for which, i in enumerate(many):
        chosen = lists[which]
        results[i] = (
            chosen
            if isinstance(chosen, InputError)
            else Reranked(chosen, calls[which], counts[which], tuple(thoughts[which]))
        )
    return [results[i] for i in range(len(questions))]


def _unread(sampler: PolicySampler, question: Question) -> InputError | None:
    """Why a question's first prompt cannot be made; None where it can."""
    try:
        sampler.maker.rerank_prompt(question)
    except InputError as error:
        return error
    return None


def expected_prompts(
    questions: Sequence[Question], prompts: PromptConfig, windows: Windows
) -> tuple[int, int]:
    """About how many prompts reranking reads: at least, and at most.

    Raises:
      InputError: a question has more candidates than a prompt, and windows do not fit prompts.
    """
    counts = Counter(len(q.passages) for q in questions if q.passages)
    low = high = 0
    for n, times in counts.items():
        least = most = 1
        if n > prompts.ids:
            least, most = expected_calls(n, windows.within(prompts.ids, prompts.max_list))
        low, high = low + times * least, high + times * most
    return low, high


def _part(question: Question, view: Positions, call: int) -> Question:
    """The question over some of its candidates, by a name of its own for its random numbers."""
    return dataclasses.replace(
        question,
        id=f"{question.id}#{call}",
        passages=tuple(question.passages[p - 1] for p in view),
        expert=None,
    )
