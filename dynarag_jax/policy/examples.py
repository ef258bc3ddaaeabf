"""Supervised examples, from questions: the expert's list and the reference answer.

What is learned from sampled lists and their answers is in ``preferences``. Each example is one
prompt with its branches.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import tokenizer_fingerprint
from dynarag_jax.policy.batches import Example
from dynarag_jax.policy.grammar import Spelling
from dynarag_jax.policy.thoughts import thought_tokens
from dynarag_jax.policy.tokens import TokenCache, prompt_key
from dynarag_jax.prompts import (
    Prompt,
    PromptConfig,
    answer_messages,
    answer_prompt,
    answer_tokens,
    rerank_messages,
    rerank_prompt,
)
from dynarag_jax.records import Question
from dynarag_jax.thoughts import Thinking, find_thinking


@dataclass
class Reads:
    """Where prompts came from; what was tokenized is read the next time."""

    tokenized: int = 0
    read: int = 0
    """from the cache on disk"""


@dataclass
class ExampleMaker:
    """Turns records into examples with one tokenizer and one set of prompts; safe for threads."""

    tokenizer: Any
    spelling: Spelling
    prompts: PromptConfig
    rerank_length: int = 0
    """longest reranker's prompt; 0 is the configuration's"""
    answer_length: int = 0
    """longest generator's prompt; 0 is the configuration's"""
    cache: TokenCache | None = None
    """tokenized prompts on disk"""
    positions: int = 0
    """the model's; longer prompts are refused, and 0 lets all pass"""
    strict: bool = False
    """whether what is written behind a prompt must lie within the positions, too"""
    reads: Reads = field(default_factory=Reads)
    memory: int = 50_000_000
    """tokens of prompts kept in memory, four bytes each"""
    _kept: dict[bytes, tuple[np.ndarray, int]] = field(default_factory=dict, repr=False)
    _held: int = field(default=0, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @functools.cached_property
    def _tokenizer_fingerprint(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    @functools.cached_property
    def thinking(self) -> Thinking | None:
        """How the reranker's thoughts are opened and closed; None where it writes none."""
        p = self.prompts
        return find_thinking(self.tokenizer, p.style) if p.thought_tokens else None

    def _cached(self, messages: Any, limit: int, make: Callable[[], Prompt]) -> Prompt:
        # By content: the same question may come with other candidates, or with the same in another
        # order.
        key = prompt_key(self._tokenizer_fingerprint, messages, limit)
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            kept = self.cache.get(key) if self.cache is not None else None
            tokenized = kept is None
            if kept is None:
                prompt = make()
                kept = (np.asarray(prompt.tokens, "<u4"), prompt.shown)
                if self.cache is not None:
                    self.cache.put(key, prompt)
            with self._lock:
                self.reads.tokenized += tokenized
                self.reads.read += not tokenized
                if key not in self._kept:
                    self._kept[key] = kept
                    self._held += len(kept[0])
                while self._held > self.memory and len(self._kept) > 1:
                    self._held -= len(self._kept.pop(next(iter(self._kept)))[0])
        return Prompt(kept[0].tolist(), kept[1])

    def _within(self, question: Question, prompt: Prompt, limit: str, reply: int) -> Prompt:
        """The prompt, if the model has positions for it."""
        behind = reply if self.strict else 0
        if 0 < self.positions < len(prompt.tokens) + behind:
            what = f" and {behind} of what is written behind it" if behind else ""
            name = "original_max_position_embeddings" if self.strict else "max_position_embeddings"
            raise InputError(
                f"question '{question.id}': its prompt takes {len(prompt.tokens)} tokens{what}, "
                f"more than the model's {self.positions} positions ({name}); lower '{limit}' below "
                f"that"
            )
        return prompt

    def rerank_prompt(self, question: Question) -> Prompt:
        """The reranker's prompt of a question."""
        p = self.prompts
        limit, how = self.rerank_length or p.rerank_tokens, self.thinking
        messages = rerank_messages(question, question.passages[: p.ids], p.style, how)
        prompt = self._cached(
            messages if how is None else ["thinking", how.opening, messages],
            limit,
            lambda: rerank_prompt(self.tokenizer, question, p.style, limit, p.ids, how),
        )
        longest = self.spelling.longest(p.max_list)
        return self._within(question, prompt, "prompts.rerank_tokens", longest)

    def answer_prompt(self, question: Question, chosen: Sequence[int]) -> Prompt:
        """The generator's prompt of a question over the chosen passages."""
        p = self.prompts
        limit = self.answer_length or p.answer_prompt_tokens
        # Wrong lists are for ``answer_prompt`` to refuse; here they are only part of the key.
        passages = [question.passages[i - 1] for i in chosen if 0 < i <= len(question.passages)]
        prompt = self._cached(
            ["answer", list(chosen), answer_messages(question, passages, p.style)],
            limit,
            lambda: answer_prompt(self.tokenizer, question, chosen, p.style, limit),
        )
        return self._within(question, prompt, "prompts.answer_prompt_tokens", p.answer_tokens)

    def dropped(self, question: Question, prompt: Prompt) -> int:
        """Passages that a question's reranker prompt lost, from the end of the list."""
        return min(len(question.passages), self.prompts.ids) - prompt.shown

    def visible(self, ids: Sequence[int], shown: int) -> tuple[int, ...]:
        """The ids of an expert's list that can be imitated: shown, and within the longest list."""
        return tuple(i for i in ids if i <= shown)[: self.prompts.max_list]

    def thought(self, question_id: str, text: str) -> tuple[list[int], bool]:
        """Tokens of a thought with what closes it, and whether it is longer than thoughts may be.

        Raises:
          InputError: it holds the words that close a thought, or what the tokenizer has no tokens
            for.
        """
        assert self.spelling.thought is not None
        tokens = thought_tokens(self.tokenizer, text)
        if banned := [i for i in tokens if i in self.spelling.thought.banned]:
            unknown = banned[0] == self.tokenizer.unk_token_id
            what = "words that the tokenizer does not know" if unknown else "a special token"
            raise InputError(
                f"question '{question_id}': its thought {text[:40]!r} holds {what}, which a policy "
                f"never writes; change it, or leave the thought empty"
            )
        try:
            return self.spelling.thought.spell(tokens)
        except ValueError:
            closing = self.thinking.closing if self.thinking else ""
            raise InputError(
                f"question '{question_id}': its thought {text[:40]!r} holds {closing!r}, which "
                f"closes a thought; take it out"
            ) from None

    def behavior(self, question: Question) -> Example:
        """Behavior cloning: the expert's list, and the thought before it where there is one.

        A policy that thinks learns lists that have no thought behind an empty one, and those of
        longer thoughts behind what of them is within the limit; neither thought is learned. So is
        that of a list that does not fit the prompt: it may speak of passages that are not shown.

        Raises:
          InputError: the question has no expert list.
        """
        if question.expert is None:
            raise InputError(f"question '{question.id}' has no expert list; run the label stage")
        prompt = self.rerank_prompt(question)
        ids = self.visible(question.expert, prompt.shown)
        example = Example(
            id=question.id,
            prompt=prompt.tokens,
            branches=(self.spelling.spell(ids),),
            shown=prompt.shown,
            ranking=ids,
            dropped=self.dropped(question, prompt),
            dropped_ids=len(question.expert) - len(ids),
        )
        if self.spelling.thought is None:
            return example
        said = question.expert_thought if not example.dropped_ids else ""
        thought, cut = self.thought(question.id, said)
        whole = len(thought_tokens(self.tokenizer, said)) if cut else 0
        return replace(
            example,
            branches=(self.spelling.spell(ids, thought),),
            dropped_tokens=max(whole - self.spelling.thought.limit, 0),
            thoughts=(len(thought),),
            given=(0 if said.strip() and not cut else len(thought),),
        )

    def answer(self, question: Question, chosen: Sequence[int]) -> Example:
        """Generator SFT: the first reference answer from the chosen passages.

        Raises:
          InputError: the question has no answer.
        """
        if not question.answers:
            raise InputError(f"question '{question.id}' has no answer to train the generator on")
        prompt = self.answer_prompt(question, chosen)
        whole = answer_tokens(self.tokenizer, question.answers[0])
        target = whole[: self.prompts.answer_tokens]
        return Example(
            id=question.id,
            prompt=prompt.tokens,
            branches=(target,),
            dropped=len(chosen) - prompt.shown,
            dropped_tokens=len(whole) - len(target),
        )
