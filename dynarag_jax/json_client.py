"""JSON over HTTP: one request with retries, backoff and bounds on time and size.

Only the standard library: no SDK decides for us what is repeated.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dynarag_jax.errors import InputError

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever a server asks for."""
LARGEST = 16 << 20
"""Bytes of a response at most."""

T = TypeVar("T")


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
class JsonClient:
    """One server and how patiently it is asked; may be used by many threads.

    Attributes:
      what: its name in messages.
      url: its address, before the paths of requests.
      key: its key, or empty.
      mend: what to look at where the server refuses us, as messages say it.
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
    mend: str
    timeout: float
    retries: int
    backoff: float
    closed: threading.Event = field(default_factory=threading.Event)
    before: Callable[[], None] = lambda: None

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[bytes], T]) -> T:
        """Ask until ``read`` takes a response.

        Args:
          path: behind the address, with its slash.
          read: from the bytes of a response to its value; what it raises as Failed is repeated.

        Raises:
          Failed: there is none after all attempts, or the server refuses this request for good.
          InputError: the server refuses to serve us at all.
        """
        for attempt in range(self.retries + 1):
            self.before()
            try:
                return read(self._post(path, body))
            except Failed as error:
                if error.final or attempt == self.retries or self.closed.is_set():
                    raise
                pause = self.backoff * 2**attempt if error.wait is None else error.wait
                self.closed.wait(min(pause, LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        url = self.url.rstrip("/") + path
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
        return data

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status of failure means: again, set aside, or the end of the run."""
        says = " ".join(error.read(600).decode("utf-8", "replace").split())
        reason = f"HTTP {error.code} {error.reason}{': ' + says if says else ''}"
        if error.code in (401, 403, 404, 405):
            return InputError(f"{self.what} {self.url}: {reason}; see {self.mend}")
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
