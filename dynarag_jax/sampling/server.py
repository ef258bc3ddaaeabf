"""Lists from a server that speaks OpenAI's chat completions (vLLM, SGLang and others).

What comes back is text from elsewhere: it is read leniently, every repair is counted, and the
log-probabilities of the lists are computed here, under the local policy's grammar.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from typing import Any

from dynarag_jax.chat import ChatServer
from dynarag_jax.errors import InputError
from dynarag_jax.json_client import Failed
from dynarag_jax.prompts import (
    conversation,
    parse_list_leniently,
    rerank_messages,
)
from dynarag_jax.records import Question
from dynarag_jax.replies import Reply
from dynarag_jax.rollout_records import Thought
from dynarag_jax.sampling.list_sources import Draft, Reject
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import request_key
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.templates import template_settings


@dataclass(frozen=True)
class ServerConfig(ChatServer):
    """An OpenAI-compatible server that writes the lists in place of the policy."""

    url: str = ""
    """its address up to and including /v1; empty samples here"""
    max_tokens: int = 256
    """tokens of a list at most, a thought before it included; a longer reply is missing"""
    template_settings: bool = True
    """send chat_template_kwargs, by which servers write the prompt that is trained on and models
    that can think first do so only with ``prompts.thought_tokens``; false for servers that refuse
    the field"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise InputError("server: max_tokens must be positive")


class ServerLists:
    """Lists by a server; a ``rollouts.Source``.

    Attributes:
      repairs: how often each kind of repair was needed, by the names of ``prompts.Repairs``, and
        ``too_long`` of lists cut to the configured length; ``unreadable`` texts are left out, and
        so are ``missing`` ones: cut off, refused, or nothing behind a thought. Of a policy that
        thinks, ``cut_thoughts`` counts those of which only the beginning is kept.

    Args:
      sampler: its prompts' configuration and tokenizer decide how many passages are shown. Of
        several processes that share questions one asks.
      key: the server's key, or empty.
    """

    def __init__(
        self,
        config: ServerConfig,
        sampler: PolicySampler,
        questions: Sequence[Question],
        sampling: Sampling,
        samples: int,
        key: str = "",
    ):
        self.repairs: Counter[str] = Counter()
        self._config, self._sampler = config, sampler
        self._sampling, self._samples = sampling, samples
        self._todo = deque(questions)
        self._closed = threading.Event()
        self._chat = config.chat(key, self._closed)
        self._pool = ThreadPoolExecutor(config.parallel, thread_name_prefix="server")
        self._inside: dict[str, tuple[Question, int]] = {}
        self._asked: dict[Future[list[Reply]], str] = {}

    @property
    def busy(self) -> bool:
        return bool(self._todo or self._inside)

    def close(self) -> None:
        """Give up what is under way."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def step(self) -> list[Draft | Reject]:
        """Wait for some lists; raises InputError where the server cannot be reached or refuses."""
        results: list[Draft | Reject] = []
        while self._todo and len(self._inside) < 2 * self._config.parallel:
            question = self._todo.popleft()
            try:
                shown = self._sampler.maker.rerank_prompt(question).shown
            except InputError as error:
                results.append(Reject(question.id, str(error)))
                continue
            self._inside[question.id] = question, shown
            if self._sampler.team.leader:
                self._asked[self._pool.submit(self._ask, question, shown)] = question.id
        for one in self._sampler.team.told(self._finished):
            question, shown = self._inside.pop(one["id"])
            if "failed" in one:
                reason = f"question '{question.id}': the server gave no lists: {one['failed']}"
                results.append(Reject(question.id, reason))
            else:
                replies = [Reply(**reply) for reply in one["replies"]]
                results.append(self._read(question, shown, replies))
        return results

    def _finished(self) -> list[dict[str, Any]]:
        """What has been replied to since, or why not; waits for some of it."""
        done, _ = wait(self._asked, timeout=1.0, return_when=FIRST_COMPLETED)
        found: list[dict[str, Any]] = []
        for future in done:
            one: dict[str, Any] = {"id": self._asked.pop(future)}
            try:
                one["replies"] = [asdict(reply) for reply in future.result()]
            except Failed as error:
                one["failed"] = str(error)
            found.append(one)
        return found

    def _read(self, question: Question, shown: int, replies: list[Reply]) -> Draft | Reject:
        lists, reasons, thoughts = [], [], []
        for reply in replies:
            text, thought = reply.text, None
            if self._sampler.maker.thinking is not None and not reply.missing:
                reply, thought = self._split(question, reply)
                text = reply.text
            self.repairs.update(["thought"] if reply.thought else [])
            if reply.missing:
                self.repairs["missing"] += 1
                reasons.append(reply.missing)
                continue
            chosen, repairs = parse_list_leniently(text, shown)
            self.repairs.update({name: count for name, count in vars(repairs).items() if count})
            if repairs.unreadable:
                reasons.append(f"{text[:60]!r}")
                continue
            longest = self._sampler.prompts.max_list
            self.repairs["too_long"] += len(chosen) > longest
            lists.append(chosen[:longest])
            thoughts += [] if thought is None else [thought]
        if not lists:
            return Reject(
                question.id,
                f"question '{question.id}': none of the server's {len(replies)} texts holds a "
                f"list, of the first: {reasons[0]}",
            )
        name = f"server:{self._config.model}"
        return Draft(question, shown, tuple(lists), (), name, thoughts=tuple(thoughts))

    def _split(self, question: Question, reply: Reply) -> tuple[Reply, Thought | None]:
        """The reply without its thought, as the policy spells it; missing where that cannot be."""
        maker = self._sampler.maker
        how, text, said = maker.thinking, reply.text, reply.thought
        if how is not None and how.cued:
            said, cue, text = text.rpartition(how.closing)
            if not cue:
                return replace(reply, missing=f"its thought does not end in {how.closing!r}"), None
        try:
            tokens, cut = maker.thought(question.id, said)
        except InputError as error:
            return replace(reply, missing=str(error)), None
        self.repairs["cut_thoughts"] += cut
        return replace(reply, text=text.strip()), Thought(said.strip(), tuple(tokens), cut=cut)

    # ------------------------------------------------------------------ in threads

    def _ask(self, question: Question, shown: int) -> list[Reply]:
        """The replies of all samples; servers that give fewer at once are asked again."""
        style, thinking = self._sampler.prompts.style, self._sampler.maker.thinking
        messages = rerank_messages(question, question.passages[:shown], style, thinking)
        messages = conversation(self._sampler.policy.tokenizer, messages, thinking)
        replies: list[Reply] = []
        while len(replies) < self._samples:
            how, left = self._sampling, self._samples - len(replies)
            body: dict[str, Any] = {
                "model": self._config.model,
                "messages": messages,
                "n": left,
                "temperature": how.temperature,
                "top_p": how.top_p,
                "max_tokens": self._config.max_tokens,
                "seed": request_key(self._sampler.seed, f"{question.id}/{len(replies)}") >> 1,
            }
            # Servers know one end by themselves; more than four strings OpenAI's own refuses.
            ends = [self._sampler.policy.tokenizer.decode([e]) for e in self._sampler.policy.ends]
            body |= {"stop": ends[:4]}
            # Not of OpenAI's own interface, but of vLLM's and SGLang's.
            if self._config.template_settings:
                body["chat_template_kwargs"] = template_settings(thinking)
            body |= {"top_k": how.top_k} if how.top_k else {}
            body |= {"min_p": how.min_p} if how.min_p else {}
            replies += self._chat.complete(body).replies[:left]
        return replies
