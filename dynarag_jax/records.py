"""The records every program reads and writes: passages, questions, rollouts. JSONL in and out.

A question file has one object a line, in the layout that Self-RAG, DPR and DynamicRAG use:

    {"id": "q1", "question": "...", "answers": ["..."], "task": "short", "type": "two_hop",
     "ctxs": [{"id": "p7", "title": "...", "text": "...", "score": 0.83}],
     "gold": ["p7"], "expert": {"list": [1], "source": "gold"}}

``ctxs`` are the candidates in the retriever's order, so that list id ``i`` is ``ctxs[i - 1]``.
Fields not named here are kept and written back.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from dynarag_jax.errors import InputError, nearest
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
    extra: dict[str, Any] = field(default_factory=dict)

    def gold_list(self) -> tuple[int, ...] | None:
        """The needed passages as 1-based positions, without those that are not candidates."""
        if self.gold is None:
            return None
        place = {passage.id: i for i, passage in enumerate(self.passages, 1)}
        return tuple(place[g] for g in self.gold if g in place)

    def shuffled(self, shown: int, rng: random.Random) -> tuple[Question, tuple[int, ...]]:
        """The question with its first ``shown`` passages in random order, the others left out.

        The expert's list names the same passages as before, without those left out.

        Returns:
          The question, and for each new position (from 1) the old one.
        """
        count = min(shown, len(self.passages))
        order = tuple(rng.sample(range(1, count + 1), count))
        place = {old: new for new, old in enumerate(order, 1)}
        passages = tuple(self.passages[old - 1] for old in order)
        expert = self.expert
        if expert is not None:
            expert = tuple(place[old] for old in expert if old in place)
        return replace(self, passages=passages, expert=expert), order


@dataclass(frozen=True)
class Trajectory:
    """One list written by the policy, and what came of it.

    Attributes:
      list: 1-based passage positions in the order written; ``()`` is ``None``.
      count: how many of the samples were this list.
      answer: what the generator answered from it.
      terms: the reward's terms, each in [0, 1] before weighting.
      reward: their weighted sum.
      logp: log-probability under the weights that sampled it (constrained policy, temperature 1).
      reference_logp: log-probability under the reference weights.
      weight: of a list drawn without replacement, what it is worth in an estimate of an expectation
        under the policy: the sum of weight times f over the lists; None of other lists.
    """

    list: tuple[int, ...]
    count: int = 1
    answer: str = ""
    terms: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0
    logp: float = 0.0
    reference_logp: float = 0.0
    weight: float | None = None


@dataclass(frozen=True)
class Rollout:
    """All distinct lists sampled for one question.

    Attributes:
      id: the question's id.
      shown: how many of its passages the reranker saw.
      trajectories: distinct lists, in the order first sampled.
      policy: fingerprint of the weights that sampled.
      reference: fingerprint of the weights behind ``reference_logp``.
    """

    id: str
    shown: int
    trajectories: tuple[Trajectory, ...]
    policy: str
    reference: str


# ---------------------------------------------------------------------------- reading


class _Fields:
    """Typed access to the fields of one JSON object; every error names the place and the value."""

    def __init__(self, where: str, values: dict[str, Any]):
        self.where, self.values = where, values

    def fail(self, name: str, mend: str) -> InputError:
        value = self.values.get(name, None)
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self.where}: field '{name}' {mend}, found {shown}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def string(self, name: str, default: str | None = None, blank: bool = False) -> str:
        if not self.has(name):
            if default is not None:
                return default
            hint = nearest(name, self.values)
            raise InputError(f"{self.where}: field '{name}' is missing{hint}")
        value = self.values[name]
        if isinstance(value, int) and not isinstance(value, bool) and name == "id":
            value = str(value)
        if not isinstance(value, str):
            raise self.fail(name, "must be a string")
        if not blank and not value.strip():
            raise self.fail(name, "must not be empty")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.fail(name, "must be a list of strings")
        return tuple(value)

    def integer(self, name: str, default: int, least: int) -> int:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(name, "must be an integer")
        if value < least:
            raise self.fail(name, f"must be {least} or more")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        value = self.values.get(name)
        if not isinstance(value, list) or not all(
            isinstance(v, int) and not isinstance(v, bool) for v in value
        ):
            raise self.fail(name, "must be a list of integers")
        return tuple(value)

    def number(self, name: str, default: float | None = None) -> float | None:
        value = self.values.get(name, default)
        if value is None:
            return None
        if not isinstance(value, bool) and isinstance(value, int | float):
            with contextlib.suppress(OverflowError):  # of integers beyond any float
                if math.isfinite(value):
                    return float(value)
        raise self.fail(name, "must be a finite number")

    def objects(self, name: str) -> list[dict[str, Any]]:
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.fail(name, "must be a list of objects")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(name, "must be an object")
        return value


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
    fields = _Fields(where, value)
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
    fields = _Fields(where, value)
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
    expert, source = None, ""
    if fields.has("expert"):
        inner = _Fields(f"{where}: expert", fields.mapping("expert"))
        expert, source = inner.integers("list"), inner.string("source", default="", blank=True)
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
    value["ctxs"] = [passage_to_json(p) for p in question.passages]
    return value | question.extra


def _trajectory_from_json(value: dict[str, Any], where: str, shown: int) -> Trajectory:
    fields = _Fields(where, value)
    ids = fields.integers("list")
    wrong = valid_list(ids, shown)
    if wrong:
        raise InputError(f"{where}: field 'list' {wrong}")
    terms = _Fields(f"{where}: terms", fields.mapping("terms"))
    return Trajectory(
        list=ids,
        count=fields.integer("count", 1, least=1),
        answer=fields.string("answer", default="", blank=True),
        terms={name: terms.number(name) or 0.0 for name in terms.values},
        reward=fields.number("reward", 0.0) or 0.0,
        logp=fields.number("logp", 0.0) or 0.0,
        reference_logp=fields.number("reference_logp", 0.0) or 0.0,
        weight=fields.number("weight"),
    )


def rollout_from_json(value: dict[str, Any], where: str) -> Rollout:
    """Read one rollout; raise InputError naming ``where`` and the field."""
    fields = _Fields(where, value)
    shown = fields.integer("shown", 0, least=0)
    return Rollout(
        id=fields.string("id"),
        shown=shown,
        trajectories=tuple(
            _trajectory_from_json(item, f"{where}: trajectories[{i}]", shown)
            for i, item in enumerate(fields.objects("trajectories"))
        ),
        policy=fields.string("policy"),
        reference=fields.string("reference"),
    )


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """The JSON object of a rollout."""
    return {
        "id": rollout.id,
        "shown": rollout.shown,
        "policy": rollout.policy,
        "reference": rollout.reference,
        "trajectories": [_trajectory_to_json(t) for t in rollout.trajectories],
    }


def _trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    value = vars(trajectory) | {"list": list(trajectory.list)}
    if value["weight"] is None:
        del value["weight"]
    return value


def _unique(pairs: Iterator[tuple[int, Any]], path: PathLike) -> Iterator[Any]:
    seen: dict[str, int] = {}
    for number, record in pairs:
        if record.id in seen:
            raise InputError(
                f"{path}:{number}: field 'id' repeats '{record.id}' of line {seen[record.id]}"
            )
        seen[record.id] = number
        yield record


def read_questions(path: PathLike) -> list[Question]:
    """Read a question file; InputError on the first line that is not a valid question."""
    rows = ((n, question_from_json(v, f"{path}:{n}")) for n, v in read_jsonl(path))
    return list(_unique(rows, path))


def write_questions(path: PathLike, questions: Iterable[Question]) -> int:
    """Write a question file atomically; return the number of questions."""
    return write_jsonl(path, (question_to_json(q) for q in questions))


def read_passages(path: PathLike) -> list[Passage]:
    """Read a corpus file ``{"id", "title", "text"}`` a line; InputError on the first bad line."""
    rows = ((n, passage_from_json(v, f"{path}:{n}")) for n, v in read_jsonl(path))
    return list(_unique(rows, path))


def write_passages(path: PathLike, passages: Iterable[Passage]) -> int:
    """Write a corpus file atomically; return the number of passages."""
    return write_jsonl(path, (passage_to_json(p) for p in passages))


def read_rollouts(path: PathLike) -> list[Rollout]:
    """Read a rollout file; InputError on the first line that is not a valid rollout."""
    rows = ((n, rollout_from_json(v, f"{path}:{n}")) for n, v in read_jsonl(path))
    return list(_unique(rows, path))
