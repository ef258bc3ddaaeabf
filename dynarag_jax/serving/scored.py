"""A scorer of single passages with a rule that cuts its order off: a policy without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.records import Question, valid_list
from dynarag_jax.retrieval.relevance import PairScorer, score_questions
from dynarag_jax.serving.policies import (
    STOP,
    BatchedLists,
    Chosen,
    ExplainedList,
    ListStep,
    RankedList,
)
from dynarag_jax.serving.rules import CutOff


class ScoredLists:
    """The list that a rule cuts out of a scorer's order; a ``ListPolicy``.

    Args:
      scorer: a MonoT5, a cross-encoder with one logit or a Qwen3-Reranker.
      devices: those that share a batch; all local ones if None.
    """

    def __init__(self, scorer: PairScorer, rule: CutOff, devices: Sequence[Any] | None = None):
        self._scorer, self.rule, self._devices = scorer, rule, devices

    @property
    def kind(self) -> str:
        return self._scorer.kind

    def rank_lists(self, questions: Sequence[Question]) -> list[RankedList | InputError]:
        found: list[RankedList | InputError] = []
        for question, scores in score_questions(self._scorer, questions, devices=self._devices):
            values = tuple(float(s) for s in scores)
            n = len(question.passages)
            found.append(RankedList(self.rule.choose(question, values), values, shown=n))
        return found

    def explain(self, question: Question, chosen: Chosen | None = None) -> ExplainedList:
        (ranked,) = self.rank_lists([question])
        if isinstance(ranked, InputError):
            raise ranked
        chosen = ranked.chosen if chosen is None else chosen
        if wrong := valid_list(chosen, len(question.passages)):
            raise InputError(f"question '{question.id}': the list {list(chosen)} {wrong}")
        steps = tuple(ListStep(position, {}) for position in (*chosen, STOP))
        return ExplainedList(chosen, None, steps, ranked.scores)

    def worker(self) -> BatchedLists:
        return BatchedLists(self)
