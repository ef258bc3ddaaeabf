"""Whether a passage contains an answer: DPR's test (Karpukhin et al. 2020), token by token.

Both texts are brought to Unicode's NFD form and cut into tokens: a run of letters, numbers and
marks, or one other visible character. Case is ignored, punctuation and articles are not. So
"Currington" stands in "Currington's", "2003" in "2002–2003" and "Paris" in "Paris-based", but "10"
not in "1910".
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable


class _Spaced(dict[int, str]):
    """For ``str.translate``: a space for what is no token, spaces around what is one by itself."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)[0]
        apart = " " if kind in "ZC" else f" {character} "
        self[code] = character if kind in "LNM" else apart
        return self[code]


_SPACED = _Spaced()


@functools.lru_cache(maxsize=1 << 16)
def answer_tokens(text: str) -> str:
    """The tokens of a text as DPR's test compares them: lower-case, one space between two."""
    # No token holds a space, so that a run of tokens is a substring and nothing else is.
    return " ".join(unicodedata.normalize("NFD", text).translate(_SPACED).split()).lower()


def has_answer(passage: str, answers: Iterable[str]) -> bool:
    """Whether the tokens of some answer stand in the passage, side by side and in order.

    An answer without a token (blank, or invisible characters alone) stands nowhere.

    Args:
      passage: the text to look in; DPR's figures leave the passage's title out.
      answers: the acceptable answers; one is enough.
    """
    wanted = [f" {tokens} " for answer in answers if (tokens := answer_tokens(answer))]
    text = f" {answer_tokens(passage)} " if wanted else ""
    return any(answer in text for answer in wanted)
