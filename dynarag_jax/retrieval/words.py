"""Words of texts in any script, for BM25.

Runs of letters, digits and the marks that belong to them are words. Chinese, Japanese, Thai, Lao,
Khmer and Burmese write no spaces between words, and Korean writes particles onto them: such runs
are cut into overlapping pairs of characters, as Lucene's CJKAnalyzer does for Chinese, Japanese and
Korean, and Xapian for all scripts without spaces. Pairs need no dictionary, and a word of two
characters or more is found by its pairs wherever it stands.
"""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from functools import cache

PAIRS = "scripts without spaces between words by pairs of characters"
"""What is said of a corpus that has such texts."""

_UNBROKEN = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"
    "\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3100-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # Hangul
)
_HAS_UNBROKEN = re.compile(f"[{_UNBROKEN}]")
# Words of one letter count, too: "vitamin A", "hepatitis B".
_PLAIN = re.compile(r"(?u)\b\w+\b")


def has_unbroken(text: str) -> bool:
    """Whether a text has characters of a script without spaces between words."""
    return _HAS_UNBROKEN.search(text) is not None


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A word with its marks, and a run within a word that is, or is not, of an unbroken script."""
    # Python's \w leaves out the marks of Unicode, which in Hindi or Arabic stand within words.
    marks = "".join(
        chr(code)
        for code in range(0x300, sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )
    word = re.compile(f"[\\w{marks}]*\\w[\\w{marks}]*")
    run = re.compile(f"[{_UNBROKEN}][{_UNBROKEN}{marks}]*|[^{_UNBROKEN}]+")
    return word, run


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, in order."""
    text = text.lower()
    if text.isascii():
        return _PLAIN.findall(text)
    # Full-width letters are letters, and an accent is the same in one character or in two.
    text = unicodedata.normalize("NFKC" if has_unbroken(text) else "NFC", text)
    word, run = _patterns()
    words: list[str] = []
    for found in word.findall(text):
        if not has_unbroken(found):
            words.append(found)
            continue
        for piece in run.findall(found):
            words += _pairs(piece) if has_unbroken(piece) else [piece]
    return words


def _pairs(run: str) -> list[str]:
    """Overlapping pairs of letters, each with the marks behind it; one letter alone is a word."""
    letters: list[str] = []
    for character in run:
        if (letters and unicodedata.combining(character)) or (
            letters and unicodedata.category(character) in ("Mn", "Mc")
        ):
            letters[-1] += character
        else:
            letters.append(character)
    if len(letters) < 2:
        return letters
    return [first + second for first, second in itertools.pairwise(letters)]
