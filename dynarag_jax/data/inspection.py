"""What is in a file of questions, passages or judgments: format, counts, lengths, what is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from dynarag_jax.data.formats import detect
from dynarag_jax.data.layouts import queries_file
from dynarag_jax.data.overlap import normalized, overlap, texts_of
from dynarag_jax.data.reading import QuestionAccount, Reading, numbered_questions, read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike
from dynarag_jax.records import Question
from dynarag_jax.retrieval.corpora import CorpusAccount, CorpusConfig, read_corpus
from dynarag_jax.retrieval.judgments import read_qrels
from dynarag_jax.retrieval.passages import content_id

Count = Callable[[Sequence[str]], list[int]]
"""From texts to their lengths."""

ANY = 1 << 30
"""Bad records: an inspection counts them all."""


def words(texts: Sequence[str]) -> list[int]:
    """Lengths in words, where no tokenizer is given."""
    return [len(text.split()) for text in texts]


def inspect_file(
    path: PathLike,
    reading: Reading = Reading(),
    against: Sequence[PathLike] = (),
    count: Count = words,
    unit: str = "words",
) -> list[str]:
    """A file in a few lines, whichever kind it is of.

    Args:
      reading: how it is read, if it is one of questions; bad records are counted.
      against: other files of questions; what they share with this one is said.
      count: how lengths are measured, and ``unit`` what in.

    Raises:
      InputError: it is none of the kinds, with what speaks against each.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or directory")
    wrong = {}
    for kind, look in (
        ("questions", lambda: _questions(path, reading, against, count, unit)),
        ("passages", lambda: _corpus(path, count, unit)),
        ("judgments", lambda: _judgments(path)),
    ):
        try:
            if kind == "questions" and not reading.format:
                detect(queries_file(path), reading.columns, reading.quotes)
            return look()
        except InputError as error:
            wrong[kind] = str(error)
            if reading.format:
                break
    raise InputError("; ".join(f"no {kind}: {why}" for kind, why in wrong.items()))


def spread(values: Iterable[int]) -> str:
    """Median, 95th percentile and maximum."""
    array = np.array([*values])
    if not array.size:
        return "none"
    middle, most = np.percentile(array, [50, 95])
    return f"median {middle:.0f}, 95 % up to {most:.0f}, at most {array.max()}"


def _questions(
    path: PathLike, reading: Reading, against: Sequence[PathLike], count: Count, unit: str
) -> list[str]:
    account = QuestionAccount()
    every = Reading(**(vars(reading) | {"repeats": "rename", "reject_limit": ANY}))
    questions = [q for _, q in numbered_questions(path, every, account)]
    if not questions:
        line, why = account.rejected[0]
        raise InputError(f"none of {len(account.rejected)} records can be read; line {line}: {why}")
    n = len(questions)
    tasks = ", ".join(f"{task} {k}" for task, k in Counter(q.task for q in questions).items())
    answers = [len(q.answers) for q in questions]
    lines = [
        f"{path}: {n} questions of format {account.format}; tasks: {tasks}",
        f"answers: {sum(map(bool, answers))} questions have some, {np.mean(answers):.1f} each",
        _gold(questions),
    ]
    passages = [p for q in questions for p in q.passages]
    if passages:
        bare = sum(not q.passages for q in questions)
        scored = sum(p.score is not None for p in passages)
        lines.append(
            f"candidates: {spread(len(q.passages) for q in questions)}; {bare} questions have "
            f"none; {scored} of {len(passages)} have a score"
        )
    if listed := [q for q in questions if q.expert is not None]:
        mean = np.mean([len(q.expert or ()) for q in listed])
        lines.append(f"expert's lists: {len(listed)}, {mean:.1f} passages each")
    lines.append(f"length of questions in {unit}: {spread(count([q.text for q in questions]))}")
    if passages:
        texts = list({p.text: None for p in passages})
        lines.append(f"length of passages in {unit}: {spread(count(texts))}")
    lines += [f"odd: {what}" for what in _odd(questions, account)]
    mine = texts_of(questions)
    for other in against:
        shared = overlap(mine, texts_of(read_questions(other)))
        shown = f", such as {shared.first[:80]!r}" if shared.count else ""
        lines.append(f"shared with {other}: {shared.count} of {n} questions{shown}")
    return lines


def _gold(questions: Sequence[Question]) -> str:
    known = [q for q in questions if q.gold is not None]
    if not known:
        return "needed passages: not known"
    absent = sum(bool(set(q.gold or ()) - {p.id for p in q.passages}) for q in known if q.passages)
    none = sum(not q.gold for q in known)
    mean = np.mean([len(q.gold or ()) for q in known])
    return (
        f"needed passages: known of {len(known)} questions, {mean:.1f} each, {none} need none, "
        f"{absent} need one that is not among their candidates"
    )


def _odd(questions: Sequence[Question], account: QuestionAccount) -> list[str]:
    notes = account.notes()
    if account.repeats:
        notes.append(f"{account.repeats} ids stand there a second time")
    if account.rejected:
        line, why = account.rejected[0]
        notes.append(f"{len(account.rejected)} bad records; line {line}: {why[:120]}")
    keys = Counter(normalized(q.text) for q in questions)
    if twice := sum(k - 1 for k in keys.values() if k > 1):
        notes.append(f"{twice} questions repeat another's text")
    passages = {p.id: p for q in questions for p in q.passages}
    if empty := sum(not p.text.strip() for p in passages.values()):
        notes.append(f"{empty} passages have no text")
    contents = Counter(content_id(p.title, p.text) for p in passages.values())
    if same := sum(k - 1 for k in contents.values() if k > 1):
        notes.append(f"{same} passages equal another one of another id")
    return notes


def _corpus(path: PathLike, count: Count, unit: str) -> list[str]:
    account = CorpusAccount()
    lengths: list[int] = []
    ids: Counter[str] = Counter()
    contents: Counter[str] = Counter()
    titled = 0
    texts: list[str] = []
    for passage in read_corpus(CorpusConfig((str(path),), reject_limit=ANY), account):
        ids[passage.id] += 1
        contents[content_id(passage.title, passage.text)] += 1
        titled += bool(passage.title.strip())
        texts.append(passage.text)
        if len(texts) == 4096:
            lengths += count(texts)
            texts.clear()
    lengths += count(texts)
    if not ids:
        first = account.rejected[0] if account.rejected else "it is empty"
        raise InputError(f"holds no passages ({first})")
    kinds = ", ".join(sorted(set(account.formats.values())))
    lines = [
        f"{path}: a corpus of {sum(ids.values())} passages ({kinds}), {titled} with a title",
        f"length in {unit}: {spread(lengths)}",
    ]
    odd = account.notes()
    for number, what in (
        (account.empty, "passages have no text"),
        (sum(k - 1 for k in ids.values()), "ids stand there a second time"),
        (sum(k - 1 for k in contents.values()), "passages equal another"),
        (len(account.rejected), f"bad records: {(account.rejected or [''])[0]}"),
    ):
        odd += [f"{number} {what}"] if number else []
    return lines + [f"odd: {what}" for what in odd]


def _judgments(path: PathLike) -> list[str]:
    judged = read_qrels(Path(path))
    grades = Counter(grade for grades_of in judged.values() for grade in grades_of.values())
    shown = ", ".join(f"{grade:g}: {k}" for grade, k in sorted(grades.items()))
    none = sum(all(grade <= 0 for grade in grades_of.values()) for grades_of in judged.values())
    lines = [
        f"{path}: {sum(grades.values())} judgments of {len(judged)} questions; grades {shown}",
        f"judged per question: {spread(len(grades_of) for grades_of in judged.values())}",
    ]
    if none:
        lines.append(f"odd: {none} questions have no relevant passage")
    return lines
