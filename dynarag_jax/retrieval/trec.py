"""TREC runs and judgments: ``qid Q0 docid rank score tag``, and ``qid 0 docid relevance``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_lines
from dynarag_jax.records import Question


def trec_lines(questions: Iterable[Question], tag: str = "dynarag_jax") -> Iterator[str]:
    """The lines of a run: each question's passages in their order, with their scores.

    Raises:
      InputError: an id holds white space, which the format cannot.
    """
    for question in questions:
        for rank, passage in enumerate(question.passages, 1):
            for name in (question.id, passage.id):
                if len(name.split()) != 1:
                    raise InputError(f"the id '{name}' holds white space, which a TREC run cannot")
            score = -rank if passage.score is None else passage.score
            yield f"{question.id} Q0 {passage.id} {rank} {score:.6f} {tag}\n"


def _cells(path: PathLike, count: tuple[int, ...], what: str) -> Iterator[tuple[str, list[str]]]:
    for number, raw in read_lines(path):
        where = f"{path}:{number}"
        try:
            cells = raw.decode("utf-8-sig" if number == 1 else "utf-8").split()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 text ({error.reason})") from None
        if not cells:
            continue
        if len(cells) not in count:
            raise InputError(f"{where}: has {len(cells)} fields; {what}")
        yield where, cells


def _number(text: str, where: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: field '{name}' must be a finite number, found '{text}'")
    return value


def read_run(
    path: PathLike, row: Callable[[str], int | None]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A run file as the rows of its passages, best first by score, ties by the file's order.

    Args:
      row: the corpus' row of a passage id; None where the corpus lacks it.

    Returns:
      For each question id positions int64 and scores float64.

    Raises:
      InputError: a line is no run's, a passage is not in the corpus, or stands twice.
    """
    found: dict[str, dict[int, float]] = {}
    known: dict[str, int] = {}
    what = "a line of a run is 'qid Q0 docid rank score tag'"
    for where, (question, _, name, _, score, _) in _cells(path, (6,), what):
        place = known.get(name)
        if place is None:
            place = row(name)
            if place is None:
                raise InputError(f"{where}: passage '{name}' is not in the corpus")
            known[name] = place
        rows = found.setdefault(question, {})
        if place in rows:
            raise InputError(f"{where}: question '{question}' has passage '{name}' twice")
        rows[place] = _number(score, where, "score")
    result = {}
    for question, rows in found.items():
        positions, scores = np.array(list(rows), np.int64), np.array(list(rows.values()))
        order = np.argsort(-scores, kind="stable")
        result[question] = (positions[order], scores[order])
    return result


def read_qrels(path: PathLike) -> dict[str, dict[str, float]]:
    """Judgments: for each question id the relevance of passages, by id.

    Reads TREC's four columns and BEIR's three with a header.

    Raises:
      InputError: a line is neither.
    """
    found: dict[str, dict[str, float]] = {}
    what = "a judgment is 'qid 0 docid relevance', or 'qid docid relevance' as BEIR has it"
    for where, cells in _cells(Path(path), (3, 4), what):
        if not found and cells[-1].lower() in ("score", "relevance", "rel"):
            continue  # BEIR's header
        question, name = cells[0], cells[-2]
        grade = _number(cells[-1], where, "relevance")
        if found.setdefault(question, {}).setdefault(name, grade) != grade:
            raise InputError(f"{where}: judges passage '{name}' of '{question}' a second time")
    return found
