"""How answers are normalized before they are compared: by the benchmark's rules, or by others.

SQuAD's rules, which most benchmarks use, are made for English: they know ASCII punctuation and
English articles, and words stand between spaces. For other scripts there are two more:

- ``unicode``: compatible characters made one (NFKC), case folded, punctuation of every script
  deleted, no articles; each character of a script written without spaces is a token of its own.
- ``mlqa``: those of MLQA (Lewis et al. 2020, arXiv 1910.07475), by the language of the answer:
  lower case, punctuation of every script deleted, the language's articles dropped, Chinese cut into
  characters.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.records import Question

Normalizer = Callable[[str], str]
Rules = Literal["benchmark", "unicode", "mlqa"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
# TriviaQA's evaluator adds four quotes to the ASCII punctuation (the last is in both).
_BLANK_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


@functools.lru_cache(maxsize=1 << 16)
def normalize(text: str) -> str:
    """SQuAD's normalizer: lower-case, delete ASCII punctuation, drop a/an/the, collapse spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


@functools.lru_cache(maxsize=1 << 16)
def normalize_trivia(text: str) -> str:
    """TriviaQA's normalizer: as SQuAD's, but punctuation and quotes become spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_BLANK_PUNCTUATION)).split())


# ---------------------------------------------------------------------------- other scripts


class _NoPunctuation(dict[int, str]):
    """For ``str.translate``: nothing in place of punctuation, be it ASCII's or Unicode's."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        marks = unicodedata.category(character)[0] == "P" or character in string.punctuation
        self[code] = "" if marks else character
        return self[code]


_NO_PUNCTUATION = _NoPunctuation()

# Scripts written without spaces: a character with the marks that belong to it.
_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Myanmar, Khmer
_LETTERS += "\u3041-\u30ff\u31f0-\u31ff"  # kana
_LETTERS += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han


@functools.cache
def _unspaced() -> re.Pattern[str]:
    inside = [chr(c) for c in range(0x0300, 0x3100) if unicodedata.category(chr(c))[0] == "M"]
    marks = "".join(inside)
    return re.compile(f"(?=[{_LETTERS}])[^{marks}][{marks}]*")


@functools.lru_cache(maxsize=1 << 16)
def normalize_unicode(text: str) -> str:
    """Normalize text of any script; tokens stand between spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # A mark may now follow a letter that punctuation kept apart from it.
    kept = unicodedata.normalize("NFKC", folded.translate(_NO_PUNCTUATION))
    return " ".join(_unspaced().sub(r" \g<0> ", kept).split())


MLQA_ARTICLES: Mapping[str, str] = {
    "ar": "ال",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "hi": "",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "zh": "",
}
"""MLQA's languages, and what its script drops as their articles."""

_CHINESE = re.compile("([\u4e00-\u9fa5])")


@functools.lru_cache(maxsize=1 << 16)
def normalize_mlqa(text: str, language: str) -> str:
    """Normalize as MLQA's script does for a language.

    Raises:
      InputError: the language is none of MLQA's.
    """
    if language not in MLQA_ARTICLES:
        raise InputError(
            f"MLQA has no rules for language '{language}'; it has {', '.join(MLQA_ARTICLES)}"
            f"{nearest(language, MLQA_ARTICLES)}; normalize = 'unicode' is for every language"
        )
    text = text.lower().translate(_NO_PUNCTUATION)
    if articles := MLQA_ARTICLES[language]:
        text = re.sub(articles, " ", text)
    if language == "zh":
        text = _CHINESE.sub(r" \1 ", text)
    return " ".join(text.split())


# ---------------------------------------------------------------------------- by configuration


@dataclass(frozen=True)
class MetricsConfig:
    """How answers are compared with references in EM, F1 and containment."""

    normalize: Rules = "benchmark"
    """rules by which answers are normalized: benchmark (SQuAD's or TriviaQA's, made for English),
    unicode (any script), mlqa (MLQA's, by language)"""
    language: str = ""
    """of mlqa, where questions do not say theirs in a field ``language``: ar, de, en, es, hi, vi
    or zh"""

    def __post_init__(self) -> None:
        if self.language and self.normalize != "mlqa":
            raise InputError(
                f"metrics.language = '{self.language}' is for metrics.normalize = 'mlqa' and has "
                f"no effect on '{self.normalize}'"
            )
        if self.language:
            normalize_mlqa("", self.language)

    def normalizer(self, question: Question) -> Normalizer | None:
        """The normalizer of a question's answers; None for its benchmark's own.

        Raises:
          InputError: MLQA's rules are asked for, and the language is not said or not known.
        """
        if self.normalize == "benchmark":
            return None
        if self.normalize == "unicode":
            return normalize_unicode
        language = question.extra.get("language") or self.language
        if not isinstance(language, str) or not language:
            raise InputError(
                f"question '{question.id}': MLQA's rules need its field 'language' or "
                f"metrics.language, found {language!r}"
            )
        return functools.partial(normalize_mlqa, language=language)

    def note(self) -> str:
        """What must stand below a table of such numbers; empty for the benchmarks' own rules."""
        if self.normalize == "benchmark":
            return ""
        rules = {
            "unicode": "Unicode (NFKC, case folded, punctuation of every script deleted, articles "
            "kept)",
            "mlqa": "MLQA's script, by language",
        }[self.normalize]
        return f"Answers are normalized by the rules of {rules}, not the benchmark's."
