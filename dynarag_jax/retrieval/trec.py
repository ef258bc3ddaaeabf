"""TREC's forms: runs, judgments and metrics by question.

``qid Q0 docid rank score tag``, ``qid 0 docid relevance``, ``metric <tab> qid <tab> value``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_lines
from dynarag_jax.records import Question


def trec_word(text: str) -> str:
    """One of TREC's columns: white space and ``%`` are percent-encoded, so that no two ids meet."""
    return re.sub(r"[\s%]", lambda found: quote(found[0]), text) or "-"


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
    for question, own in values:
        for name, value in own.items():
            met.setdefault(name, []).append(value)
            yield f"{trec_word(prefix + name)}\t{trec_word(question)}\t{value:.4f}\n"
    for name, count in counts.items():
        yield f"{trec_word(prefix + name)}\tall\t{count}\n"
    for name, all_of in met.items():
        yield f"{trec_word(prefix + name)}\tall\t{np.mean(all_of):.4f}\n"


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
