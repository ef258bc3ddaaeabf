"""Supervised examples, from questions: the expert's list and the reference answer.

What is learned from sampled lists and their answers is in ``preferences``. Each example is one
prompt with its branches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.policy.grammar import Spelling
from dynarag_jax.prompts import (
    Prompt,
    PromptConfig,
    answer_prompt,
    answer_tokens,
    rerank_prompt,
)
from dynarag_jax.records import Question
from dynarag_jax.training.batches import Example


@dataclass
class Counts:
    """What was cut or left out while examples were made; logged, never silent."""

    dropped_passages: int = 0
    """passages that did not fit a reranker's prompt"""
    dropped_context: int = 0
    """chosen passages that did not fit a generator's prompt"""
    dropped_ids: int = 0
    """ids of expert lists whose passages are not shown, or beyond the longest list"""


@dataclass
class ExampleMaker:
    """Turns records into examples with one tokenizer and one set of prompts."""

    tokenizer: Any
    spelling: Spelling
    prompts: PromptConfig
    rerank_length: int = 0
    """longest reranker's prompt; 0 is the configuration's"""
    answer_length: int = 0
    """longest generator's prompt; 0 is the configuration's"""
    counts: Counts = field(default_factory=Counts)
    cache_size: int = 50_000
    """rendered prompts kept in memory"""
    _cache: dict[Any, Prompt] = field(default_factory=dict, repr=False)

    def _cached(self, question: Question, chosen: Any, make: Any) -> Prompt:
        # By content: the same question may come with other candidates, or with the same in another
        # order.
        texts = tuple((p.title, p.text) for p in question.passages)
        key = (question.id, question.text, question.task, texts, chosen)
        prompt = self._cache.get(key)
        if prompt is None:
            prompt = make()
            if len(self._cache) >= self.cache_size:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = prompt
        return prompt

    def rerank_prompt(self, question: Question) -> Prompt:
        """The reranker's prompt of a question."""
        p = self.prompts
        limit = self.rerank_length or p.rerank_tokens

        def make() -> Prompt:
            prompt = rerank_prompt(self.tokenizer, question, p.style, limit, p.ids)
            self.counts.dropped_passages += min(len(question.passages), p.ids) - prompt.shown
            return prompt

        return self._cached(question, None, make)

    def answer_prompt(self, question: Question, chosen: Sequence[int]) -> Prompt:
        """The generator's prompt of a question over the chosen passages."""
        p, chosen = self.prompts, tuple(chosen)
        limit = self.answer_length or p.answer_prompt_tokens

        def make() -> Prompt:
            prompt = answer_prompt(self.tokenizer, question, chosen, p.style, limit)
            self.counts.dropped_context += len(chosen) - prompt.shown
            return prompt

        return self._cached(question, chosen, make)

    def visible(self, ids: Sequence[int], shown: int) -> tuple[int, ...]:
        """The ids of an expert's list that can be imitated: shown, and within the longest list."""
        kept = tuple(i for i in ids if i <= shown)[: self.prompts.max_list]
        self.counts.dropped_ids += len(ids) - len(kept)
        return kept

    def behavior(self, question: Question) -> Example:
        """Behavior cloning: the expert's list.

        Raises:
          InputError: the question has no expert list.
        """
        if question.expert is None:
            raise InputError(f"question '{question.id}' has no expert list; run the label stage")
        prompt = self.rerank_prompt(question)
        ids = self.visible(question.expert, prompt.shown)
        return Example(
            id=question.id,
            prompt=prompt.tokens,
            branches=(self.spelling.spell(ids),),
            shown=prompt.shown,
            ranking=ids,
        )

    def answer(self, question: Question, chosen: Sequence[int]) -> Example:
        """Generator SFT: the first reference answer from the chosen passages.

        Raises:
          InputError: the question has no answer.
        """
        if not question.answers:
            raise InputError(f"question '{question.id}' has no answer to train the generator on")
        prompt = self.answer_prompt(question, chosen)
        target = answer_tokens(self.tokenizer, question.answers[0], self.prompts.answer_tokens)
        return Example(id=question.id, prompt=prompt.tokens, branches=(target,))


def mix(seed: int, name: str, epoch: int, index: int) -> float:
    """A number in [0, 1) that depends on these alone: how an example varies between epochs."""
    # Python's own hash of text differs between processes.
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64
