"""TREC's forms: runs, judgments and metrics by question.

``qid Q0 docid rank score tag``, ``qid 0 docid relevance``, ``metric <tab> qid <tab> value``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike
from dynarag_jax.records import Question
from dynarag_jax.retrieval.judgments import cells, number, read_qrels

__all__ = [
    "falling",
    "judgment_lines",
    "list_lines",
    "read_qrels",
    "read_run",
    "trec_lines",
    "trec_word",
    "value_lines",
]


def trec_word(text: str) -> str:
    """One of TREC's columns: white space and ``%`` are percent-encoded, so that no two ids meet."""
    return re.sub(r"[\s%]", lambda found: quote(found[0]), text) or "-"


def trec_lines(questions: Iterable[Question], tag: str = "dynarag_jax") -> Iterator[str]:
    """The lines of a run: each question's passages in their order, with scores that fall.

    Who reads a run orders it by its scores, in 32 bits as trec_eval does. Scores are written in
    full, ties are parted by the least step there is, and where scores are missing or do not fall in
    the passages' order, -1, -2, ... say the order.
    """
    for question in questions:
        scores = falling([passage.score for passage in question.passages])
        for rank, (passage, score) in enumerate(zip(question.passages, scores, strict=True), 1):
            words = f"{trec_word(question.id)} Q0 {trec_word(passage.id)} {rank}"
            yield f"{words} {score!r} {trec_word(tag)}\n"


def falling(scores: Sequence[float | None]) -> list[float]:
    """Scores that fall strictly also in 32 bits, as near to those given as their order allows."""
    scores_so_far: list[float] = []
    least = np.float32(np.inf)
    before = math.inf
    for score in scores:
        if score is None or score > before:
            return [-float(rank) for rank in range(1, len(scores) + 1)]
        before = score
        with np.errstate(over="ignore"):
            short = np.float32(score)
        if not short < least:
            short = np.nextafter(least, np.float32(-np.inf))
            score = float(short)
        if not math.isfinite(float(short)):
            return [-float(rank) for rank in range(1, len(scores) + 1)]
        least = short
        scores_so_far.append(score)
    return scores_so_far


def list_lines(lists: Iterable[tuple[str, Sequence[str]]], tag: str) -> Iterator[str]:
    """The lines of a run from lists that say an order and no scores; the scores are 1 / rank.

    Args:
      lists: a question's id and the ids of its passages, best first.
    """
    for question, passages in lists:
        for rank, passage in enumerate(passages, 1):
            words = f"{trec_word(question)} Q0 {trec_word(passage)} {rank}"
            yield f"{words} {1 / rank:.9f} {trec_word(tag)}\n"


def judgment_lines(questions: Iterable[Question]) -> Iterator[str]:
    """A line of judgments, of relevance 1, for every needed passage."""
    for question in questions:
        for passage in question.gold or ():
            yield f"{trec_word(question.id)} 0 {trec_word(passage)} 1\n"


def value_lines(
    values: Iterable[tuple[str, Mapping[str, float]]], counts: Mapping[str, int], prefix: str = ""
) -> Iterator[str]:
    """Metrics by question, then ``counts`` and the means as those of the question ``all``.

    Args:
      values: a question's id and its metrics by name.
      prefix: before every name, to tell datasets apart.
    """
    met: dict[str, list[float]] = {}
    for question, metrics_of in values:
        for name, value in metrics_of.items():
            met.setdefault(name, []).append(value)
            yield f"{trec_word(prefix + name)}\t{trec_word(question)}\t{value:.4f}\n"
    for name, count in counts.items():
        yield f"{trec_word(prefix + name)}\tall\t{count}\n"
    for name, all_of in met.items():
        yield f"{trec_word(prefix + name)}\tall\t{np.mean(all_of):.4f}\n"


def read_run(
    path: PathLike, row: Callable[[str], int | None]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A run file as the rows of its passages, best first by score, ties by the file's order.

    Where the corpus lacks ids as they are written, and has them with percent signs taken back (as
    ``trec_word`` writes them), all ids of the file are read so.

    Args:
      row: the corpus' row of a passage id; None where the corpus lacks it.

    Returns:
      For each question id positions int64 and scores float64.

    Raises:
      InputError: a line is no run's, a passage is not in the corpus, or stands twice.
    """
    what = "a line of a run is 'qid Q0 docid rank score tag'"
    lines = list(cells(Path(path), (6,), what))
    encoded = any("%" in line[2] and row(line[2]) is None for _, line in lines)
    word = unquote if encoded else str
    ranking: dict[str, dict[int, float]] = {}
    known: dict[str, int] = {}
    for where, (question, _, name, _, score, _) in lines:
        question, name = word(question), word(name)
        place = known.get(name)
        if place is None:
            place = row(name)
            if place is None:
                raise InputError(f"{where}: passage '{name}' is not in the corpus")
            known[name] = place
        rows = ranking.setdefault(question, {})
        if place in rows:
            raise InputError(f"{where}: question '{question}' has passage '{name}' twice")
        rows[place] = number(score, where, "score")
    result = {}
    for question, rows in ranking.items():
        positions, scores = np.array(list(rows), np.int64), np.array(list(rows.values()))
        order = np.argsort(-scores, kind="stable")
        result[question] = (positions[order], scores[order])
    return result
