"""BM25 by the package bm25s: a corpus' words counted once, kept on disk, searched in batches."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.files import PathLike, read_json, write_json
from dynarag_jax.retrieval.words import PAIRS, has_unbroken, split_words

_MANIFEST = "bm25.json"
WORDS = 2
"""How texts are cut into words; an index counted otherwise is no longer searched."""


@dataclass(frozen=True)
class Bm25Config:
    """How words are counted. Defaults are those of Anserini's BEIR baselines."""

    k1: float = 0.9
    """how soon further occurrences of a word count less"""
    b: float = 0.4
    """how much long passages are held down, from 0 to 1"""
    language: Literal["english", "none"] = "english"
    """whose stop words are left out and endings cut (Snowball); none keeps words as they are"""

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise InputError(
                f"bm25: k1 = {self.k1} must not be negative, b = {self.b} must lie in [0, 1]"
            )


# Lucene's stop words, which Anserini leaves out.
_STOP = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise MissingExtra("bm25s", "retrieval", "BM25") from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import asks for every detail
    return bm25s


class _Words:
    """Texts to words: lower case, stop words left out, endings cut."""

    def __init__(self, config: Bm25Config):
        self._stem: dict[str, str] = {}
        self._stemmer = None
        if config.language == "english":
            try:
                import Stemmer
            except ImportError:
                raise MissingExtra("PyStemmer", "retrieval", "stemming for BM25") from None
            self._stemmer = Stemmer.Stemmer("english")

    def __call__(self, text: str) -> list[str]:
        words = split_words(text)
        if self._stemmer is None:
            return words
        kept = [word for word in words if word not in _STOP]
        known, stemmer = self._stem, self._stemmer
        new = list({word for word in kept if word not in known})
        known.update(zip(new, stemmer.stemWords(new), strict=True))
        return [known[word] for word in kept]


class Bm25:
    """A corpus that is searched by its words.

    Attributes:
      count: passages.
      config: how words are counted.
      corpus: fingerprint of the passages.
    """

    def __init__(self, model: Any, config: Bm25Config, corpus: str):
        self._model, self.config, self.corpus = model, config, corpus
        self._ids: dict[str, int] = model.vocab_dict
        self._words = _Words(config)
        self._pairs = any(map(has_unbroken, itertools.islice(self._ids, 1 << 20)))
        self.count = int(model.scores["num_docs"])

    @property
    def description(self) -> str:
        """What it is, in one line."""
        return (
            f"BM25 (k1 {self.config.k1:g}, b {self.config.b:g}, {self.config.language}) over "
            f"{self.count} passages, {len(self._ids)} words" + (f", {PAIRS}" if self._pairs else "")
        )

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best passages of each query.

        Returns:
          positions int64 [n, k] and scores float32 [n, k], best first, ties in corpus order. A
          passage that shares no word with the query is not found: position -1, score -inf.
        """
        if k < 1:
            raise InputError(f"bm25: {k} passages are asked for; ask for at least 1")
        positions = np.full((len(queries), k), -1, np.int64)
        best_scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, query in enumerate(queries):
            known = [self._ids[w] for w in self._words(query) if w in self._ids]
            if not known:
                continue
            scores = self._model.get_scores_from_ids(known)
            # All that is at least as good as the k-th, so that ties at the cut go by position.
            best = np.flatnonzero(scores > 0)
            if best.size > k:
                least = np.partition(scores[best], best.size - k)[best.size - k]
                best = best[scores[best] >= least]
            best = best[np.lexsort((best, -scores[best]))][:k]
            positions[row, : best.size], best_scores[row, : best.size] = best, scores[best]
        return positions, best_scores

    def save(self, directory: PathLike) -> None:
        """Write to a new directory, which appears only when it is whole."""
        with atomic_directory(directory) as place:
            self._model.save(str(place), show_progress=False)
            write_json(
                place / _MANIFEST,
                {
                    "count": self.count,
                    "corpus": self.corpus,
                    "config": asdict(self.config),
                    "words": WORDS,
                },
            )


def build_bm25(texts: Iterable[str], config: Bm25Config, corpus: str = "") -> Bm25:
    """Count the words of a corpus.

    Raises:
      InputError: no text has a word.
      MissingExtra: bm25s or PyStemmer is not installed.
    """
    bm25s = _bm25s()
    words, ids, rows = _Words(config), {}, []
    for text in texts:
        rows.append([ids.setdefault(w, len(ids)) for w in words(text)])
    if not ids:
        raise InputError("bm25: no passage has a word that counts")
    model = bm25s.BM25(k1=config.k1, b=config.b, method="lucene")
    model.index((rows, ids), create_empty_token=False, show_progress=False)
    return Bm25(model, config, corpus)


def load_bm25(directory: PathLike, corpus: str = "") -> Bm25:
    """Read what ``Bm25.save`` wrote.

    Raises:
      InputError: nothing is there, or it is of another corpus than the fingerprint says.
    """
    folder = Path(directory)
    if not (folder / _MANIFEST).is_file():
        raise InputError(f"{folder}: no BM25 index (no {_MANIFEST})")
    manifest = read_json(folder / _MANIFEST)
    if corpus and manifest["corpus"] != corpus:
        raise InputError(f"{folder}: counts the words of another corpus; build it again")
    if manifest.get("words") != WORDS:
        raise InputError(f"{folder}: cut into words by an earlier version; remove it")
    model = _bm25s().BM25.load(str(folder), mmap=True)
    index = Bm25(model, Bm25Config(**manifest["config"]), manifest["corpus"])
    if index.count != manifest["count"]:
        raise InputError(f"{folder}: holds {index.count} passages, not {manifest['count']}")
    return index
