"""A client of OpenAI-compatible chat completions: retries with backoff, time-outs, what failed.

Who writes lists (``sampling.server``), gives reasons for them (``sampling.reason_server``), answers
questions (``sampling.answer_server``) and judges answers (``rewards.judge``) share it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dynarag_jax.config import SameResult
from dynarag_jax.errors import InputError
from dynarag_jax.json_client import Failed, JsonClient
from dynarag_jax.replies import Reply, read_choice


@dataclass(frozen=True)
class ChatServer:
    """A server that speaks OpenAI's chat completions, and how patiently it is asked."""

    url: str = ""
    """its address up to and including /v1"""
    model: str = ""
    """the name it serves the model by"""
    key_variable: SameResult[str] = "OPENAI_API_KEY"
    """environment variable that holds the key, if the server wants one"""
    parallel: SameResult[int] = 16
    """requests at once"""
    timeout: SameResult[float] = 120.0
    """seconds for one request"""
    retries: SameResult[int] = 4
    """further attempts after a failed one"""
    backoff: SameResult[float] = 1.0
    """seconds before the first of them, twice as long before each next; Retry-After comes first"""

    what: ClassVar[str] = "server"
    """how messages call it: the name of its settings in a stage"""

    def __post_init__(self) -> None:
        what = self.what
        if self.url and not self.url.startswith(("http://", "https://")):
            raise InputError(f"{what}: url = {self.url!r} must begin with http:// or https://")
        if self.url and not self.model:
            raise InputError(f"{what}: 'model' is empty; name the model the server serves")
        if self.parallel < 1 or self.retries < 0:
            raise InputError(f"{what}: parallel must be positive, retries not below 0")
        if not (self.timeout > 0 and self.backoff >= 0):
            raise InputError(f"{what}: timeout must be positive, backoff not negative")

    def chat(
        self, key: str, closed: threading.Event, before: Callable[[], None] = lambda: None
    ) -> Chat:
        """The client.

        Args:
          closed: set it to end all waiting.
          before: called before every attempt; what it raises ends the request.
        """
        mend = f"'url', 'model' and the key in {self.key_variable}"
        client = JsonClient(
            self.what, self.url, key, mend, self.timeout, self.retries, self.backoff, closed, before
        )
        return Chat(client)


@dataclass(frozen=True)
class Completion:
    """The replies of a chat completion, one a choice, and what they cost."""

    replies: list[Reply]
    """thoughts taken off; those that were cut off or refused are missing, with the reason"""
    tokens: int | None = None
    """prompt and completion together, where the server says so"""


@dataclass(frozen=True)
class Chat:
    """The client of one server's chat completions; may be used by many threads."""

    client: JsonClient

    def complete(self, body: dict[str, Any]) -> Completion:
        """Ask until there is a completion.

        Raises:
          Failed: there is none after all attempts, or the server refuses this request for good.
          InputError: the server cannot be reached, or refuses to serve us at all.
        """
        try:
            return self.client.post("/chat/completions", body, read_completion)
        except Failed as error:
            if not error.unreachable:
                raise
            raise InputError(
                f"{self.client.what} {self.client.url}: cannot be reached ({error}); start it, or "
                f"correct 'url', and run again: what is done is kept"
            ) from None


def read_completion(data: bytes) -> Completion:
    """Read a chat completion; Failed if it is none."""
    try:
        value = json.loads(data)
        replies = [read_choice(choice) for choice in value["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shown = data[:60].decode("utf-8", "replace")
        raise Failed(f"a response that is no chat completion: {shown!r}") from None
    if not replies:
        raise Failed("a response without choices")
    usage = value.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return Completion(replies, total if isinstance(total, int) and total >= 0 else None)


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """Fill fields in one pass, so that braces in a question or an answer are left alone."""
    parts, at = [], 0
    while at < len(prompt):
        name = next((n for n in values if prompt.startswith(n, at)), None)
        parts.append(prompt[at] if name is None else values[name])
        at += 1 if name is None else len(name)
    return "".join(parts)
