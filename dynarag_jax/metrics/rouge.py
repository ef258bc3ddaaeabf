"""ROUGE-L by the two implementations that benchmarks use, which disagree widely.

``rouge_l`` and ``rouge_lsum`` follow the package ``rouge-score`` (stemmed, word tokens): ASQA's
and ours by default. ``rouge_l_kilt`` follows the package ``rouge`` 1.0.1, with which KILT scores
ELI5: no stemmer, tokens split at white space, sentences at full stops, and *sets* of words. Name
the one that was used beside the number. All are F1 in [0, 1], the maximum over references, and 0
for a blank prediction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class _CachedStemmer:
    """NLTK's Porter stemmer with a memory: reward computation meets the same words again."""

    def __init__(self, stem: Callable[[str], str]):
        self.stem = functools.lru_cache(maxsize=1 << 17)(stem)


@functools.cache
def _rouge_score() -> tuple[Any, Any, _CachedStemmer]:
    """The rouge-score package: its tokenizer, its scorer module, and a stemmer.

    Imported where it is first needed, since NLTK takes a second or more to load.
    """
    from nltk.stem.porter import PorterStemmer
    from rouge_score import rouge_scorer, tokenize

    return tokenize, rouge_scorer, _CachedStemmer(PorterStemmer().stem)


@functools.lru_cache(maxsize=1 << 14)
def _rouge_tokens(text: str) -> tuple[str, ...]:
    tokenize, _, stemmer = _rouge_score()
    return tuple(tokenize.tokenize(text, stemmer))


def _places(a: Sequence[str]) -> dict[str, int]:
    """For each token the bits of the positions where it stands."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    return places


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of the table in a few operations.

    A row is held as the bits of one integer (Hyyrö 2004): bit i is 0 where the row steps up.
    """
    places = _places(a)
    every = (1 << len(a)) - 1
    row = every
    for token in b:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(a) - row.bit_count()


def rouge_l(prediction: str, references: Iterable[str]) -> float:
    """ROUGE-L F1 with stemmer, the maximum over references; equal to the rouge-score package's.

    Tokens and stems are the package's own. The longest common subsequence is computed here, without
    the package's table in Python, since every sampled answer may need it as a reward.
    """
    tokens = _rouge_tokens(prediction)
    best = 0.0
    for reference in references:
        gold = _rouge_tokens(reference)
        if tokens and gold:
            best = max(best, 2 * _common_subsequence(gold, tokens) / (len(gold) + len(tokens)))
    return best


def rouge_lsum(prediction: str, references: Iterable[str]) -> float:
    """ROUGE-Lsum F1 with stemmer, the maximum over references, by the rouge-score package.

    Sentences are lines, the package's own default.
    """
    _, scorer, _ = _rouge_score()
    rouge = scorer.RougeScorer(["rougeLsum"], use_stemmer=True)
    return max(
        (float(rouge.score(r, prediction)["rougeLsum"].fmeasure) for r in references), default=0.0
    )


@functools.cache
def _sentence_tokenizer() -> Any:
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer()


@functools.lru_cache(maxsize=1 << 14)
def split_sentences(text: str) -> tuple[str, ...]:
    """Sentences by NLTK's Punkt rules, without its learned list of English abbreviations.

    ASQA's script takes that list from a file that NLTK downloads. The rules alone are the same on
    every machine; `docs/metrics.md` says by how much ROUGE-Lsum differs.
    """
    return tuple(_sentence_tokenizer().tokenize(text))


# ---------------------------------------------------------------------------- the package rouge


def _sentences(text: str) -> list[list[str]]:
    """Sentences of words as the package cuts them: at every full stop, blank ones kept."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _subsequence_words(x: Sequence[str], y: Sequence[str]) -> set[str]:
    """The words of one longest common subsequence: the one that the package's table leads to."""
    rows = [(1 << len(x)) - 1]
    every, places = rows[0], _places(x)
    for token in y:
        matched = rows[-1] & places.get(token, 0)
        rows.append(((rows[-1] + matched) | (rows[-1] - matched)) & every)

    def length(i: int, j: int) -> int:
        return i - (rows[j] & ((1 << i) - 1)).bit_count()

    words: set[str] = set()
    i, j = len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif length(i - 1, j) > length(i, j - 1):
            i -= 1
        else:
            j -= 1
    return words


def package_rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 of the package ``rouge`` 1.0.1; 0 where it would find no sentence in a side.

    Words of the union over pairs of sentences of their longest common subsequences, against the
    distinct words of either side. Which subsequence is taken, where several are longest, depends on
    the order of the arguments, and so does the score.
    """
    given, gold = _sentences(prediction), _sentences(reference)
    if not given or not gold:
        return 0.0
    shared: set[str] = set()
    for sentence in gold:
        for words in given:
            shared |= _subsequence_words(sentence, words)
    recall = len(shared) / len({word for sentence in gold for word in sentence})
    precision = len(shared) / len({word for sentence in given for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_l_kilt(prediction: str, references: Iterable[str]) -> float:
    """ROUGE-L F1 as KILT computes it (Petroni et al. 2021), the maximum over references.

    A blank prediction scores 0, as in KILT; the package alone would compare it by its empty word.
    """
    if not prediction.strip():
        return 0.0
    return max((package_rouge_l(prediction, reference) for reference in references), default=0.0)
