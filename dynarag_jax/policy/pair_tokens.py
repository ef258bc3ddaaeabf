"""Questions and candidates as an encoder policy reads them: word pieces of pairs, features."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from dynarag_jax.errors import InputError
from dynarag_jax.files import fingerprint
from dynarag_jax.models.list_head import RETRIEVER
from dynarag_jax.models.packed import Room
from dynarag_jax.models.pairs import PairBatch
from dynarag_jax.policy.encoder_policy import CandidateBatch
from dynarag_jax.records import Question, passage_text

COUNTS = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 64, 100, 128, 200, 256, 350, 500)
"""Padded numbers of candidates; more are refused."""

FEW_COUNTS = (10, 20, 50, 100, 200, 500)
"""The same where compiling for one more costs more than padding does."""

PIECES = 32
"""Pairs are padded to a multiple of so many word pieces."""


@dataclass(frozen=True)
class QuestionPairs:
    """The pairs of one question.

    Attributes:
      tokens: word pieces of each pair; ``types`` their token types.
      second: where the passage begins in each.
      retriever: [N, 3], the retriever's features.
      shortened: [N] bool, pairs that lost word pieces.
    """

    tokens: tuple[np.ndarray, ...]
    types: tuple[np.ndarray, ...]
    second: np.ndarray
    retriever: np.ndarray
    shortened: np.ndarray

    @property
    def cut(self) -> int:
        """Pairs that lost word pieces."""
        return int(self.shortened.sum())

    @property
    def count(self) -> int:
        """Candidates."""
        return len(self.tokens)

    @property
    def longest(self) -> int:
        """Word pieces of the longest pair."""
        return max((len(row) for row in self.tokens), default=0)

    def word_pieces(self, chosen: Sequence[int], pieces: int, most: int) -> int:
        """Word pieces of all pairs with what is put into each (``pairs.pairs_with_chosen``).

        Args:
          chosen: candidates, from 1; others are left out. ``pieces``: of each; ``most``: of a pair.
        """
        lengths = np.array([len(row) for row in self.tokens])
        at = np.array([i - 1 for i in chosen if 0 < i <= len(lengths)], np.int64)
        added = (np.clip(lengths[at] - 1 - self.second[at], 0, pieces) + 1).sum()
        return int(np.minimum(lengths + added, most).sum())

    def of(self, places: Sequence[int]) -> QuestionPairs:
        """The pairs at these places, from 0, in this order; features are those among all."""
        at = np.asarray(places, np.int64)
        return QuestionPairs(
            tuple(self.tokens[i] for i in places),
            tuple(self.types[i] for i in places),
            self.second[at],
            self.retriever[at],
            self.shortened[at],
        )

    def fingerprint(self) -> str:
        """A hash of what the policy reads, for stamping what was computed of it."""
        return fingerprint([row.tolist() for row in self.tokens])


def retriever_features(question: Question) -> np.ndarray:
    """[N, 3]: the score within the question, standardized; whether there is one; 1 / rank."""
    n = len(question.passages)
    features = np.zeros((n, RETRIEVER), np.float32)
    features[:, 2] = 1 / np.arange(1, n + 1)
    known = [i for i, p in enumerate(question.passages) if p.score is not None]
    if known:
        scores = np.array([question.passages[i].score for i in known], np.float64)
        spread = scores.std()
        features[known, 0] = (scores - scores.mean()) / (spread or 1.0)
        features[known, 1] = 1
    return features


@dataclass
class PairMaker:
    """Tokenizes pairs with one tokenizer; what was made is kept; safe for threads."""

    tokenizer: Tokenizer
    """joins two texts, does not pad"""
    pieces: int
    """word pieces of a pair at most"""
    types: int = 2
    """token types that the encoder knows"""
    memory: int = 50_000_000
    """word pieces kept"""
    _kept: dict[str, QuestionPairs] = field(default_factory=dict, repr=False)
    _held: int = field(default=0, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        # Of its own, so that nobody else's setting is changed.
        self.tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.pieces)

    def pairs(self, question: Question) -> QuestionPairs:
        """The pairs of a question with all of its candidates.

        Raises:
          InputError: the question has no passages, or more than can be padded for.
        """
        if not question.passages:
            raise InputError(f"question '{question.id}' has no passages; retrieve some first")
        if len(question.passages) > COUNTS[-1]:
            raise InputError(
                f"question '{question.id}' has {len(question.passages)} passages, and an encoder "
                f"policy reads {COUNTS[-1]} at most; keep the retriever's first"
            )
        texts = [passage_text(p) for p in question.passages]
        scores = [p.score for p in question.passages]
        key = fingerprint([question.text, texts, scores])
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                return kept
        made = self._make(question, texts)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._held += sum(map(len, made.tokens))
            while self._held > self.memory and len(self._kept) > 1:
                old = self._kept.pop(next(iter(self._kept)))
                self._held -= sum(map(len, old.tokens))
        return made

    def _make(self, question: Question, texts: Sequence[str]) -> QuestionPairs:
        encoded = self.tokenizer.encode_batch([(question.text, text) for text in texts])
        second = np.array(
            [
                next((i for i, s in enumerate(e.sequence_ids) if s == 1), len(e.ids) - 1)
                for e in encoded
            ],
            np.int32,
        )
        return QuestionPairs(
            tuple(np.array(e.ids, np.int32) for e in encoded),
            tuple(np.minimum(np.array(e.type_ids, np.int32), self.types - 1) for e in encoded),
            second,
            retriever_features(question),
            np.array([bool(e.overflowing) for e in encoded], bool),
        )


def padded_count(n: int, coarse: bool = False) -> int:
    """Candidates that ``n`` are padded to; ``coarse`` is one of few numbers."""
    return next(count for count in (FEW_COUNTS if coarse else COUNTS) if count >= n)


def padded_pieces(longest: int, most: int) -> int:
    """Word pieces that pairs of at most ``longest`` are padded to, ``most`` at most."""
    return min(-(-max(longest, 1) // PIECES) * PIECES, most)


def collate_pairs(
    questions: Sequence[QuestionPairs], n: int, t: int, room: Room | None = None
) -> CandidateBatch:
    """Questions as one batch of NumPy arrays, padded to ``n`` candidates of ``t`` word pieces.

    ``room`` is for as many of them as will lie together, with what is chosen: they are computed
    without that padding. None is with it.

    Raises:
      InputError: a question has more candidates, or a longer pair.
    """
    b = len(questions)
    # NumPy's here, JAX's where they are read.
    tokens: Any = np.zeros((b, n, t), np.int32)
    types: Any = np.zeros((b, n, t), np.int32)
    lengths: Any = np.zeros((b, n), np.int32)
    second: Any = np.zeros((b, n), np.int32)
    retriever = np.zeros((b, n, RETRIEVER), np.float32)
    where = np.zeros((b, n), bool)
    for i, one in enumerate(questions):
        if one.count > n or one.longest > t:
            raise InputError(
                f"a question of {one.count} candidates and pairs of {one.longest} word pieces does "
                f"not fit a batch of {n} and {t}"
            )
        if room and (pieces := one.word_pieces((), 0, t)) > room.positions:
            raise InputError(
                f"a question of {pieces} word pieces does not fit a room of {room.positions}"
            )
        for j, (row, kind) in enumerate(zip(one.tokens, one.types, strict=True)):
            tokens[i, j, : len(row)] = row
            types[i, j, : len(row)] = kind
            lengths[i, j] = len(row)
        second[i, : one.count] = one.second
        retriever[i, : one.count] = one.retriever
        where[i, : one.count] = True
    pairs = PairBatch(tokens, lengths, types, second, room)
    return CandidateBatch(pairs, None, None, where, retriever)
