"""Reasons for lists that stand, from a server that speaks OpenAI's chat completions.

A teacher is shown a question, its passages and the list that is to be imitated, and says why; what
it says becomes the thought before that list (distilled reasoning, as InteRank, arXiv 2504.03947).
A reply counts only where it ends in that very list and the policy could have written its reasons;
another one is asked for with what was wrong with those before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dynarag_jax.chat import fill
from dynarag_jax.chat_cache import CachedChat, PaidServer, Replies
from dynarag_jax.config import SameResult
from dynarag_jax.errors import InputError
from dynarag_jax.lists import format_list, parse_list_leniently
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.thoughts import thought_tokens
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.prompts import format_passage
from dynarag_jax.records import Question
from dynarag_jax.replies import without_chat_markers

ENDING = "Needed passages:"
"""What stands before the list in a reply."""

REASONS = f"""\
Passages were selected to answer a question. Write down the considerations that lead to the \
selection, as if you were making it.

Question: {{question}}

Passages:
{{passages}}

The selection, the most useful passage first: {{list}}

In at most {{words}} words of plain text, say what each selected passage contributes, naming it by \
its number in brackets. If the selection is None, say why no passage is needed or none helps. Do \
not mention that you were given the selection.
Then write one last line and nothing after it: {ENDING} {{list}}"""
"""What the server is asked, unless the configuration says otherwise."""


@dataclass(frozen=True)
class ReasonConfig(PaidServer):
    """An OpenAI-compatible server that gives reasons for lists."""

    url: str = ""
    """its address up to and including /v1"""
    max_tokens: int = 1024
    """tokens of a reply at most, a thought of the server's own included; models that think first
    need thousands"""
    cache: SameResult[str] = "{run}/reasons.jsonl"
    """JSONL of replies by the content of what was asked; stages may share it"""
    prompt: str = REASONS
    """what it is asked; {question}, {passages}, {list} and {words} are filled in"""
    attempts: int = 3
    """replies asked for at most, each but the first with what was wrong with those before"""
    too_long: Literal["ask_again", "cut"] = "ask_again"
    """reasons longer than prompts.thought_tokens: ask for shorter ones, or keep the whole sentences
    that fit"""

    what: ClassVar[str] = "server"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attempts < 1:
            raise InputError(f"server: attempts = {self.attempts} must be positive")
        needed = ("{question}", "{passages}", "{list}")
        if missing := [field for field in needed if field not in self.prompt]:
            raise InputError(
                f"server: 'prompt' has no {missing[0]}, and the server would not see it"
            )


@dataclass(frozen=True)
class Reasons:
    """Why a list was chosen, or why nobody knows.

    Attributes:
      text: the reasons; empty where there are none.
      tokens: how many the policy writes for them, without what closes a thought.
      attempts: replies that were asked for.
      failed: why there are none, by kind before the first colon; empty where there are.
      cut: whether sentences were left out at the end.
    """

    text: str = ""
    tokens: int = 0
    attempts: int = 0
    failed: str = ""
    cut: bool = False


_ENDING = re.compile(rf"[*_`#]*{ENDING[:-1]}[*_`]*\s*:", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)|\n")


def read_reasons(text: str, chosen: Sequence[int], shown: int) -> tuple[str, str]:
    """The reasons before the list that a reply ends in.

    The list stands behind ``Needed passages:``, or alone on the last line; brackets may be missing,
    not more.

    Args:
      chosen: the list that it must end in.
      shown: how many passages there are.

    Returns:
      The reasons, and what is wrong with the reply: empty where it can be used.
    """
    cues = list(_ENDING.finditer(text))
    if len(cues) > 1:
        return "", f"'{ENDING}' more than once"
    before, _, last = text.strip().rpartition("\n")
    if cues:
        before, last = text[: cues[0].start()], text[cues[0].end() :]
    ids, repairs = parse_list_leniently(last.strip(" \t\r\n*_`."), shown)
    said = " ".join(last.split())[:60]
    if repairs.unreadable or repairs.extra_text or repairs.thought or not last.strip():
        return "", f"no list at its end: {said!r}"
    if repairs.out_of_range or repairs.repeated or ids != tuple(chosen):
        return "", f"another list at its end: {said!r}, not {format_list(chosen)!r}"
    reasons = before.strip()
    if not re.search(r"\w", reasons):
        return "", "no reasons before the list"
    named = {int(i[:18]) for i in re.findall(r"\[(\d+)\]", reasons)}
    if wrong := sorted(i for i in named if not 1 <= i <= shown):
        return "", f"a passage that is not there: [{wrong[0]}] of {shown}"
    return reasons, ""


class ServerReasons:
    """Asks a server for reasons, of many questions at once.

    Attributes:
      counts: how many replies were ``asked`` for and ``cached``, and how many lists stay
        without reasons, ``missing``.
      reasons: why they do, by kind, with how many there are.

    Args:
      maker: of the policy that is to learn the reasons: its prompt decides which passages the
        server is shown, its tokenizer and ``prompts.thought_tokens`` how long reasons may be.
      key: the server's key, or empty.
      replies: what was replied before; None keeps nothing.
      team: who asks of several processes, as of ``CachedChat``.
    """

    def __init__(
        self,
        config: ReasonConfig,
        maker: ExampleMaker,
        key: str = "",
        replies: Replies | None = None,
        team: ProcessTeam | None = None,
    ):
        self.config, self._maker = config, maker
        self.reasons: Counter[str] = Counter()
        self._chat = CachedChat(config, key, replies, team)
        self.counts = self._chat.counts

    def close(self) -> None:
        """Give up what is under way, and close the file of replies."""
        self._chat.close()

    def ask(self, questions: Sequence[Question]) -> list[Reasons]:
        """The reasons for each question's list, ``expert``.

        Nobody is asked about a list that the policy's prompt does not show whole: behavior cloning
        would leave its reasons out.

        Raises:
          InputError: the server cannot be reached or refuses us, or the spending limit is reached;
            what was replied before is kept.
        """
        found: dict[int, Reasons] = {}
        wrong: dict[int, list[str]] = {}
        bodies: dict[int, tuple[str, int]] = {}
        for place, question in enumerate(questions):
            asked = self._prompt(question)
            if isinstance(asked, str):
                found[place] = Reasons(failed=asked)
            else:
                bodies[place], wrong[place] = asked, []
        for attempt in range(1, self.config.attempts + 1):
            todo = [place for place in bodies if place not in found]
            replies = self._chat.ask([self._body(bodies[p][0], wrong[p]) for p in todo])
            for place, reply in zip(todo, replies, strict=True):
                if reply.missing:
                    one = Reasons(failed=reply.missing)
                else:
                    one = self._read(questions[place], reply.text, bodies[place][1])
                one = Reasons(one.text, one.tokens, attempt, one.failed, one.cut)
                wrong[place].append(one.failed)
                # What could not be had at all is not asked for in other words.
                lost = reply.missing.startswith("no reply")
                if not one.failed or lost or attempt == self.config.attempts:
                    found[place] = one
        for one in found.values():
            if one.failed:
                self.counts["missing"] += 1
                self.reasons[one.failed.partition(":")[0]] += 1
        return [found[place] for place in range(len(questions))]

    def _prompt(self, question: Question) -> tuple[str, int] | str:
        """What is asked of a question and how many passages it shows; or why nobody is asked."""
        assert question.expert is not None
        prompts = self._maker.prompts
        try:
            shown = self._maker.rerank_prompt(question).shown
        except InputError as error:
            return f"its prompt cannot be written: {error}"
        if self._maker.visible(question.expert, shown) != question.expert:
            return f"its list does not fit the prompt: {shown} passages and {prompts.max_list} ids"
        passages = [format_passage(i, p) for i, p in enumerate(question.passages[:shown], 1)]
        values = {
            "{question}": without_chat_markers(question.text),
            "{passages}": without_chat_markers("\n".join(passages)),
            "{list}": format_list(question.expert),
            "{words}": str(max(1, prompts.thought_tokens * 6 // 10)),
        }
        return fill(self.config.prompt, values), shown

    def _body(self, prompt: str, wrong: Sequence[str]) -> dict[str, Any]:
        if wrong:
            # One message, since not every chat template takes turns that end in an assistant's.
            lines = "\n".join(f"- {one}" for one in wrong)
            prompt = f"{prompt}\n\nWhat you wrote before could not be used:\n{lines}"
        return {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }

    def _read(self, question: Question, text: str, shown: int) -> Reasons:
        assert question.expert is not None
        reasons, wrong = read_reasons(text, question.expert, shown)
        if wrong:
            return Reasons(failed=wrong)
        tokens = len(thought_tokens(self._maker.tokenizer, reasons))
        limit = self._maker.prompts.thought_tokens
        ends = [m.end() for m in _SENTENCE_END.finditer(reasons)]
        if self.config.too_long == "ask_again":
            ends = []
        # The longest beginning that fits, of whole sentences.
        for end in (len(reasons), *reversed(ends)):
            kept = reasons[:end].strip()
            try:
                if kept and not self._maker.thought(question.id, kept)[1]:
                    own = len(thought_tokens(self._maker.tokenizer, kept))
                    return Reasons(kept, own, cut=end < len(reasons))
            except InputError as error:
                what = str(error).partition(": ")[2].partition(", which")[0]
                return Reasons(failed=f"words that no thought holds: {what}")
        return Reasons(failed=f"too long: {tokens} tokens where {limit} fit, the end included")
