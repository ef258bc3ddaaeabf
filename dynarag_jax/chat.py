"""A client of OpenAI-compatible chat completions: retries with backoff, time-outs, what failed.

Only the standard library: no SDK decides for us what is repeated. Who writes lists
(``sampling.server``) and who judges answers (``rewards.judge``) share it.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from dynarag_jax.config import SameResult
from dynarag_jax.errors import InputError
from dynarag_jax.replies import Reply, read_choice

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever a server asks for."""
LARGEST = 16 << 20
"""Bytes of a response at most."""


class Failed(Exception):
    """A failed attempt: to be repeated, after ``wait`` seconds if the server says so, or final."""

    def __init__(
        self,
        reason: str,
        wait: float | None = None,
        *,
        unreachable: bool = False,
        final: bool = False,
    ):
        super().__init__(reason)
        self.wait, self.unreachable, self.final = wait, unreachable, final


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
        """The client: see ``Chat``."""
        return Chat(
            self.what, self.url, key, self.key_variable, self.timeout, self.retries, self.backoff,
            closed, before,
        )  # fmt: skip


@dataclass(frozen=True)
class Completion:
    """The replies of a chat completion, one a choice, and what they cost."""

    replies: list[Reply]
    """thoughts taken off; those that were cut off or refused are missing, with the reason"""
    tokens: int | None = None
    """prompt and completion together, where the server says so"""


@dataclass(frozen=True)
class Chat:
    """One server and how patiently it is asked; may be used by many threads.

    Attributes:
      what: its name in messages, and the name of its settings.
      url: its address up to and including /v1.
      key: its key, or empty; ``key_variable`` names the environment variable in messages.
      timeout: seconds for one request, from the first byte sent to the last one read.
      retries: further attempts after a failed one.
      backoff: seconds before the first of them, twice as long before each next; a Retry-After of
        the server comes first.
      closed: set it to end all waiting.
      before: called before every attempt; what it raises ends the request.
    """

    what: str
    url: str
    key: str
    key_variable: str
    timeout: float
    retries: int
    backoff: float
    closed: threading.Event
    before: Callable[[], None] = lambda: None

    def complete(self, body: dict[str, Any]) -> Completion:
        """Ask until there is a completion.

        Raises:
          Failed: there is none after all attempts, or the server refuses this request for good.
          InputError: the server cannot be reached, or refuses to serve us at all.
        """
        for attempt in range(self.retries + 1):
            self.before()
            try:
                return self._post(body)
            except Failed as error:
                if error.final or attempt == self.retries or self.closed.is_set():
                    if error.unreachable:
                        raise InputError(
                            f"{self.what} {self.url}: cannot be reached ({error}); start it, or "
                            f"correct 'url', and run again: what is done is kept"
                        ) from None
                    raise
                pause = self.backoff * 2**attempt if error.wait is None else error.wait
                self.closed.wait(min(pause, LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: dict[str, Any]) -> Completion:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        url = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        limit = self.timeout
        try:
            began = time.monotonic()
            with urllib.request.urlopen(request, timeout=limit) as response:
                data = b""
                # A server that sends a byte now and then never lets a read time out.
                while block := response.read1(1 << 16):
                    data += block
                    if time.monotonic() - began > limit:
                        raise TimeoutError
                    if len(data) > LARGEST:
                        raise Failed(f"a response of more than {LARGEST >> 20} MiB")
        except urllib.error.HTTPError as error:
            raise self._status(error) from None
        except TimeoutError:
            raise Failed(f"no answer within {limit:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise Failed(f"no answer within {limit:g} s") from None
            raise Failed(str(error.reason), unreachable=True) from None
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"the connection broke ({type(error).__name__})") from None
        return read_completion(data)

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status of failure means: again, set aside, or the end of the run."""
        says = " ".join(error.read(300).decode("utf-8", "replace").split())
        reason = f"HTTP {error.code} {error.reason}{': ' + says if says else ''}"
        if error.code in (401, 403, 404, 405):
            return InputError(
                f"{self.what} {self.url}: {reason}; see 'url', 'model' and the key in "
                f"{self.key_variable}"
            )
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return Failed(reason, retry_after(error.headers.get("Retry-After")))
        return Failed(reason, final=True)


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


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
