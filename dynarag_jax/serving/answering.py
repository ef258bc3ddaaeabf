"""Answers of questions that come and go, readable while they are written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dynarag_jax.errors import InputError
from dynarag_jax.prompts import decode_answer
from dynarag_jax.records import Question
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.engine import Engine
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import Request
from dynarag_jax.serving.policies import Chosen


@dataclass(frozen=True)
class AnswerRequest:
    """What is to be answered, and how.

    Attributes:
      chosen: 1-based positions of the passages to read, in the order of reading.
      max_tokens: of the answer, its end included; 0 is the prompts' most.
      seed: of its random numbers, where the temperature is above 0.
    """

    question: Question
    chosen: Chosen = ()
    sampling: Sampling = Sampling(temperature=0.0)
    max_tokens: int = 0
    seed: str = ""


@dataclass(frozen=True)
class AnswerPart:
    """An answer as far as it is written.

    Attributes:
      text: all of it so far.
      done: whether it is whole.
      ended: whether it ended by itself; else it was cut at the most tokens.
      tokens: written so far, the end included; ``prompt_tokens``: read.
      read: passages that the prompt had room for, the first of the list.
    """

    text: str
    done: bool = False
    ended: bool = False
    tokens: int = 0
    prompt_tokens: int = 0
    read: int = 0


@dataclass
class _AnswerInWork:
    prompt_tokens: int
    read: int
    told: int = 0


class AnswerWorker:
    """A generator at work on questions that come and go; used by one thread."""

    def __init__(self, sampler: PolicySampler):
        self._sampler, self._engine = sampler, sampler.new_answer_engine()
        self._work: dict[str, _AnswerInWork] = {}
        self._failed: list[tuple[str, AnswerPart | InputError]] = []

    @property
    def busy(self) -> bool:
        return bool(self._work or self._failed)

    @property
    def full(self) -> bool:
        return len(self._work) >= 2 * self._sampler.batch

    def warm(self) -> None:
        """Compile what answers need, for every length of prompts."""
        warm_engine(self._engine, self._sampler, lists=False)

    def submit(self, key: str, asked: AnswerRequest) -> None:
        """Take a question; ``key`` names it among those in work."""
        try:
            prompt = self._sampler.maker.answer_prompt(asked.question, asked.chosen)
        except InputError as error:
            self._failed.append((key, error))
            return
        most = self._sampler.prompts.answer_tokens
        self._work[key] = _AnswerInWork(len(prompt.tokens), prompt.shown)
        self._engine.submit(
            Request(
                key,
                prompt.tokens,
                sampling=asked.sampling,
                stops=self._sampler.policy.ends,
                max_tokens=min(asked.max_tokens or most, most),
                key=asked.seed or asked.question.id,
            )
        )

    def step(self) -> list[tuple[str, AnswerPart | InputError]]:
        """Work for a while; what was written since, and what has finished."""
        parts, self._failed = self._failed, []
        policy = self._sampler.policy
        for sampled in self._engine.step() if self._work else ():
            work = self._work.pop(sampled.id, None)
            if work is None:
                continue
            if sampled.refused:
                parts.append((sampled.id, InputError(sampled.refused)))
                continue
            tokens = sampled.branches[0]
            text = decode_answer(policy.tokenizer, tokens, policy.ends)
            parts.append(
                (
                    sampled.id,
                    AnswerPart(
                        text, True, sampled.finished[0], len(tokens), work.prompt_tokens, work.read
                    ),
                )
            )
        for key, tokens in self._engine.written().items() if self._work else ():
            work = self._work.get(key)
            if work is not None and len(tokens) > work.told:
                work.told = len(tokens)
                text = decode_answer(policy.tokenizer, tokens, policy.ends)
                parts.append((key, AnswerPart(text, False, False, len(tokens), work.prompt_tokens)))
        return parts

    def cancel(self, key: str) -> None:
        """Stop working on a question; nothing comes of it."""
        self._work.pop(key, None)
        self._failed = [pair for pair in self._failed if pair[0] != key]
        self._engine.cancel(key)


def warm_engine(engine: Engine, sampler: PolicySampler, lists: bool) -> None:
    """Compile an engine's programs for every length: prompts alone, and such as begin alike."""
    policy = sampler.policy
    stops = (policy.spelling.end,) if lists else policy.ends
    request = Request("", (), 1 if lists else None, sampling=Sampling(0.0), stops=stops)
    shorter = 0
    for length in engine.lengths:
        prompt, shorter = [0] * (shorter + 1), length  # the least that takes this length
        requests = [
            replace(request, id=f"warm {length} {n}", prompt=prompt, max_tokens=0) for n in range(2)
        ]
        for _ in engine.run(requests):
            pass
