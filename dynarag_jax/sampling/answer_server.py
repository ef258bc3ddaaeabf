"""Answers from a server that speaks OpenAI's chat completions: the generator as a black box.

Whoever's model answers in the end is the one whose answers should be rewarded, and it is often
behind an address: vLLM, llama.cpp, a commercial interface. Replies are kept on disk and asked for
once (``chat_cache``); one that cannot be had is missing, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dynarag_jax.chat_cache import CachedChat, PaidServer, Replies
from dynarag_jax.config import SameResult
from dynarag_jax.errors import InputError
from dynarag_jax.prompts import TEMPLATE_SETTINGS, Style, answer_messages
from dynarag_jax.records import Question
from dynarag_jax.replies import without_chat_markers
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler


@dataclass(frozen=True)
class GeneratorConfig(PaidServer):
    """An OpenAI-compatible server that answers in place of the policy."""

    url: str = ""
    """its address up to and including /v1; empty answers here, with the policy's own weights"""
    max_tokens: int = 512
    """tokens of an answer at most, its thought included; a longer one is missing"""
    cache: SameResult[str] = "{run}/generator.jsonl"
    """JSONL of replies by the content of what was asked; stages may share it"""
    style: Style = "instruct"
    """wording of the prompt; 'compact' is for models that were trained on it here"""
    system: bool = True
    """give the instruction in a system message; false puts it at the head of the user's, for models
    whose chat template refuses one"""
    template_settings: bool = True
    """send chat_template_kwargs, so that models that can think first do not; false for servers
    that refuse the field"""

    what: ClassVar[str] = "generator"

    def record(self) -> dict[str, Any]:
        """What decides the answers, for the records of rollouts."""
        names = ("model", "temperature", "max_tokens", "style", "system", "template_settings")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class NoAnswer:
    """An answer that could not be had, and why."""

    reason: str


class ServerAnswers:
    """Answers by a server.

    Attributes:
      counts: how many were ``asked`` for, ``cached`` and ``missing`` so far.
      reasons: why answers are missing, by kind, with how many there are.

    Args:
      sampler: its prompts' configuration and tokenizer decide how many passages of a list are
        shown, as they do where the policy answers itself. Of several processes that share
        questions one asks.
      key: the server's key, or empty.
      replies: what was replied before; None keeps nothing.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        sampler: PolicySampler,
        key: str = "",
        replies: Replies | None = None,
    ):
        if not config.url:
            raise InputError("generator: 'url' is empty; give the address of the server")
        self.config, self._sampler = config, sampler
        self.reasons: Counter[str] = Counter()
        self._chat = CachedChat(config, key, replies, sampler.team)
        self.counts = self._chat.counts

    def close(self) -> None:
        """Give up what is under way, and close the file of replies."""
        self._chat.close()

    def try_answers(
        self, pairs: Sequence[tuple[Question, Chosen]]
    ) -> list[str | InputError | NoAnswer]:
        """The answer to each question from its list's passages.

        In place of one that cannot be asked for (its prompt does not fit), or had, the reason.

        Raises:
          InputError: the server cannot be reached or refuses us, or the spending limit is reached;
            what was replied before is kept.
        """
        answers: dict[int, str | InputError | NoAnswer] = {}
        bodies: dict[int, dict[str, Any]] = {}
        for place, (question, chosen) in enumerate(pairs):
            try:
                bodies[place] = self._body(question, chosen)
            except InputError as error:
                answers[place] = error
        for place, reply in zip(bodies, self._chat.ask(list(bodies.values())), strict=True):
            self._sampler.heard()
            text = reply.text.strip()
            if reply.missing or not text:
                reason = reply.missing or "an empty reply"
                self.counts["missing"] += 1
                self.reasons[reason.partition(":")[0]] += 1
                answers[place] = NoAnswer(f"the server gave no answer: {reason}")
            else:
                answers[place] = text
        return [answers[place] for place in range(len(pairs))]

    def _body(self, question: Question, chosen: Chosen) -> dict[str, Any]:
        shown = self._sampler.maker.answer_prompt(question, chosen).shown
        passages = [question.passages[i - 1] for i in chosen[:shown]]
        messages = answer_messages(question, passages, self.config.style)
        # The server's model is not ours: of its special tokens only those that all know go out.
        messages = [{**m, "content": without_chat_markers(m["content"])} for m in messages]
        if not self.config.system:
            text = "\n\n".join(m["content"] for m in messages)
            messages = [{"role": "user", "content": text}]
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": messages,
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        if self.config.template_settings:
            body["chat_template_kwargs"] = dict(TEMPLATE_SETTINGS)
        return body
