"""Training data as chat systems keep it: Alpaca's and LLaMA-Factory's fields, preference pairs.

The released DynamicRAG writes its training data so, with question and passages inside the prompt;
they are found there again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dynarag_jax.data.values import Candidates, Record, content_id, rest
from dynarag_jax.errors import InputError
from dynarag_jax.prompts import answer_messages, format_list, parse_list, rerank_messages
from dynarag_jax.records import Passage, Question, Task

_SHOWN = "\nRetrieved Content:"
_NUMBER = re.compile(r"(?:\A|\n)\d+\. (Topic|Title): ")
_FIELDS = ("instruction", "input", "output", "system", "chosen", "rejected")


@dataclass(frozen=True)
class _Prompt:
    """A prompt of the released code, taken apart; ``order`` names the passage behind each number"""

    question: str
    task: Task
    reranks: bool
    found: Candidates
    order: tuple[str, ...]


def _released(text: str, where: str) -> _Prompt | None:
    """Take a prompt of the released code apart; None where the text is none."""
    head = text.find("Query: ")
    if head < 0 or (head and text[head - 1] != "\n"):
        return None
    cut = text.find(_SHOWN, head)
    if cut < 0:
        return None
    asked, shown = text[head + len("Query: ") : cut].strip(), text[cut + len(_SHOWN) :]
    found, order = Candidates(), []
    marks = list(_NUMBER.finditer(shown))
    ends = [mark.start() for mark in marks[1:]] + [len(shown)]
    for mark, end in zip(marks, ends, strict=False):
        title, middle, content = shown[mark.end() : end].partition("\nContent: ")
        if not middle:
            return None
        # The prompts of its second stage put a full stop behind the title.
        title = title.removesuffix(".") if mark.group(1) == "Title" else title
        passage = Passage(content_id(title, content.strip()), content.strip(), title)
        order.append(found.add(passage, where).id)
    if not asked or (not marks and shown.strip() != "None"):
        return None
    before = text[:head]
    task: Task = (
        "paragraph" if "paragraph" in before else "label" if "SUPPORTS" in before else "short"
    )
    return _Prompt(asked, task, not before.strip(), found, tuple(order))


def read_alpaca(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{instruction, input, output, system}``, or ``chosen`` and ``rejected`` for ``output``.

    Prompts of the released DynamicRAG become questions with passages: of a reranker's, the reply is
    the expert's list; of a generator's, the answer. Other instructions become questions of task
    ``paragraph`` without passages, whose fields are kept.
    """
    fields = Record(where, value)
    instruction = fields.text("instruction")
    given = fields.text("input", blank=True) if fields.has("input") else ""
    system = fields.text("system", blank=True) if fields.has("system") else ""
    reply_name = fields.name("output", "chosen")
    reply = fields.text(reply_name)
    if reply_name == "chosen":
        fields.text("rejected")
    pair = {name: value[name] for name in ("chosen", "rejected") if fields.has(name)}
    extra = rest(value, {"id", *_FIELDS}) | pair
    identity = fields.identity("id", default=default)
    prompt = _released(given if given.strip() else instruction, where)
    if prompt is None:
        extra |= {"instruction": instruction, "input": given}
        if system:
            extra["system"] = system
        asked = "\n\n".join(part for part in (instruction, given) if part.strip())
        yield Question(identity, asked, (reply,), task="paragraph", extra=extra)
        return
    number = {name: i for i, name in enumerate(prompt.found.passages, 1)}
    expert = None
    if prompt.reranks:
        try:
            numbers = parse_list(reply, len(prompt.order))
        except ValueError as error:
            raise fields.fail(reply_name, f"must be a list of passages ({error!s:.60})") from None
        expert = tuple(dict.fromkeys(number[prompt.order[i - 1]] for i in numbers))
    yield Question(
        id=identity,
        text=prompt.question,
        answers=() if prompt.reranks else (reply,),
        task=prompt.task,
        passages=tuple(prompt.found.passages.values()),
        expert=expert,
        expert_source=f"released {reply_name}" if prompt.reranks else "",
        extra=extra,
    )


def write_alpaca(question: Question) -> Iterator[dict[str, Any]]:
    """What LLaMA-Factory trains on: the expert's list, and the answer from its passages.

    The prompts are this library's (``dynarag_jax/prompts.py``). The answer is shown the expert's
    passages, else the needed ones, else all. A question that was an instruction becomes it again.
    """
    extra = question.extra
    if isinstance(instruction := extra.get("instruction"), str) and not question.passages:
        value: dict[str, Any] = {"id": question.id, "instruction": instruction}
        value["input"] = extra.get("input", "")
        value["output"] = question.answers[0] if question.answers else ""
        yield value | {name: extra[name] for name in ("system",) if name in extra}
        return
    passages = question.passages
    if question.expert is not None:
        yield _row(question, rerank_messages(question, passages, "instruct"), "list") | {
            "output": format_list(question.expert)
        }
    if question.answers:
        shown = question.expert if question.expert is not None else question.gold_list()
        chosen = passages if shown is None else [passages[i - 1] for i in shown]
        yield _row(question, answer_messages(question, chosen, "instruct"), "answer") | {
            "output": question.answers[0]
        }


def _row(question: Question, messages: list[dict[str, str]], kind: str) -> dict[str, Any]:
    system, user = messages
    return {
        "id": f"{question.id}/{kind}",
        "system": system["content"],
        "instruction": user["content"],
        "input": "",
    }


# ---------------------------------------------------------------------------- preference pairs


def _said(fields: Record, name: str) -> str:
    """The last message of a conversation, or a text."""
    if not isinstance(fields.values.get(name), list):
        return fields.text(name)
    turns = fields.each(name)
    if not turns:
        raise fields.fail(name, "must be a text or messages, not empty")
    for turn in turns:
        turn.text("role")
        turn.text("content", blank=True)
    return turns[-1].text("content")


def read_preference(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{prompt, chosen, rejected}``, texts or messages; both replies stay in ``extra``."""
    fields = Record(where, value)
    asked, chosen, rejected = (_said(fields, n) for n in ("prompt", "chosen", "rejected"))
    if chosen == rejected:
        raise InputError(f"{where}: fields 'chosen' and 'rejected' are the same; no preference")
    kept = {name: value[name] for name in ("prompt", "chosen", "rejected")}
    yield Question(
        id=fields.identity("id", default=default),
        text=asked,
        answers=(chosen,),
        task="paragraph",
        extra=rest(value, {"id", *kept}) | kept,
    )


def write_preference(question: Question) -> dict[str, Any]:
    names = ("prompt", "chosen", "rejected")
    if any(name not in question.extra for name in names):
        raise InputError(
            f"question '{question.id}': has no prompt, chosen and rejected; preference pairs come "
            f"from rollouts"
        )
    return {"id": question.id} | {name: question.extra[name] for name in names}
