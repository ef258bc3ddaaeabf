"""A scorer of single passages with a rule that cuts its order off: a policy without training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.records import Question, valid_list
from dynarag_jax.retrieval.relevance import PairScorer, score_together, scorer_batches
from dynarag_jax.serving.policies import (
    STOP,
    BatchedLists,
    Chosen,
    ExplainedList,
    ListStep,
    RankedList,
)
from dynarag_jax.serving.rules import CutOff

LENGTHS = (*range(16, 256, 16), *range(256, 512, 32), 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Padded lengths of batches while requests are served, as far as the model's longest."""

BATCHES = 4
"""full batches of pairs that are worked on before the next requests enter"""


class ScoredLists:
    """The list that a rule cuts out of a scorer's order; a ``ListPolicy``.

    Args:
      scorer: a MonoT5, a cross-encoder with one logit or a Qwen3-Reranker.
      devices: those that share a batch; all local ones if None.
    """

    def __init__(self, scorer: PairScorer, rule: CutOff, devices: Sequence[Any] | None = None):
        self._scorer, self.rule = scorer, rule
        self._batches = scorer_batches(scorer, devices=devices)

    @property
    def kind(self) -> str:
        return self._scorer.kind

    def rank_lists(self, questions: Sequence[Question]) -> list[RankedList | InputError]:
        if not questions:
            return []
        found: list[RankedList | InputError] = []
        scored, tokens = score_together(self._scorer, self._batches, questions)
        for question, scores, read in zip(questions, scored, tokens, strict=True):
            values = tuple(float(s) for s in scores)
            if not all(map(math.isfinite, values)):
                found.append(InputError("the model's scores are NaN or infinite"))
                continue
            chosen = self.rule.choose(question, values)
            found.append(RankedList(chosen, values, tokens=read, shown=len(values)))
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
        pairs = self._batches.tokens // 128 * self._batches.mesh.size
        return BatchedLists(self, max(8, BATCHES * pairs))

    def warm(self) -> None:
        """Compile every shape of batches; from then on no request waits for a compiler."""
        longest = self._scorer.longest
        lengths = [length for length in LENGTHS if length < longest]
        columns = len(self._scorer.columns([("a", "b")]))
        for _ in self._batches.settle([*lengths, longest], columns):
            pass
