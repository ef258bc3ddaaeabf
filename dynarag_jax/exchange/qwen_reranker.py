"""The prompt of Qwen3-Reranker (arXiv 2506.05176), as its model card gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.templates import without_markers

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def prompts(tokenizer: Any, pairs: Sequence[tuple[str, str]], longest: int) -> list[list[int]]:
    """Tokens of the prompts of (question, passage) pairs, of at most ``longest`` tokens.

    What does not fit is cut off the passage's end.
    """
    before, behind = (_tokens(tokenizer, text) for text in (_BEFORE, _BEHIND))
    room = longest - len(before) - len(behind)
    if room < 1:
        raise InputError(
            f"a prompt of {longest} tokens has no room for the reranker's {longest - room}"
        )
    texts = [
        without_markers(
            f"<Instruct>: {INSTRUCTION}\n<Query>: {question}\n<Document>: {passage}", tokenizer
        )
        for question, passage in pairs
    ]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [[*before, *row[:room], *behind] for row in rows]


def verdicts(tokenizer: Any) -> tuple[int, int]:
    """The tokens of "yes" and "no".

    Raises:
      InputError: the tokenizer does not have them as single tokens.
    """
    words = [_tokens(tokenizer, word) for word in ("yes", "no")]
    if any(len(tokens) != 1 for tokens in words):
        raise InputError("Qwen3-Reranker needs 'yes' and 'no' as single tokens")
    return words[0][0], words[1][0]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
