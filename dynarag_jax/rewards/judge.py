"""A judge: a language model behind an OpenAI-compatible server that grades answers.

Replies are kept on disk by the content of what was asked, so that nothing is paid for twice, in
whatever order a run that was cut off goes on. What could not be had or read is *missing*: the
judgment says why, and no score stands in for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dynarag_jax.chat import fill
from dynarag_jax.chat_cache import CachedChat, PaidServer, Replies, reply_key
from dynarag_jax.config import SameResult
from dynarag_jax.errors import InputError
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.replies import Reply, without_chat_markers
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
class JudgeConfig(PaidServer):
    """An OpenAI-compatible server (vLLM, SGLang or a commercial one) that grades answers."""

    url: str = ""
    """its address up to and including /v1; needed where the reward weighs 'judge'"""
    timeout: SameResult[float] = 300.0
    """seconds for one request"""
    cache: SameResult[str] = "{run}/judge.jsonl"
    """JSONL of replies by the content of what was asked; stages may share it"""
    prompt: str = PROMPT
    """what it is asked; {question}, {references}, {answer}, {lowest} and {highest} are filled in"""
    lowest: float = 0.0
    """the scale's lower end"""
    highest: float = 100.0
    """full marks"""

    what: ClassVar[str] = "judge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lowest < self.highest:
            raise InputError(
                f"judge: lowest = {self.lowest:g} must lie below highest = {self.highest:g}"
            )
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


class Judge:
    """Grades answers, many at once.

    Attributes:
      counts: ``asked``, ``cached``, ``scored`` and ``missing`` judgments so far.
      reasons: why judgments are missing, by kind, with how many there are.

    Args:
      key: the server's key, or empty.
      replies: what was asked before; None keeps nothing.
      team: who asks of several processes, as of ``CachedChat``.
    """

    def __init__(
        self,
        config: JudgeConfig,
        key: str = "",
        replies: Replies | None = None,
        team: ProcessTeam | None = None,
    ):
        if not config.url:
            raise InputError("judge: 'url' is empty; give the address of the judge's server")
        self.config = config
        self.reasons: Counter[str] = Counter()
        self._chat = CachedChat(config, key, replies, team)
        self.counts = self._chat.counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way, and close the file of replies."""
        self._chat.close()

    def score(self, asked: Sequence[Asked]) -> list[Judgment]:
        """Grade answers; equal ones are asked once.

        A blank answer is none, and gets 0 without asking. What nobody could read is asked for
        again, once a run.

        Raises:
          InputError: the server cannot be reached or refuses us, or the spending limit is reached;
            what was replied before is kept.
        """
        bodies = [self._body(one) if one.answer.strip() else None for one in asked]
        distinct = {reply_key(body): body for body in bodies if body is not None}
        replies = self._chat.ask(
            list(distinct.values()), again=lambda reply: self._read(reply).score is None
        )
        judgments = {key: self._read(reply) for key, reply in zip(distinct, replies, strict=True)}
        for judgment in judgments.values():
            self.counts["missing" if judgment.score is None else "scored"] += 1
            if judgment.score is None:
                self.reasons[judgment.reason.partition(":")[0]] += 1
        return [Judgment(0.0) if body is None else judgments[reply_key(body)] for body in bodies]

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
        prompt = fill(config.prompt, filled)
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
