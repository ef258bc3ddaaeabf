"""A language model that writes lists, as a policy to be served: at once, or as questions come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dynarag_jax.config import MorePassages
from dynarag_jax.errors import InputError
from dynarag_jax.records import Question, valid_list
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.reranking import try_rerank
from dynarag_jax.sampling.windows import Plan, Positions, Seen, Windows, plan
from dynarag_jax.serving.answering import warm_engine
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

    def within(self, question: Question) -> Question | InputError:
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
        whole = [self.within(question) for question in questions]
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
        if self.sampling.method != "independent":  # searches know no slots
            return BatchedLists(self, 4 * self.sampler.batch * self.sampler.prompts.ids)
        return WrittenListWorker(self, self._windows)

    # ------------------------------------------------------------------ why this list

    def explain(self, question: Question, chosen: Chosen | None = None) -> ExplainedList:
        if chosen is None:
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


@dataclass
class _ListInWork:
    """A question on its way: the windows that are read now, and what came of those before."""

    question: Question
    views: list[Positions]
    plan: Plan | None = None
    """of the windows to come; None where one prompt shows all candidates"""
    seen: dict[int, Seen] = field(default_factory=dict)
    """of ``views``, by place"""
    calls: int = 0
    tokens: int = 0
    shown: int = 0


class WrittenListWorker:
    """Lists of questions that come and go, through the slots of the sampling engine.

    The windows of one question share the slots with those of all others.
    """

    def __init__(self, policy: WrittenLists, windows: Windows):
        self._policy, self._sampler = policy, policy.sampler
        self._windows = windows
        self._engine = policy.sampler.new_list_engine(1)
        self._work: dict[str, _ListInWork] = {}
        self._asked: dict[str, tuple[str, int]] = {}
        """which question, and which of its views, a request of the engine reads"""
        self._shown: dict[str, int] = {}
        self._done: list[tuple[str, RankedList | InputError]] = []
        self._count = 0

    @property
    def busy(self) -> bool:
        return bool(self._work or self._done)

    @property
    def full(self) -> bool:
        # Some beyond those in flight, so that what enters can be chosen by its beginning.
        return len(self._asked) >= 2 * self._sampler.batch

    def warm(self) -> None:
        """Compile what lists need, for every length of prompts."""
        warm_engine(self._engine, self._sampler, lists=True)

    def submit(self, key: str, question: Question) -> None:
        within = self._policy.within(question)
        if isinstance(within, InputError):
            self._done.append((key, within))
            return
        n, prompts = len(within.passages), self._sampler.prompts
        if n <= prompts.ids:
            self._work[key] = _ListInWork(within, [tuple(range(1, n + 1))])
        else:
            windows = plan(n, self._windows.within(prompts.ids, prompts.max_list))
            self._work[key] = _ListInWork(within, next(windows), windows, shown=n)
        self._read(key)

    def _read(self, key: str) -> None:
        """Hand the views of a question to the engine."""
        work = self._work[key]
        for place, view in enumerate(work.views):
            part = replace(
                work.question,
                passages=tuple(work.question.passages[p - 1] for p in view),
                expert=None,
            )
            try:
                request = self._sampler.list_request(part, self._policy.sampling)
            except InputError as error:
                self._finish(key, error)
                return
            self._count += 1
            name = str(self._count)
            self._asked[name], self._shown[name] = (key, place), request.shown or 0
            work.calls += 1
            work.tokens += len(request.prompt)
            self._engine.submit(replace(request, id=name, key=request.id))

    def step(self) -> list[tuple[str, RankedList | InputError]]:
        for sampled in self._engine.step() if self._asked else ():
            if sampled.id not in self._asked:  # its question failed meanwhile
                continue
            key, place = self._asked.pop(sampled.id)
            shown = self._shown.pop(sampled.id)
            work = self._work[key]
            if sampled.refused:
                self._finish(key, InputError(f"question '{work.question.id}': {sampled.refused}"))
                continue
            (chosen,) = self._sampler.read(shown, sampled).lists
            work.seen[place] = Seen(chosen, shown)
            if len(work.seen) == len(work.views):
                self._go_on(key)
        done, self._done = self._done, []
        return done

    def _go_on(self, key: str) -> None:
        """All views of a question are read: the next ones, or its list."""
        work = self._work[key]
        seen = [work.seen[place] for place in range(len(work.views))]
        if work.plan is None:
            chosen, shown = tuple(seen[0].chosen), seen[0].shown
        else:
            try:
                work.views, work.seen = work.plan.send(seen), {}
                self._read(key)
                return
            except StopIteration as stop:
                chosen, shown = stop.value, work.shown
        self._finish(key, RankedList(chosen, (), work.calls, work.tokens, shown))

    def _finish(self, key: str, result: RankedList | InputError) -> None:
        self.cancel(key)
        self._done.append((key, result))

    def cancel(self, key: str) -> None:
        self._work.pop(key, None)
        self._done = [pair for pair in self._done if pair[0] != key]
        for name in [name for name, (whose, _) in self._asked.items() if whose == key]:
            del self._asked[name], self._shown[name]
            self._engine.cancel(name)
