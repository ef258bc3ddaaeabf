"""What a scorer said of questions' candidates, kept in a run for every stage that asks again.

Labels, rules and their tuning, evaluation and benchmarks read the same scores. They are kept in a
run's ``.scores`` by the scorer's weights and by the texts it read, so that none is ever another's.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from dynarag_jax.files import JsonlAppender, fingerprint, parse_object, read_lines
from dynarag_jax.records import Question, passage_text
from dynarag_jax.retrieval.relevance import PairScorer


def scorer_key(scorer: PairScorer) -> str:
    """A hash of what a score depends on besides the texts."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr((scorer.kind, scorer.longest)).encode())
    flat, _ = jax.tree_util.tree_flatten_with_path(scorer.params)
    for path, leaf in flat:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class ScoreStore:
    """The scores of one scorer in a run, a line a question, appended as they come.

    Every process writes a file of its own and reads all that stood when it began: stages at work
    beside each other do not meet. The trace of a kill, an unfinished last line, is not read.
    """

    def __init__(self, run: Path, scorer: PairScorer):
        self._directory = run / ".scores" / scorer_key(scorer)
        self._rows: JsonlAppender | None = None
        self._known: dict[str, dict[str, float]] = {}
        for file in sorted(self._directory.glob("*.jsonl")) if self._directory.is_dir() else ():
            for number, line in read_lines(file):
                if line.endswith(b"\n"):
                    record = parse_object(line, f"{file}:{number}")
                    self._known.setdefault(record["id"], {}).update(record["scores"])

    def get(self, question: Question) -> list[float] | None:
        """The scores of a question's candidates, or None."""
        key, texts = _keys(question)
        kept = self._known.get(key, {})
        return [kept[text] for text in texts] if kept.keys() >= set(texts) else None

    def put(self, question: Question, scores: Sequence[float]) -> None:
        """Keep the scores of a question's candidates."""
        key, texts = _keys(question)
        own = dict(zip(texts, scores, strict=True))
        self._known.setdefault(key, {}).update(own)
        if self._rows is None:
            self._rows = JsonlAppender(self._directory / f"{uuid.uuid4().hex}.jsonl")
        self._rows.append({"id": key, "scores": own})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._rows is not None:
            self._rows.close()


def _keys(question: Question) -> tuple[str, list[str]]:
    """What the question and its candidates are known by: their texts."""
    return fingerprint(question.text), [fingerprint(passage_text(p)) for p in question.passages]
