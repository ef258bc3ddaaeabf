"""Questions that two files share, by their normalized text: what leaks from training to tests."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dynarag_jax.records import Question


def normalized(text: str) -> str:
    """A question's letters, marks and numbers, in lower case, one space between words.

    Compatible forms of Unicode (full width, ligatures) are the same.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(kept).split())


@dataclass(frozen=True)
class Overlap:
    """What two files share.

    Attributes:
      count: questions of the one that are in the other.
      first: one of them.
    """

    count: int
    first: str = ""


def texts_of(questions: Iterable[Question]) -> dict[str, str]:
    """The questions' texts by their normalized form; those without letters are left out."""
    return {key: q.text for q in questions if (key := normalized(q.text))}


def overlap(one: Mapping[str, str], other: Mapping[str, str]) -> Overlap:
    """What two files share, each as of ``texts_of``."""
    shared = [text for key, text in one.items() if key in other]
    return Overlap(len(shared), shared[0] if shared else "")
