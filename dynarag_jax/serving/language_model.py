"""A language model that writes lists, as a policy to be served: at once, or as questions come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dynarag_jax.config import MorePassages
from dynarag_jax.errors import InputError
from dynarag_jax.records import Question, valid_list
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.reranking import try_rerank
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.serving.policies import (
    STOP,
    BatchedLists,
    Chosen,
    ExplainedList,
    ListStep,
    ListWorker,
    RankedList,
)


class WrittenLists:
    """The lists that a language model writes under the grammar; a ``ListPolicy``.

    Args:
      sampler: the model with its prompts.
      more_passages: what becomes of questions with more candidates than a prompt shows.
      sampling: how lists are written; greedily by default.
    """

    kind = "language model"

    def __init__(
        self,
        sampler: PolicySampler,
        windows: Windows,
        more_passages: MorePassages = "windows",
        sampling: Sampling = Sampling(temperature=0.0),
    ):
        self.sampler, self.sampling = sampler, sampling
        self._windows, self._more = windows, more_passages

    def _within(self, question: Question) -> Question | InputError:
        """The question with the candidates that a list is written over, by ``more_passages``."""
        ids = self.sampler.prompts.ids
        if len(question.passages) <= ids or self._more == "windows":
            return question
        if self._more == "show_first":
            return replace(question, passages=question.passages[:ids], expert=None)
        return InputError(
            f"question '{question.id}' has {len(question.passages)} passages, and a prompt shows "
            f"{ids} (more_passages = set_aside)"
        )

    def rank_lists(self, questions: Sequence[Question]) -> list[RankedList | InputError]:
        whole = [self._within(question) for question in questions]
        good = [question for question in whole if isinstance(question, Question)]
        found = iter(try_rerank(self.sampler, good, self.sampling, self._windows))
        results: list[RankedList | InputError] = []
        for question in whole:
            one = question if isinstance(question, InputError) else next(found)
            if isinstance(one, InputError):
                results.append(one)
            else:
                results.append(RankedList(one.list, calls=one.calls, shown=one.shown))
        return results

    def worker(self) -> ListWorker:
        return BatchedLists(self, 4 * self.sampler.batch * self.sampler.prompts.ids)

    # ------------------------------------------------------------------ why this list

    def explain(self, question: Question, chosen: Chosen | None = None) -> ExplainedList:
        if chosen is None:
            question_ = self._within(question)
            if isinstance(question_, InputError):
                raise question_
            (ranked,) = self.rank_lists([question])
            if isinstance(ranked, InputError):
                raise ranked
            chosen = ranked.chosen
        prompt = self.sampler.maker.rerank_prompt(question)
        if wrong := valid_list(chosen, prompt.shown):
            raise InputError(
                f"question '{question.id}': the list {list(chosen)} {wrong}, the passages that one "
                f"prompt shows; a list made by windows is no step of one prompt"
            )
        longest = self.sampler.prompts.max_list
        if len(chosen) > longest:
            raise InputError(
                f"question '{question.id}': the list holds {len(chosen)} passages, and lists at "
                f"most prompts.max_list = {longest}"
            )
        return self._steps(question, chosen, prompt.shown)

    def _steps(self, question: Question, chosen: Chosen, shown: int) -> ExplainedList:
        """The probability of every alternative at every step, from whole lists' tokens.

        A list begins with given ids where it ends behind them or goes on with a separator: the
        probabilities of these two sum up, whatever tokens ids are spelled in.
        """
        longest = min(self.sampler.prompts.max_list, shown)
        steps = len(chosen) + (len(chosen) < longest)
        asked: list[Chosen] = []
        for place in range(steps):
            before = chosen[:place]
            free = [p for p in range(1, shown + 1) if p not in before]
            asked += [before, *((*before, p) for p in free)]
            if place + 1 < longest and len(free) > 1:
                asked += [(*before, p, next(q for q in free if q != p)) for p in free]
        table = self._token_logps(question, list(dict.fromkeys(asked)))
        spelling = self.sampler.policy.spelling
        begun = {
            ids: len(spelling.spell(ids)) - len(spelling.closing) - 1 + len(spelling.between)
            for ids in table
            if ids
        }

        def mass(ids: Chosen, after: Chosen) -> float:
            """Log-probability that a list begins with ``ids``; ``after`` has one id more."""
            ends = sum(table[ids])
            goes_on = sum(table[after][: begun[ids]]) if after in table else -math.inf
            return float(np.logaddexp(ends, goes_on))

        found = []
        reached = 0.0
        for place in range(steps):
            before = chosen[:place]
            free = [p for p in range(1, shown + 1) if p not in before]
            logps = {STOP: sum(table[before]) - reached}
            for p in free:
                after = next((q for q in free if q != p), 0)
                logps[p] = mass((*before, p), (*before, p, after)) - reached
            taken = chosen[place] if place < len(chosen) else STOP
            found.append(ListStep(taken, logps))
            reached += logps[taken]
        if steps == len(chosen):
            found.append(ListStep(STOP, {STOP: 0.0}))
        return ExplainedList(chosen, float(sum(table[chosen])), tuple(found))

    def _token_logps(
        self, question: Question, lists: Sequence[Chosen]
    ) -> dict[Chosen, tuple[float, ...]]:
        """Log-probabilities by token of lists over one question's prompt."""
        branches = self.sampler.prompts.ids + 1
        groups = [lists[i : i + branches] for i in range(0, len(lists), branches)]
        rows = self.sampler.logps([question] * len(groups), groups, branches)
        return {
            ids: logps
            for group, row in zip(groups, rows, strict=True)
            for ids, logps in zip(group, row, strict=True)
        }
