"""The records every program reads and writes: passages, questions, rollouts. JSONL in and out.

A question file has one object a line, in the layout that Self-RAG, DPR and DynamicRAG use:

    {"id": "q1", "question": "...", "answers": ["..."], "task": "short", "type": "two_hop",
     "ctxs": [{"id": "p7", "title": "...", "text": "...", "score": 0.83}],
     "gold": ["p7"], "expert": {"list": [1], "source": "gold"}}

An expert may say what it thought before its list: ``"expert": {"list": [1], "thought": "..."}``.

``ctxs`` are the candidates in the retriever's order, so that list id ``i`` is ``ctxs[i - 1]``.
Fields not named here are kept and written back.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from dynarag_jax.errors import InputError
from dynarag_jax.fields import Fields
from dynarag_jax.files import PathLike, read_jsonl, write_jsonl

Task = Literal["short", "label", "paragraph"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True)
class Passage:
    """One passage of the corpus; ``score`` is the retriever's, higher is better."""

    id: str
    text: str
    title: str = ""
    score: float | None = None


def passage_text(passage: Passage) -> str:
    """What encoders read of a passage: title and text joined by one space."""
    return f"{passage.title} {passage.text}" if passage.title else passage.text


@dataclass(frozen=True)
class Question:
    """A question, its reference answers, and what is known about its candidate passages.

    Attributes:
      id: unique in its file.
      text: the question.
      answers: acceptable answers; empty where the question has none.
      task: form of the answer: ``short`` phrase, class ``label``, or ``paragraph``.
      type: free tag for tables (``two_hop``, ``bridge``, ...).
      passages: candidates, in the retriever's order.
      gold: ids of the passages that are needed, in the order of reasoning; ``()`` when none is
        needed, None when unknown.
      expert: the list to imitate, as 1-based positions in ``passages``; ``()`` is ``None``.
      expert_source: who made ``expert``.
      expert_thought: what was thought before ``expert``, for policies that think; empty is nothing.
      extra: fields of the file that this library does not use.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    task: Task = "short"
    type: str = ""
    passages: tuple[Passage, ...] = ()
    gold: tuple[str, ...] | None = None
    expert: tuple[int, ...] | None = None
    expert_source: str = ""
    expert_thought: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def gold_list(self) -> tuple[int, ...] | None:
        """The needed passages as 1-based positions, without those that are not candidates."""
        if self.gold is None:
            return None
        number = {passage.id: i for i, passage in enumerate(self.passages, 1)}
        return tuple(number[g] for g in self.gold if g in number)

    def shuffled(self, shown: int, rng: random.Random) -> tuple[Question, tuple[int, ...]]:
        """The question with its first ``shown`` passages in random order, the others left out.

        The expert's list names the same passages as before, without those left out; its thought,
        which may name them by number, is left out.

        Returns:
          The question, and for each new position (from 1) the old one.
        """
        count = min(shown, len(self.passages))
        order = tuple(rng.sample(range(1, count + 1), count))
        number = {old: new for new, old in enumerate(order, 1)}
        passages = tuple(self.passages[old - 1] for old in order)
        expert = self.expert
        if expert is not None:
            expert = tuple(number[old] for old in expert if old in number)
        return replace(self, passages=passages, expert=expert, expert_thought=""), order


# ---------------------------------------------------------------------------- reading


def valid_list(ids: Iterable[int], n: int) -> str | None:
    """Return what is wrong with a list of 1-based positions among ``n``, or None if it is valid."""
    seen: set[int] = set()
    for i in ids:
        if not 1 <= i <= n:
            return f"holds {i}, outside 1..{n}"
        if i in seen:
            return f"holds {i} twice"
        seen.add(i)
    return None


def passage_from_json(value: dict[str, Any], where: str) -> Passage:
    """Read one passage; raise InputError naming ``where`` and the field."""
    fields = Fields(where, value)
    return Passage(
        id=fields.string("id"),
        text=fields.string("text", blank=True),
        title=fields.string("title", default="", blank=True),
        score=fields.number("score"),
    )


def passage_to_json(passage: Passage) -> dict[str, Any]:
    """The JSON object of a passage."""
    value: dict[str, Any] = {"id": passage.id, "title": passage.title, "text": passage.text}
    if passage.score is not None:
        value["score"] = passage.score
    return value


_QUESTION_FIELDS = ("id", "question", "answers", "task", "type", "ctxs", "gold", "expert")


def question_from_json(value: dict[str, Any], where: str) -> Question:
    """Read one question; raise InputError naming ``where`` and the field."""
    fields = Fields(where, value)
    task = fields.string("task", default="short")
    if task not in TASKS:
        raise fields.fail("task", f"must be one of {', '.join(TASKS)}")
    passages = tuple(
        passage_from_json(item, f"{where}: ctxs[{i}]")
        for i, item in enumerate(fields.objects("ctxs"))
    )
    seen: set[str] = set()
    for i, passage in enumerate(passages):
        if passage.id in seen:
            raise InputError(f"{where}: ctxs[{i}] repeats the passage id '{passage.id}'")
        seen.add(passage.id)
    expert, source, thought = None, "", ""
    if fields.has("expert"):
        inner = Fields(f"{where}: expert", fields.mapping("expert"))
        expert, source = inner.integers("list"), inner.string("source", default="", blank=True)
        thought = inner.string("thought", default="", blank=True)
        wrong = valid_list(expert, len(passages))
        if wrong:
            raise InputError(f"{where}: field 'expert.list' {wrong}")
    return Question(
        id=fields.string("id"),
        text=fields.string("question"),
        answers=fields.strings("answers"),
        task=task,  # type: ignore[arg-type]
        type=fields.string("type", default="", blank=True),
        passages=passages,
        gold=fields.strings("gold") if fields.has("gold") else None,
        expert=expert,
        expert_source=source,
        expert_thought=thought,
        extra={k: v for k, v in value.items() if k not in _QUESTION_FIELDS},
    )


def question_to_json(question: Question) -> dict[str, Any]:
    """The JSON object of a question."""
    value: dict[str, Any] = {
        "id": question.id,
        "question": question.text,
        "answers": list(question.answers),
        "task": question.task,
    }
    if question.type:
        value["type"] = question.type
    if question.gold is not None:
        value["gold"] = list(question.gold)
    if question.expert is not None:
        value["expert"] = {"list": list(question.expert), "source": question.expert_source}
        if question.expert_thought:
            value["expert"]["thought"] = question.expert_thought
    value["ctxs"] = [passage_to_json(p) for p in question.passages]
    return value | question.extra


def unique(pairs: Iterator[tuple[int, Any]], path: PathLike) -> Iterator[Any]:
    """The records of (line, record), in their order; InputError where an id stands twice."""
    seen: dict[str, int] = {}
    for number, record in pairs:
        if record.id in seen:
            raise InputError(
                f"{path}:{number}: field 'id' repeats '{record.id}' of line {seen[record.id]}"
            )
        seen[record.id] = number
        yield record


def stream_questions(path: PathLike) -> Iterator[Question]:
    """Read a file of our own layout; ``data.reading`` reads those of every known format.

    Raises:
      InputError: on the first line that is no valid question.
    """
    rows = ((n, question_from_json(v, f"{path}:{n}")) for n, v in read_jsonl(path))
    return unique(rows, path)


def read_questions(path: PathLike) -> list[Question]:
    """Read a question file; InputError on the first line that is not a valid question."""
    return list(stream_questions(path))


def write_questions(path: PathLike, questions: Iterable[Question]) -> int:
    """Write a question file atomically; return the number of questions."""
    return write_jsonl(path, (question_to_json(q) for q in questions))


def write_passages(path: PathLike, passages: Iterable[Passage]) -> int:
    """Write a corpus file atomically; return the number of passages."""
    return write_jsonl(path, (passage_to_json(p) for p in passages))


def __getattr__(name: str) -> Any:
    # Rollouts' records have a file of their own; who imports them from here still gets them.
    moved = importlib.import_module("dynarag_jax.rollout_records")
    if name.startswith("_") or not hasattr(moved, name):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(moved, name)
