"""Instruction data beside lists and answers: Alpaca's form and chat messages.

Files are JSONL, a JSON array as Alpaca's own, or any other shape of ``rows.py``.

    {"instruction": "...", "input": "...", "output": "...", "system": "..."}
    {"messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...]}

``input`` and ``system`` may be missing or empty. Of a conversation, the last turn is learned, which
must be the assistant's; all before it is the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.fields import Fields
from dynarag_jax.files import PathLike
from dynarag_jax.policy.batches import Example
from dynarag_jax.prompts import Message, answer_tokens, render
from dynarag_jax.rows import read_rows

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Instruction:
    """A conversation and the reply to learn; ``id`` is its line in the file."""

    id: str
    messages: tuple[Message, ...]
    reply: str


def instruction_from_json(value: dict[str, Any], where: str, id: str) -> Instruction:
    """Read one line of either form; raise InputError naming ``where`` and the field."""
    fields = Fields(where, value)
    if fields.has("messages") == fields.has("instruction"):
        raise InputError(
            f"{where}: must have either 'messages' or 'instruction' and 'output', found "
            f"{', '.join(map(repr, value)) or 'an empty object'}"
        )
    if fields.has("instruction"):
        request = [fields.string("instruction")]
        request += [
            part for part in [fields.string("input", default="", blank=True)] if part.strip()
        ]
        messages = [{"role": "user", "content": "\n\n".join(request)}]
        system = fields.string("system", default="", blank=True)
        if system.strip():
            messages = [{"role": "system", "content": system}, *messages]
        return Instruction(id, tuple(messages), fields.string("output"))
    turns = []
    for i, turn in enumerate(fields.objects("messages")):
        each = Fields(f"{where}: messages[{i}]", turn)
        role = each.string("role")
        if role not in ROLES:
            raise each.fail("role", f"must be one of {', '.join(ROLES)}")
        if role == "system" and i:
            raise each.fail("role", "must not be system after the first message")
        turns.append({"role": role, "content": each.string("content")})
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] != "user":
        raise InputError(
            f"{where}: field 'messages' must end with a user's message and the assistant's reply"
        )
    return Instruction(id, tuple(turns[:-1]), turns[-1]["content"])


def read_instructions(path: PathLike) -> list[Instruction]:
    """Read an instruction file; InputError on the first line that is neither form."""
    instructions, last = [], 0
    for number, value in read_rows(path):
        if isinstance(value, InputError):
            raise value
        last = max(number, last + 1)  # records of a JSON array may share a line
        instructions.append(instruction_from_json(value, f"{path}:{number}", f"line {last}"))
    return instructions


def instruction_examples(
    tokenizer: Any, instructions: Sequence[Instruction], prompt_tokens: int, reply_tokens: int
) -> tuple[list[Example], int]:
    """Examples of the instructions that fit, and how many do not.

    Args:
      prompt_tokens, reply_tokens: the most tokens of either; nothing of an instruction can be
        dropped without changing what it says, so that a longer one is left out whole.
    """
    kept = []
    for one in instructions:
        prompt = render(tokenizer, one.messages)
        reply = answer_tokens(tokenizer, one.reply, reply_tokens + 1)
        if len(prompt) <= prompt_tokens and len(reply) <= reply_tokens:
            kept.append(Example(one.id, prompt, (reply,)))
    return kept, len(instructions) - len(kept)
