"""A judge: a language model behind an OpenAI-compatible server that grades answers.

Replies are kept on disk by the content of what was asked, so that nothing is paid for twice, in
whatever order a run that was cut off goes on. What could not be had or read is *missing*: the
judgment says why, and no score stands in for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dynarag_jax.chat import Chat, Failed
from dynarag_jax.errors import InputError
from dynarag_jax.files import JsonlAppender, PathLike, read_jsonl
from dynarag_jax.replies import Reply, read_reply, without_chat_markers
from dynarag_jax.rewards.verdicts import parse_verdict

PROMPT = """\
Grade an answer to a question against the reference answers.

Question: {question}
Reference answers: {references}
Answer to grade: {answer}

Consider whether the answer says what a reference says, whether everything in it is true, and \
whether it is relevant and clear. Wording does not matter. Give full marks to an answer that \
agrees with a reference, and the lowest to one that is wrong.
Reply with one line and nothing else: Score: a number from {lowest} to {highest}"""
"""What the judge is asked, unless the configuration says otherwise."""


@dataclass(frozen=True)
class JudgeConfig:
    """An OpenAI-compatible server (vLLM, SGLang or a commercial one) that grades answers."""

    url: str = ""
    """its address up to and including /v1; needed where the reward weighs 'judge'"""
    model: str = ""
    """the name it serves the model by"""
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the key, if the server wants one"""
    prompt: str = PROMPT
    """what it is asked; {question}, {references}, {answer}, {lowest} and {highest} are filled in"""
    lowest: float = 0.0
    """the scale's lower end"""
    highest: float = 100.0
    """full marks"""
    max_tokens: int = 4096
    """tokens of a reply at most, its thought included: models that think need thousands"""
    temperature: float = 0.0
    cache: str = "{run}/judge.jsonl"
    """JSONL of replies by the content of what was asked; stages may share it"""
    parallel: int = 16
    """requests at once"""
    timeout: float = 300.0
    """seconds for one request"""
    retries: int = 4
    """further attempts after a failed one"""
    backoff: float = 1.0
    """seconds before the first of them, twice as long before each next; Retry-After comes first"""
    request_limit: int = 0
    """requests that may be spent, repeated ones and those on record included; 0 sets no limit"""
    token_limit: int = 0
    """tokens that may be spent, as far as the server reports them; 0 sets no limit"""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise InputError(f"judge: url = {self.url!r} must begin with http:// or https://")
        if self.url and not self.model:
            raise InputError("judge: 'model' is empty; name the model the server serves")
        if not self.lowest < self.highest:
            raise InputError(
                f"judge: lowest = {self.lowest:g} must lie below highest = {self.highest:g}"
            )
        if self.parallel < 1 or self.max_tokens < 1 or self.retries < 0:
            raise InputError("judge: parallel and max_tokens must be positive, retries not below 0")
        if not (self.timeout > 0 and self.backoff >= 0 and self.temperature >= 0):
            raise InputError(
                "judge: timeout must be positive, backoff and temperature not negative"
            )
        if self.request_limit < 0 or self.token_limit < 0:
            raise InputError("judge: request_limit and token_limit must not be negative")
        if missing := [f for f in ("{question}", "{answer}") if f not in self.prompt]:
            raise InputError(f"judge: 'prompt' has no {missing[0]}, and the judge would not see it")


@dataclass(frozen=True)
class Asked:
    """One answer to grade."""

    question: str
    references: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Judgment:
    """A score in [0, 1], or None where it is missing, with the reason."""

    score: float | None
    reason: str = ""


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
                f"{path}: another run is writing these replies; name another file as judge.cache"
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
                    raise InputError(f"{each}:{number}: not a judge's reply; remove the line")
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


class Judge:
    """Grades answers, many at once.

    Attributes:
      counts: ``asked``, ``cached``, ``scored`` and ``missing`` judgments so far.
      reasons: why judgments are missing, by kind, with how many there are.

    Args:
      key: the server's key, or empty.
      replies: what was asked before; None keeps nothing.
    """

    def __init__(self, config: JudgeConfig, key: str = "", replies: Replies | None = None):
        if not config.url:
            raise InputError("judge: 'url' is empty; give the address of the judge's server")
        self.config, self.replies = config, replies
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._tried: set[str] = set()
        self._requests = replies.requests if replies else 0
        self._tokens = replies.tokens if replies else 0
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(config.parallel, thread_name_prefix="judge")
        self._chat = Chat(
            "judge", config.url, key, config.key_variable, config.timeout, config.retries,
            config.backoff, self._closed, self._spend,
        )  # fmt: skip

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

    def score(self, asked: Sequence[Asked]) -> list[Judgment]:
        """Grade answers; equal ones are asked once.

        A blank answer is none, and gets 0 without asking.

        Raises:
          InputError: the server cannot be reached or refuses us, or the spending limit is reached;
            what was replied before is kept.
        """
        bodies = [self._body(one) if one.answer.strip() else None for one in asked]
        distinct = {_key(body): body for body in bodies if body is not None}
        judgments: dict[str, Judgment] = {}
        waiting = {}
        for key, body in distinct.items():
            reply = self.replies.get(key) if self.replies else None
            judgment = self._read(reply) if reply is not None else None
            unread = judgment is None or judgment.score is None
            if judgment is None or (unread and key not in self._tried):
                # What nobody could read is asked for again, once a run.
                waiting[key] = self._pool.submit(self._ask, key, body)
            else:
                self.counts["cached"] += 1
                judgments[key] = judgment
        try:
            for key, future in waiting.items():
                judgments[key] = future.result()
        except BaseException:
            # The first that fails ends all: nothing more is to be paid for.
            for future in waiting.values():
                future.cancel()
            self._closed.set()
            raise
        self.counts["asked"] += len(waiting)
        for judgment in judgments.values():
            self.counts["missing" if judgment.score is None else "scored"] += 1
            if judgment.score is None:
                self.reasons[judgment.reason.partition(":")[0]] += 1
        return [Judgment(0.0) if body is None else judgments[_key(body)] for body in bodies]

    def _body(self, one: Asked) -> dict[str, Any]:
        config = self.config
        references = "; ".join(one.references) or "(none)"
        filled = {
            "{question}": without_chat_markers(one.question),
            "{references}": without_chat_markers(references),
            "{answer}": without_chat_markers(one.answer.strip()),
            "{lowest}": f"{config.lowest:g}",
            "{highest}": f"{config.highest:g}",
        }
        prompt = _fill(config.prompt, filled)
        return {
            "model": config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }

    def _read(self, reply: Reply) -> Judgment:
        if reply.missing:
            return Judgment(None, reply.missing)
        verdict = parse_verdict(reply.text, self.config.lowest, self.config.highest)
        return Judgment(verdict.score, verdict.reason)

    # ------------------------------------------------------------------ in threads

    def _ask(self, key: str, body: dict[str, Any]) -> Judgment:
        try:
            completion = self._chat.complete(body)
        except Failed as error:
            return Judgment(None, f"no reply: {error}")
        with self._lock:
            self._tokens += completion.tokens or 0
            self._tried.add(key)
        if self.replies is not None:
            self.replies.put(key, completion.replies[0], completion.tokens)
        return self._read(completion.replies[0])

    def _spend(self) -> None:
        """Count a request before it is made."""
        limits, end = self.config, "raise it and run again: what was replied is kept"
        with self._lock:
            if limits.request_limit and self._requests >= limits.request_limit:
                raise InputError(
                    f"judge: the limit of {limits.request_limit} requests (request_limit) is "
                    f"spent; {end}"
                )
            if limits.token_limit and self._tokens >= limits.token_limit:
                raise InputError(
                    f"judge: {self._tokens} tokens are spent, the limit is {limits.token_limit} "
                    f"(token_limit); {end}"
                )
            self._requests += 1


def _fill(prompt: str, values: dict[str, str]) -> str:
    """Fill fields in one pass, so that braces in a question or an answer are left alone."""
    parts, at = [], 0
    while at < len(prompt):
        name = next((n for n in values if prompt.startswith(n, at)), None)
        parts.append(prompt[at] if name is None else values[name])
        at += 1 if name is None else len(name)
    return "".join(parts)


def _key(body: dict[str, Any]) -> str:
    """What a reply is kept by: all that was asked, but not where."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
