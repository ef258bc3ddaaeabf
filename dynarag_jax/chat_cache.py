"""Chat completions that are kept on disk by the content of what was asked, and paid for once.

In whatever order a run that was cut off goes on, what was replied before is not asked again. What
could not be had is *missing*, with the reason: nothing stands in for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from dynarag_jax.chat import ChatServer
from dynarag_jax.config import SameResult
from dynarag_jax.errors import InputError
from dynarag_jax.files import JsonlAppender, PathLike, read_jsonl
from dynarag_jax.json_client import Failed
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.replies import Reply, read_reply


@dataclass(frozen=True)
class PaidServer(ChatServer):
    """A server whose replies are kept, and what may be spent on it."""

    max_tokens: int = 4096
    """tokens of a reply at most, its thought included: models that think need thousands"""
    temperature: float = 0.0
    cache: SameResult[str] = ""
    """JSONL of replies by the content of what was asked; stages may share it"""
    request_limit: SameResult[int] = 0
    """requests that may be spent, repeated ones and those on record included; 0 sets no limit"""
    token_limit: SameResult[int] = 0
    """tokens that may be spent, as far as the server reports them; 0 sets no limit"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise InputError(f"{self.what}: max_tokens must be positive")
        if self.temperature < 0:
            raise InputError(f"{self.what}: temperature must not be negative")
        if self.request_limit < 0 or self.token_limit < 0:
            raise InputError(f"{self.what}: request_limit and token_limit must not be negative")


class Replies:
    """Replies on disk by content: appended by whole lines, read again after a kill.

    Args:
      path: the file this process appends to; nobody else may meanwhile.
      others: further files of the kind to read.

    Raises:
      InputError: another process appends to the file, or a line is no record of this kind.
    """

    def __init__(self, path: PathLike, others: Sequence[PathLike] = ()):
        self._file = JsonlAppender(path, key="key")
        try:
            fcntl.flock(self._file._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"{path}: another run is writing these replies; name another file as 'cache'"
            ) from None
        except OSError:
            pass  # a file system without locks
        self._lock = threading.Lock()
        self._known: dict[str, Reply] = {}
        self.requests = self.tokens = 0
        for each in dict.fromkeys(Path(p) for p in (path, *others)):
            for number, row in read_jsonl(each):
                key, text = row.get("key"), row.get("reply")
                missing = row.get("missing", "")
                if not (
                    isinstance(key, str) and isinstance(text, str) and isinstance(missing, str)
                ):
                    self._file.close()
                    raise InputError(f"{each}:{number}: not a reply on record; remove the line")
                reply = Reply("", missing) if missing else read_reply(text)
                # A later line is of a later try.
                if self._known.get(key) != reply:
                    self._known[key] = reply
                    self.requests += 1
                    self.tokens += int(row.get("tokens") or 0)

    def get(self, key: str) -> Reply | None:
        """What was replied, if it was asked before."""
        return self._known.get(key)

    def put(self, key: str, reply: Reply, tokens: int | None) -> None:
        """Keep a reply, or the reason why it is missing."""
        with self._lock:
            if self._known.get(key) != reply:
                self._known[key] = reply
                row = {"key": key, "reply": reply.text, "tokens": tokens}
                row |= {"missing": reply.missing} if reply.missing else {}
                self._file.append(row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def mend(path: PathLike) -> None:
    """Cut off an unfinished last line of a file of replies that nobody appends to now."""
    with Path(path).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            pass  # a file system without locks
        JsonlAppender(path, key="key").close()


class CachedChat:
    """Asks a server many things at once, each of them once.

    Attributes:
      counts: how many replies were ``asked`` for and how many ``cached`` so far.

    Args:
      key: the server's key, or empty.
      replies: what was asked before; None keeps nothing.
      team: who asks of several processes: each team for itself, its leader for all of it, and each
        may spend its share of what is left.
    """

    def __init__(
        self,
        config: PaidServer,
        key: str = "",
        replies: Replies | None = None,
        team: ProcessTeam | None = None,
    ):
        self.config, self.replies, self._team = config, replies, team
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._tried: set[str] = set()
        self._requests = replies.requests if replies else 0
        self._tokens = replies.tokens if replies else 0
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(config.parallel, thread_name_prefix=config.what)
        self._chat = config.chat(key, self._closed, self._spend)
        self._request_limit = self._own(config.request_limit, self._requests)
        self._token_limit = self._own(config.token_limit, self._tokens)

    def _own(self, limit: int, spent: int) -> int:
        """This team's share of a limit: what is spent, and its part of what is left."""
        if self._team is None or not limit:
            return limit
        each, rest = divmod(max(limit - spent, 0), self._team.count)
        return min(limit, spent) + each + (self._team.index < rest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way, and close the file of replies."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.replies is not None:
            self.replies.close()

    def ask(
        self,
        bodies: Sequence[dict[str, Any]],
        again: Callable[[Reply], bool] = lambda reply: bool(reply.missing),
    ) -> list[Reply]:
        """The reply to each request; equal requests are sent once.

        Args:
          bodies: of ``/chat/completions``.
          again: which replies on record are asked for once more, once a run: those that are
            missing, unless one says otherwise.

        Raises:
          InputError: the server cannot be reached or refuses us, or the spending limit is reached;
            what was replied before is kept.
        """
        if self._team is None or not self._team.shares:
            return self._replies(bodies, again)
        told = self._team.told(lambda: [asdict(one) for one in self._replies(bodies, again)])
        return [Reply(**one) for one in told]

    def _replies(
        self, bodies: Sequence[dict[str, Any]], again: Callable[[Reply], bool]
    ) -> list[Reply]:
        distinct = {reply_key(body): body for body in bodies}
        replies: dict[str, Reply] = {}
        waiting: dict[str, Future[Reply]] = {}
        for key, body in distinct.items():
            reply = self.replies.get(key) if self.replies else None
            if reply is None or (key not in self._tried and again(reply)):
                waiting[key] = self._pool.submit(self._ask, key, body)
            else:
                self.counts["cached"] += 1
                replies[key] = reply
        try:
            for key, future in waiting.items():
                replies[key] = future.result()
        except BaseException:
            # The first that fails ends all: nothing more is to be paid for.
            for future in waiting.values():
                future.cancel()
            self._closed.set()
            raise
        self.counts["asked"] += len(waiting)
        return [replies[reply_key(body)] for body in bodies]

    # ------------------------------------------------------------------ in threads

    def _ask(self, key: str, body: dict[str, Any]) -> Reply:
        try:
            completion = self._chat.complete(body)
        except Failed as error:
            return Reply("", f"no reply: {error}")
        reply = completion.replies[0]
        with self._lock:
            self._tokens += completion.tokens or 0
            self._tried.add(key)
        if self.replies is not None:
            self.replies.put(key, reply, completion.tokens)
        return reply

    def _spend(self) -> None:
        """Count a request before it is made."""
        limits, what = self.config, self.config.what
        end = "raise it and run again: what was replied is kept"
        teams = 1 if self._team is None else self._team.count
        share = f"this process's share of the limit (it is one of {teams})"
        with self._lock:
            if limits.request_limit and self._requests >= self._request_limit:
                limit = share if teams > 1 else "the limit"
                raise InputError(
                    f"{what}: {limit} of {limits.request_limit} requests (request_limit) is "
                    f"spent; {end}"
                )
            if limits.token_limit and self._tokens >= self._token_limit:
                limit = share if teams > 1 else "the limit"
                raise InputError(
                    f"{what}: {self._tokens} tokens are spent, {limit} is {limits.token_limit} "
                    f"(token_limit); {end}"
                )
            self._requests += 1


def reply_key(body: dict[str, Any]) -> str:
    """What a reply is kept by: all that was asked, but not where."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
