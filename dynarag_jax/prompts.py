"""The two prompts: one source for training, sampling, evaluation and servers.

The reranker reads the question and its numbered passages and writes a list such as ``[3], [1]`` or
``None``; the generator reads the chosen passages in the chosen order and writes the answer. The
passages are shown as ``[i]`` in both, and the question stands before and after them, so that a
causal model reads the passages knowing what is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.lists import Repairs, format_list, parse_list, parse_list_leniently
from dynarag_jax.records import Passage, Question, Task, valid_list
from dynarag_jax.templates import (
    TEMPLATE_SETTINGS,
    ChatTokenizer,
    Message,
    conversation,
    render,
    without_markers,
)
from dynarag_jax.thoughts import CUES, Thinking

# Lists as text and templates have files of their own; prompts is where both are found.
__all__ = [
    "COMPACT_WORDS",
    "TEMPLATE_SETTINGS",
    "ChatTokenizer",
    "Message",
    "Prompt",
    "PromptConfig",
    "Repairs",
    "Style",
    "answer_messages",
    "answer_prompt",
    "answer_tokens",
    "buckets",
    "conversation",
    "decode_answer",
    "format_list",
    "format_passage",
    "parse_list",
    "parse_list_leniently",
    "render",
    "rerank_messages",
    "rerank_prompt",
]

Style = Literal["instruct", "compact"]


@dataclass(frozen=True)
class PromptConfig:
    """The wording of the prompts and their limits, the same in every stage of a run."""

    style: Style = "instruct"
    """instruct, for language models that follow instructions; compact, for models from nothing"""
    ids: int = 45
    """passages shown to the reranker at most"""
    max_list: int = 15
    """ids in a list at most"""
    thought_tokens: int = 0
    """longest thought that the reranker writes before a list, its end included: free text, in the
    markers of the model's family or before a cue; 0 writes none, and lists begin at once"""
    rerank_tokens: int = 8192
    """longest reranker's prompt; passages beyond it are dropped from the end"""
    answer_prompt_tokens: int = 4096
    """longest generator's prompt"""
    answer_tokens: int = 50
    """longest answer, end of text included"""
    labels: tuple[str, ...] = ()
    """closed set of answers to label questions, such as SUPPORTS, REFUTES, NOT ENOUGH INFO: the
    generator writes one of them and nothing else; empty leaves it free"""

    def __post_init__(self) -> None:
        for name in ("ids", "max_list", "rerank_tokens", "answer_prompt_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"prompts: {name} = {getattr(self, name)} must be positive")
        if self.thought_tokens < 0:
            raise InputError(
                f"prompts: thought_tokens = {self.thought_tokens} must not be negative"
            )


def buckets(limit: int, shortest: int = 64, between: bool = False) -> tuple[int, ...]:
    """Padded prompt lengths for batches: ``limit`` and its halves down to ``shortest``.

    ``between`` adds three quarters of each.
    """
    sizes = [limit]
    while sizes[-1] // 2 >= shortest:
        sizes.append(sizes[-1] // 2)
    if between:
        sizes += [3 * size // 4 for size in sizes[:-1]]
    return tuple(sorted(sizes))


# ---------------------------------------------------------------------------- the wording

_RERANK_TASK = (
    "You select the passages that are needed to answer a question. The passages are numbered "
    "[1], [2] and so on. "
)
_RERANK_FORM = (
    " the numbers of the needed passages, the most useful first, in the "
    "form [2], [1]. Write only what is needed. If no passage is needed or none helps, write None."
)
_RERANK_INSTRUCTION = f"{_RERANK_TASK}Write{_RERANK_FORM}"
_THINK_FIRST = "First consider in a few sentences which passages help and why. Then write"
_ANSWER_INSTRUCTION: dict[Task, str] = {
    "short": (
        "Answer the question with a short phrase of a few words, without explanation. "
        "Use the passages if there are any."
    ),
    "label": (
        "Decide whether the claim is supported. Answer with exactly one of: SUPPORTS, REFUTES, "
        "NOT ENOUGH INFO. Use the passages if there are any."
    ),
    "paragraph": (
        "Answer the question in one paragraph of complete sentences. "
        "Use the passages if there are any."
    ),
}
_ASKED: dict[Task, str] = {"short": "Question", "label": "Claim", "paragraph": "Question"}

# The compact wording suits models trained from nothing, to whom instructions mean nothing. It is
# lower-case words only, so that a word-level vocabulary holds it. The task's word comes last.
_COMPACT_TASK: dict[Task, str] = {"short": "answer", "label": "label", "paragraph": "paragraph"}
COMPACT_WORDS = (
    *("question :", "passages :", "list :", "[1], [2]"),
    *(f"{word} :" for word in _COMPACT_TASK.values()),
)
"""Every template word of the compact style and of lists, for building vocabularies."""


def format_passage(number: int, passage: Passage) -> str:
    """``[number] title: text`` on one line; the title is left out where there is none."""
    text = " ".join(passage.text.split())
    title = " ".join(passage.title.split())
    return f"[{number}] {title}: {text}" if title else f"[{number}] {text}"


def _compact(question: Question, passages: Sequence[Passage], cue: str) -> list[Message]:
    # The id stands behind its passage: a causal model that reads the id has read the passage, and
    # can gather there what it says.
    lines = [f"question : {question.text}"]
    if passages:
        lines += ["passages :"]
        lines += [" ".join(f"{p.title} {p.text} [{i}]".split()) for i, p in enumerate(passages, 1)]
        lines += [f"question : {question.text}"]
    return [{"role": "user", "content": "\n".join([*lines, f"{cue} :"])}]


def _instruct(
    question: Question, passages: Sequence[Passage], instruction: str, cue: str
) -> list[Message]:
    question_line = f"{_ASKED[question.task]}: {question.text}"
    lines = [question_line, ""]
    if passages:
        lines += ["Passages:", *(format_passage(i, p) for i, p in enumerate(passages, 1))]
        lines += ["", question_line]
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": "\n".join([*lines, f"{cue}:"])},
    ]


def rerank_messages(
    question: Question,
    passages: Sequence[Passage],
    style: Style,
    thinking: Thinking | None = None,
) -> list[Message]:
    """The reranker's prompt over ``passages``, numbered from 1, as chat messages.

    With ``thinking`` it asks for a thought before the list.
    """
    cued = thinking is not None and thinking.cued
    if style == "compact":
        return _compact(question, passages, "passages" if cued else "list")
    if thinking is None:
        return _instruct(question, passages, _RERANK_INSTRUCTION, "Needed passages")
    behind = f" '{CUES[style]}' and" if cued else ""
    instruction = f"{_RERANK_TASK}{_THINK_FIRST}{behind}{_RERANK_FORM}"
    return _instruct(question, passages, instruction, "Thoughts" if cued else "Needed passages")


def answer_messages(question: Question, passages: Sequence[Passage], style: Style) -> list[Message]:
    """The generator's prompt over the chosen passages in the chosen order, as chat messages."""
    if style == "compact":
        return _compact(question, passages, _COMPACT_TASK[question.task])
    return _instruct(question, passages, _ANSWER_INSTRUCTION[question.task], "Answer")


# ---------------------------------------------------------------------------- to tokens


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its tokens and how many of the passages it shows."""

    tokens: list[int]
    shown: int


def _fit(
    make: Callable[[int], list[int]], count: int, limit: int, question: Question, what: str
) -> Prompt:
    tokens = make(count)
    if len(tokens) <= limit:
        return Prompt(tokens, count)
    # The length grows with the number of passages: bisect for the most that fit.
    low, high, best = 0, count - 1, None
    while low <= high:
        middle = (low + high) // 2
        tokens = make(middle)
        if len(tokens) <= limit:
            best, low = Prompt(tokens, middle), middle + 1
        else:
            high = middle - 1
    if best is None:
        raise InputError(
            f"question '{question.id}': the {what} takes more than {limit} tokens even without "
            f"passages; shorten the question or raise the limit"
        )
    return best


def rerank_prompt(
    tokenizer: ChatTokenizer,
    question: Question,
    style: Style,
    limit: int,
    n: int | None = None,
    thinking: Thinking | None = None,
) -> Prompt:
    """The reranker's prompt of at most ``limit`` tokens over the first ``n`` passages.

    Passages that do not fit are dropped from the end of the list, never the question or the
    instruction; ``shown`` says how many are left.

    Raises:
      InputError: the question has no passages, or not even one fits.
    """
    passages = question.passages[:n]
    if not passages:
        raise InputError(f"question '{question.id}' has no passages; retrieve some first")
    prompt = _fit(
        lambda k: render(
            tokenizer, rerank_messages(question, passages[:k], style, thinking), thinking
        ),
        len(passages), limit, question, "reranker's prompt",
    )  # fmt: skip
    if prompt.shown == 0:
        raise InputError(
            f"question '{question.id}': passage '{passages[0].id}' alone is longer than the limit "
            f"of {limit} tokens; split the passage or raise the limit"
        )
    return prompt


def answer_prompt(
    tokenizer: ChatTokenizer, question: Question, chosen: Sequence[int], style: Style, limit: int
) -> Prompt:
    """The generator's prompt over ``chosen`` (1-based positions, in that order).

    Raises:
      InputError: ``chosen`` is no valid list, or the question alone is too long.
    """
    wrong = valid_list(chosen, len(question.passages))
    if wrong:
        raise InputError(f"question '{question.id}': the list {list(chosen)} {wrong}")
    passages = [question.passages[i - 1] for i in chosen]
    return _fit(
        lambda k: render(tokenizer, answer_messages(question, passages[:k], style)),
        len(passages), limit, question, "generator's prompt",
    )  # fmt: skip


def answer_tokens(tokenizer: ChatTokenizer, answer: str, limit: int | None = None) -> list[int]:
    """Target tokens of an answer, end-of-text included; of a longer one the first ``limit``.

    What is cut has no end: who learned from it to end would stop in the middle of a sentence.
    """
    ids = list(tokenizer(without_markers(answer, tokenizer), add_special_tokens=False)["input_ids"])
    return [*ids, tokenizer.eos_token_id][:limit]


def decode_answer(tokenizer: ChatTokenizer, tokens: Sequence[int], ends: Sequence[int] = ()) -> str:
    """The text of generated answer tokens, up to the first of ``ends``."""
    kept = list(itertools.takewhile(lambda token: token not in ends, tokens))
    return tokenizer.decode(kept, skip_special_tokens=True).strip()
