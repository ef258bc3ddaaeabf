"""Chat messages to tokens, by the model's own chat template, the same in training and serving."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.replies import close_thought
from dynarag_jax.thoughts import Thinking

Message = dict[str, str]


class ChatTokenizer(Protocol):
    """What this library asks of a tokenizer; ``transformers`` fast tokenizers have it."""

    chat_template: Any
    eos_token_id: Any
    unk_token_id: Any
    all_special_tokens: Any
    added_tokens_decoder: Any

    def __call__(self, text: Any, *, add_special_tokens: bool = True) -> Any: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def get_chat_template(self) -> str: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any: ...


_DATE = datetime.date(2024, 7, 26)

TEMPLATE_SETTINGS: Mapping[str, Any] = {
    "date_string": _DATE.strftime("%d %b %Y"),
    "enable_thinking": False,
    "thinking": False,
}
"""What chat templates are given beside the messages; those that know none of it ignore it.

Some write today's date into the prompt, and a policy would be trained, sampled and evaluated on
other prompts each day; the date here is the one that Llama 3's templates fall back to. Qwen3's let
the model think aloud first unless told otherwise (``thinking`` in DeepSeek's and Granite's); a list
or an answer begins at once, unless the policy is one that thinks: ``template_settings``.
"""


def template_settings(thinking: Thinking | None = None) -> dict[str, Any]:
    """What chat templates are given beside the messages, for a model that thinks or does not.

    Only a family with markers of its own is told to think; a cue stands in the messages.
    """
    thinks = thinking is not None and not thinking.cued
    return dict(TEMPLATE_SETTINGS) | {"enable_thinking": thinks, "thinking": thinks}


# transformers lets templates call ``strftime_now`` for the time; a macro of that name comes first.
_STOPPED_CLOCK = (
    "{%- macro strftime_now(pattern) -%}{{ pattern"
    + "".join(f"|replace('%{c}', '{_DATE.strftime('%' + c)}')" for c in "aAbBdmyYjHIMSp")
    + "}}{%- endmacro -%}"
)

# Added tokens that are markers without being special: Qwen's <think> and <tool_call>, say.
_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|◁[^◁▷\s]+▷")


def without_markers(text: str, tokenizer: ChatTokenizer) -> str:
    """``text`` without the spellings of special tokens, which passages must not smuggle in."""
    # Chat markers such as <|eot_id|> are special in the vocabulary without having a role of their
    # own, so that the named special tokens alone do not cover them.
    added = [
        str(t)
        for t in tokenizer.added_tokens_decoder.values()
        if t.special or _MARKER.fullmatch(str(t))
    ]
    spellings = sorted({t for t in (*tokenizer.all_special_tokens, *added) if t}, key=len)
    return re.sub("|".join(map(re.escape, reversed(spellings))) or "(?!)", " ", text)


def conversation(
    tokenizer: ChatTokenizer, messages: Sequence[Message], thinking: Thinking | None = None
) -> list[Message]:
    """The messages as the chat template takes them, without special tokens in their contents.

    Some templates refuse a system message (Gemma's), or any role but the user's in the first place
    (Mistral's), or leave the system message out without a word (an early one of Phi-3's): the
    instruction then opens the user's turn. A server is to be sent these messages.

    Raises:
      InputError: the chat template fails, or leaves out what it is given.
    """
    return _templated(tokenizer, messages, thinking)[0]


def render(
    tokenizer: ChatTokenizer, messages: Sequence[Message], thinking: Thinking | None = None
) -> list[int]:
    """Token ids of a prompt: the model's own chat template, or plain lines where it has none.

    Where the template's generation prompt opens a thought, it is closed: what the model writes next
    is the list or the answer. With ``thinking`` it stays open, or is opened: next comes a thought.

    Raises:
      InputError: the chat template fails, or leaves out what it is given.
    """
    messages, text = _templated(tokenizer, messages, thinking)
    opening = thinking.opening if thinking is not None else ""
    if text is not None:
        if not opening:
            text = close_thought(text)
        elif not text.rstrip().endswith(opening.strip()):
            text += opening
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    lines = [m["content"] for m in messages] + ([opening] if opening else [])
    tokens = list(tokenizer("\n".join(lines))["input_ids"])
    # A tokenizer that closes every text (``add_eos_token``) would end the prompt before the answer.
    return tokens[:-1] if tokens[-1:] == [tokenizer.eos_token_id] else tokens


def turn_end(tokenizer: ChatTokenizer) -> int | None:
    """The token by which the chat template closes what an assistant has said; None if none does."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "zyzzyva"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **TEMPLATE_SETTINGS)
    except Exception:  # noqa: BLE001 - a template raises what its author chose
        return None
    behind = str(text).rpartition("zyzzyva")[2].lstrip()
    tokens = list(tokenizer(behind, add_special_tokens=False)["input_ids"])[:1]
    # Only a marker ends a turn; anything else is where the next turn begins.
    return tokens[0] if tokens and tokens[0] in tokenizer.added_tokens_decoder else None


def _templated(
    tokenizer: ChatTokenizer, messages: Sequence[Message], thinking: Thinking | None = None
) -> tuple[list[Message], str | None]:
    """The messages as they are given, and the template's text up to where the model writes."""
    cleaned = [m | {"content": without_markers(m["content"], tokenizer)} for m in messages]
    if not tokenizer.chat_template:
        return cleaned, None
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise InputError(
            f"the tokenizer has chat templates named {', '.join(sorted(tokenizer.chat_template))} "
            f"and none named 'default'; name one so in tokenizer_config.json"
        )
    template = tokenizer.get_chat_template()
    conversations = [cleaned]
    if cleaned[0]["role"] == "system":
        joined = "\n\n".join(m["content"] for m in cleaned)
        conversations.append([{"role": "user", "content": joined}])
    settings = template_settings(thinking)
    if "strftime_now" in template:
        settings["chat_template"] = _STOPPED_CLOCK + template
    failures = []
    for given in conversations:
        try:
            text = tokenizer.apply_chat_template(
                given, add_generation_prompt=True, tokenize=False, **settings
            )
        except Exception as error:  # noqa: BLE001 - a template raises what its author chose
            failures.append(f"fails on the prompt ({type(error).__name__}: {error})")
            continue
        lost = [m["role"] for m in given if m["content"].strip() not in text]
        if not lost:
            return given, text
        failures.append(f"leaves out or rewrites the {lost[0]}'s message")
    raise InputError(f"the tokenizer's chat template {failures[-1]}")
