"""Texts of strangers brought to lengths that a model reads; what was cut is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.records import Passage

# No token of a text is longer than this many characters on the average; of what lies beyond, none
# would be read.
_CHARACTERS = 32


def bare_tokenizer(directory: Path) -> Tokenizer:
    """A model's tokenizer without padding, truncation or special tokens of its own."""
    file = directory / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
    else:
        tokenizer = load_tokenizer(directory).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Cutter:
    """Cuts texts at so many tokens of a model's tokenizer; safe for threads.

    Args:
      limit: tokens of a document at most, whatever a request allows.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int):
        self._tokenizer, self.limit = tokenizer, limit

    def longer(self, text: str, limit: int) -> bool:
        """Whether a text has more tokens than ``limit``."""
        return self._cut(text, limit) is not text

    def _cut(self, text: str, limit: int) -> str:
        # A token takes at least a byte.
        if len(text) <= limit and len(text.encode()) <= limit:
            return text
        start = text[: limit * _CHARACTERS]
        encoded = self._tokenizer.encode(start, add_special_tokens=False)
        if len(encoded.ids) > limit:
            return text[: encoded.offsets[limit - 1][1]] if limit else ""
        return text if len(start) == len(text) else start

    def passages(
        self, passages: Sequence[Passage], limit: int | None = None
    ) -> tuple[list[Passage], int]:
        """The passages, none longer than the limit, and how many were cut.

        A title has up to a quarter of it.
        """
        most = self.limit if limit is None else min(limit, self.limit)
        found, cut = [], 0
        for passage in passages:
            title = self._cut(passage.title, most // 4) if passage.title else ""
            room = most - most // 4 if title else most
            text = self._cut(passage.text, room)
            if text is not passage.text or title != passage.title:
                passage = replace(passage, text=text, title=title)
                cut += 1
            found.append(passage)
        return found, cut
