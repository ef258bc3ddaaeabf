"""The two prompts and the text form of a list: one source for training, sampling, evaluation.

The reranker reads the question and its numbered passages and writes a list such as ``[3], [1]`` or
``None``; the generator reads the chosen passages in the chosen order and writes the answer. The
passages are shown as ``[i]`` in both, and the question stands before and after them, so that a
causal model reads the passages knowing what is asked.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage, Question, Task, valid_list

Style = Literal["instruct", "compact"]
Message = dict[str, str]


class Tokenizer(Protocol):
    """What this library asks of a tokenizer; ``transformers`` fast tokenizers have it."""

    chat_template: Any
    eos_token_id: Any
    all_special_tokens: Any
    added_tokens_decoder: Any

    def __call__(self, text: Any, *, add_special_tokens: bool = True) -> Any: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def get_chat_template(self) -> str: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any: ...


@dataclass(frozen=True)
class PromptConfig:
    """The wording of the prompts and their limits, the same in every stage of a run."""

    style: Style = "instruct"
    """instruct, for language models that follow instructions; compact, for models from nothing"""
    ids: int = 45
    """passages shown to the reranker at most"""
    max_list: int = 15
    """ids in a list at most"""
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


def buckets(limit: int, shortest: int = 64) -> tuple[int, ...]:
    """Padded prompt lengths for batches: ``limit`` and its halves down to ``shortest``."""
    sizes = [limit]
    while sizes[-1] // 2 >= shortest:
        sizes.append(sizes[-1] // 2)
    return tuple(reversed(sizes))


# ---------------------------------------------------------------------------- the wording

_RERANK_INSTRUCTION = (
    "You select the passages that are needed to answer a question. The passages are numbered "
    "[1], [2] and so on. Write the numbers of the needed passages, the most useful first, in the "
    "form [2], [1]. Write only what is needed. If no passage is needed or none helps, write None."
)
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
    asked = f"{_ASKED[question.task]}: {question.text}"
    lines = [asked, ""]
    if passages:
        lines += ["Passages:", *(format_passage(i, p) for i, p in enumerate(passages, 1))]
        lines += ["", asked]
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": "\n".join([*lines, f"{cue}:"])},
    ]


def rerank_messages(question: Question, passages: Sequence[Passage], style: Style) -> list[Message]:
    """The reranker's prompt over ``passages``, numbered from 1, as chat messages."""
    if style == "compact":
        return _compact(question, passages, "list")
    return _instruct(question, passages, _RERANK_INSTRUCTION, "Needed passages")


def answer_messages(question: Question, passages: Sequence[Passage], style: Style) -> list[Message]:
    """The generator's prompt over the chosen passages in the chosen order, as chat messages."""
    if style == "compact":
        return _compact(question, passages, _COMPACT_TASK[question.task])
    return _instruct(question, passages, _ANSWER_INSTRUCTION[question.task], "Answer")


# ---------------------------------------------------------------------------- to tokens

_DATE = datetime.date(2024, 7, 26)

TEMPLATE_SETTINGS: Mapping[str, Any] = {
    "date_string": _DATE.strftime("%d %b %Y"),
    "enable_thinking": False,
}
"""What chat templates are given beside the messages; those that know none of it ignore it.

Some write today's date into the prompt, and a policy would be trained, sampled and evaluated on
other prompts each day; the date here is the one that Llama 3's templates fall back to. Qwen3's let
the model think aloud first unless told otherwise; a list or an answer begins at once.
"""

# transformers lets templates call ``strftime_now`` for the time; a macro of that name comes first.
_STOPPED_CLOCK = (
    "{%- macro strftime_now(pattern) -%}{{ pattern"
    + "".join(f"|replace('%{c}', '{_DATE.strftime('%' + c)}')" for c in "aAbBdmyYjHIMSp")
    + "}}{%- endmacro -%}"
)


def _plain(text: str, tokenizer: Tokenizer) -> str:
    """``text`` without the spellings of special tokens, which passages must not smuggle in."""
    # Chat markers such as <|eot_id|> are special in the vocabulary without having a role of their
    # own, so that the named special tokens alone do not cover them.
    added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    spellings = sorted({t for t in (*tokenizer.all_special_tokens, *added) if t}, key=len)
    return re.sub("|".join(map(re.escape, reversed(spellings))) or "(?!)", " ", text)


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a prompt: the model's own chat template, or plain lines where it has none.

    Raises:
      InputError: the chat template fails.
    """
    messages = [m | {"content": _plain(m["content"], tokenizer)} for m in messages]
    if tokenizer.chat_template:
        text = _templated(tokenizer, messages)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    tokens = list(tokenizer("\n".join(m["content"] for m in messages))["input_ids"])
    # A tokenizer that closes every text (``add_eos_token``) would end the prompt before the answer.
    return tokens[:-1] if tokens[-1:] == [tokenizer.eos_token_id] else tokens


def _templated(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The text of the chat template, up to where the model begins to write."""
    conversations = [list(messages)]
    if messages[0]["role"] == "system":
        # Some templates refuse a system message (Gemma's), or any role but the user's in the first
        # place (Mistral's): the instruction then opens the user's turn.
        joined = "\n\n".join(m["content"] for m in messages)
        conversations.append([{"role": "user", "content": joined}])
    settings: dict[str, Any] = dict(TEMPLATE_SETTINGS)
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        settings["chat_template"] = _STOPPED_CLOCK + template
    failures = []
    for conversation in conversations:
        try:
            return tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False, **settings
            )
        except Exception as error:  # noqa: BLE001 - a template raises what its author chose
            failures.append(f"{type(error).__name__}: {error}")
    raise InputError(f"the tokenizer's chat template fails on the prompt ({failures[-1]})")


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
    tokenizer: Tokenizer, question: Question, style: Style, limit: int, n: int | None = None
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
        lambda k: render(tokenizer, rerank_messages(question, passages[:k], style)),
        len(passages), limit, question, "reranker's prompt",
    )  # fmt: skip
    if prompt.shown == 0:
        raise InputError(
            f"question '{question.id}': passage '{passages[0].id}' alone is longer than the limit "
            f"of {limit} tokens; split the passage or raise the limit"
        )
    return prompt


def answer_prompt(
    tokenizer: Tokenizer, question: Question, chosen: Sequence[int], style: Style, limit: int
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


def answer_tokens(tokenizer: Tokenizer, answer: str, limit: int) -> list[int]:
    """Target tokens of an answer, end-of-text included, cut to ``limit``."""
    ids = list(tokenizer(_plain(answer, tokenizer), add_special_tokens=False)["input_ids"])
    return [*ids[: limit - 1], tokenizer.eos_token_id]


def decode_answer(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of generated answer tokens."""
    return tokenizer.decode(list(tokens), skip_special_tokens=True).strip()


# ---------------------------------------------------------------------------- lists as text


def format_list(ids: Sequence[int]) -> str:
    """``[3], [1]``, or ``None`` for the empty list."""
    return ", ".join(f"[{i}]" for i in ids) or "None"


_STRICT = re.compile(r"None|\[[1-9][0-9]*\](?:, \[[1-9][0-9]*\])*")


def parse_list(text: str, n: int) -> tuple[int, ...]:
    """Read a list that follows the grammar exactly; the inverse of ``format_list``.

    Raises:
      ValueError: the text is not in the grammar, an id is outside 1..n, or one repeats.
    """
    text = text.strip()
    if not _STRICT.fullmatch(text):
        raise ValueError(f"not a list: {text!r}")
    ids = tuple(int(i) for i in re.findall(r"[0-9]+", text))
    if wrong := valid_list(ids, n):
        raise ValueError(f"the list {text!r} {wrong}")
    return ids


@dataclass(frozen=True)
class Repairs:
    """What a lenient parse had to mend, by kind; all zero exactly for a list in the grammar."""

    out_of_range: int = 0
    """ids outside 1..n, dropped"""
    repeated: int = 0
    """ids written before, dropped"""
    unbracketed: int = 0
    """ids without brackets, kept"""
    extra_text: int = 0
    """1 where other words stood beside the list"""
    unreadable: int = 0
    """1 where the text holds neither an id nor ``None``"""
    spacing: int = 0
    """1 where nothing but spaces, separators or capitals differ from the grammar"""

    def __bool__(self) -> bool:
        return any(vars(self).values())


def parse_list_leniently(text: str, n: int) -> tuple[tuple[int, ...], Repairs]:
    """Read a list from text of elsewhere (another server, old files), counting every repair.

    Ids outside 1..n (0 among them) and repeats are dropped; words beside bracketed ids are
    ignored; ids without brackets are read where the text holds no words at all. Text with neither
    ids nor ``None`` is unreadable and gives the empty list.
    """
    try:
        return parse_list(text, n), Repairs()
    except ValueError:
        pass
    found = re.findall(r"\[\s*(-?\d+)\s*\]", text)
    rest = re.sub(r"\[\s*-?\d+\s*\]", "", text)
    unbracketed = 0
    if not found:
        numbers_only = re.fullmatch(r"[\W\d]*", text) is not None
        found = re.findall(r"-?\d+", text) if numbers_only else []
        unbracketed, rest = len(found), "" if found else text
    none = not found and re.search(r"\bnone\b", rest, re.IGNORECASE) is not None
    words = re.sub(r"\bnone\b" if none else r"(?!)", "", rest, flags=re.IGNORECASE)
    kept: list[int] = []
    out_of_range = repeated = 0
    # Python refuses to read numbers of thousands of digits; these are far outside any range.
    for i in (int(digits[:18]) for digits in found):
        if not 1 <= i <= n:
            out_of_range += 1
        elif i in kept:
            repeated += 1
        else:
            kept.append(i)
    repairs = Repairs(
        out_of_range=out_of_range,
        repeated=repeated,
        unbracketed=unbracketed,
        extra_text=int(re.search(r"\w", words) is not None),
        unreadable=int(not found and not none),
    )
    return tuple(kept), repairs or Repairs(spacing=1)
