"""What a model said, its thought taken off: one reader for lists, answers and verdicts.

Models that reason write a thought first and the reply behind it, each family between markers of its
own; some servers put the thought into a field of its own, some send its end only, since the prompt
had opened it. A reply that was cut off, refused, or stands on both sides of a thought is *missing*,
with the reason: what is not there is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAMES = (
    r"(?:think|thinking|thought|thoughts|reasoning|seed:think|longcat_think|mm:think|think_fast"
    r"|scratchpad|analysis|reflection|inner_monologue)"
)
_OPENINGS = (
    rf"<{_NAMES}>",  # DeepSeek-R1, Qwen3, SmolLM3, GLM, EXAONE Deep, Seed-OSS, LongCat
    r"<\|thinking\|>",
    r"\[THINK\]",  # Magistral
    r"◁think▷",  # Kimi
    r"<\|begin_of_thought\|>",  # Sky-T1
    r"<\|START_THINKING\|>",  # Command A Reasoning
    r"<unused94>(?:thought\b)?",  # MedGemma
    r"<\|channel>thought\b",  # Gemma 4
    r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>",  # gpt-oss
    r"\A\s*analysis(?=[A-Z\"'])",  # the same, where a server drops special tokens
    r"\A\s*Here(?: is|'s) my thought process:",  # Granite 3.2
)
_CLOSINGS = (
    rf"</{_NAMES}>",
    r"<\|/thinking\|>",
    r"\[/THINK\]",
    r"◁/think▷",
    r"<\|end_of_thought\|>",
    r"<\|END_THINKING\|>",
    r"<unused95>",
    r"<channel\|>",
    r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final[^<]*<\|message\|>",
    r"assistantfinal",
)
# Plain words, which end a thought only where one was opened.
_SOFT = r"Here(?: is|'s) my response:"
_MARKER = re.compile(
    f"(?P<open>{'|'.join(_OPENINGS)})|(?P<close>{'|'.join(_CLOSINGS)})|(?P<soft>{_SOFT})",
    re.IGNORECASE,
)
# Tags around the reply itself, and what ends a turn where a server leaves special tokens in.
_ANSWER = re.compile(
    r"<(answer|response)>(.*?)</\1>"
    r"|<\|(?:begin_of_solution|START_RESPONSE)\|>(.*?)<\|(?:end_of_solution|END_RESPONSE)\|>",
    re.IGNORECASE | re.DOTALL,
)
_TAGS = re.compile(
    r"</?(?:answer|response)>|<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>",
    re.IGNORECASE,
)
_TURN_ENDS = re.compile(
    r"(?:<\|(?:im_end|eot_id|end|return|endoftext|end_of_text|end_of_turn|user|eom_id)\|>"
    r"|<｜end▁of▁sentence｜>|<end_of_turn>|<turn\|>|</s>|<eos>|\s)+\Z"
)

# Special tokens of the chat formats of known families.
_CHAT_MARKERS = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|<(?:start|end)_of_turn>|<\|?turn\|?>|</?s>"
    r"|<(?:bos|eos)>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_RESULTS|AVAILABLE_TOOLS|THINK)\]|<</?SYS>>"
    rf"|</?{_NAMES}>",
    re.IGNORECASE,
)

# How a thought that a prompt has opened at its end is closed; Qwen3 writes an empty one so.
_CLOSED_BY = (
    (rf"<({_NAMES[3:-1]})>", r"</\1>"),
    (r"◁think▷", "◁/think▷"),
    (r"\[THINK\]", "[/THINK]"),
    (r"<\|begin_of_thought\|>", "<|end_of_thought|>"),
    (r"<\|START_THINKING\|>", "<|END_THINKING|>"),
    (r"<unused94>(?:thought)?", "<unused95>"),
    (r"<\|channel>thought", "<channel|>"),
    (r"<\|channel\|>analysis<\|message\|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)

FINISHED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
"""What ``finish_reason`` says of a reply that ended by itself; None is taken so."""

_UNFINISHED: Mapping[str, str] = {
    "length": "it was cut off at the limit of tokens",
    "max_tokens": "it was cut off at the limit of tokens",
    "model_length": "it was cut off at the model's longest text",
    "content_filter": "the server's filter held it back",
    "tool_calls": "it calls a tool instead",
    "function_call": "it calls a tool instead",
    "abort": "the server gave it up",
    "error": "the server failed on it",
}

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Reply:
    """One reply of a model.

    Attributes:
      text: what it says, without space around it; empty where it is missing.
      missing: why there is nothing to read; empty where there is.
      thought: what came before the reply, without its markers.
      repaired: what was done to get at the text, a few words each.
    """

    text: str
    missing: str = ""
    thought: str = ""
    repaired: tuple[str, ...] = ()


def read_reply(text: str, finish: str | None = None, reasoning: str = "") -> Reply:
    """Separate a reply from its thought.

    Args:
      text: what the model wrote, thought and markers included.
      finish: the server's ``finish_reason``; None where nobody says.
      reasoning: the thought, where the server has taken it off already.
    """
    thoughts, outside, repaired = [reasoning] if reasoning else [], [], []
    at, inside = 0, False
    for marker in _MARKER.finditer(text):
        if marker["soft"] and not inside:
            continue
        piece = text[at : marker.start()]
        at = marker.end()
        if marker["open"]:
            (thoughts if inside else outside).append(piece)
            inside = True
            continue
        if not inside:
            # Only the end of the thought is here: the prompt had opened it, or it stood twice.
            piece = "".join([*outside, piece])
            outside.clear()
        thoughts.append(piece)
        inside = False
    rest = text[at:]
    (thoughts if inside else outside).append(rest)
    thought = "\n".join(t.strip() for t in thoughts if t.strip())
    if at or reasoning:
        repaired.append("thought taken off")
    if finish is not None and finish not in FINISHED:
        known = _UNFINISHED.get(finish, f"it ended for an unknown reason, {finish!r}")
        return Reply("", known, thought, tuple(repaired))
    if inside:
        return Reply("", "its thought has no end", thought, tuple(repaired))
    said = [_TURN_ENDS.sub("", piece) for piece in outside]
    said = [piece for piece in said if piece.strip()]
    if len(said) > 1:
        return Reply("", "it stands on both sides of a thought", thought, tuple(repaired))
    reply = said[0] if said else ""
    named = {(m[2] if m[2] is not None else m[3]).strip() for m in _ANSWER.finditer(reply)}
    if len(named) > 1:
        return Reply("", "it names several answers", thought, tuple(repaired))
    if named:
        reply = named.pop()
        repaired.append("tags taken off")
    elif _TAGS.search(reply):
        reply = _TAGS.sub("", reply)
        repaired.append("tags taken off")
    if not reply.strip():
        what = "it holds a thought and no reply" if thought else "nothing was said"
        return Reply("", what, thought, tuple(repaired))
    return Reply(reply.strip(), "", thought, tuple(repaired))


def without_chat_markers(text: str) -> str:
    """``text`` without what a server of an unknown tokenizer may take for special tokens."""
    return _CHAT_MARKERS.sub(" ", text)


def close_thought(prompt: str) -> str:
    """``prompt`` with the thought closed that it opens at its end, if it does."""
    for opening, closing in _CLOSED_BY:
        if opened := re.search(rf"{opening}\s*\Z", prompt):
            return f"{prompt.rstrip()}\n\n{opened.expand(closing)}\n\n"
    return prompt


def read_choice(choice: Mapping[str, Any]) -> Reply:
    """Read one choice of an OpenAI-compatible chat completion.

    Raises:
      KeyError, TypeError: the choice is none.
    """
    return read_reply(*choice_parts(choice))


def choice_parts(choice: Mapping[str, Any]) -> tuple[str, str | None, str]:
    """The arguments of ``read_reply`` in a choice of a chat completion.

    Raises:
      KeyError, TypeError: the choice is none.
    """
    message = choice["message"]
    content, finish = message["content"], choice.get("finish_reason")
    thoughts = [message[f] for f in _REASONING_FIELDS if isinstance(message.get(f), str)]
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "text":
            texts.append(str(part["text"]))
        elif isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"):
            thoughts.append(_flat(part))
        elif part is not None:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            finish = f"a part of type {kind}"
    if message.get("refusal"):
        finish = "a refusal"
    return "".join(texts), None if finish is None else str(finish), "\n".join(thoughts)


def _flat(part: Any) -> str:
    """The text inside a thinking part, which holds strings or parts again."""
    if isinstance(part, list):
        return "".join(map(_flat, part))
    if isinstance(part, dict):
        return "".join(_flat(part[k]) for k in ("thinking", "reasoning", "text") if k in part)
    return str(part)
