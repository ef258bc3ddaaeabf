"""The records every program reads and writes: passages, questions, rollouts. JSONL in and out.

A question file has one object a line, in the layout that Self-RAG, DPR and DynamicRAG use:

    {"id": "q1", "question": "...", "answers": ["..."], "task": "short", "type": "two_hop",
     "ctxs": [{"id": "p7", "title": "...", "text": "...", "score": 0.83}],
     "gold": ["p7"], "expert": {"list": [1], "source": "gold"}}

``ctxs`` are the candidates in the retriever's order, so that list id ``i`` is ``ctxs[i - 1]``.
Fields not named here are kept and written back.
"""

from __future__ import annotations

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
      logps: ``logp`` by token; empty where the rollout comes from elsewhere.
      reference_logps: ``reference_logp`` by token.
      weight: of a list drawn without replacement, what it is worth in an estimate of an expectation
        under the policy: the sum of weight times f over the lists; None of other lists.
      missing: terms of the reward that could not be had (a judge's, say) and are in ``reward``
        with nothing, or ``reward`` itself; such a reward is to be compared with none.
    """

    list: tuple[int, ...]
    count: int = 1
    answer: str = ""
    terms: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0
    logp: float = 0.0
    reference_logp: float = 0.0
    logps: tuple[float, ...] = ()
    reference_logps: tuple[float, ...] = ()
    weight: float | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """The distinct answers to one question, judged as answers from the same passages.

    Attributes:
      list: the passages that are shown: those of the list that was rewarded best.
      prompt: fingerprint of the generator's prompt over them.
      texts: distinct answers, from whatever lists they were given.
      rewards: of each answer, without what the reward says about lists.
      reference_logps: log-probability of each answer's tokens under the reference weights.
      missing: places of the answers whose reward lacks a term, and is to be compared with none.
    """

    list: tuple[int, ...]
    prompt: str
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    reference_logps: tuple[tuple[float, ...], ...]
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """All distinct lists sampled for one question.

    Attributes:
      id: the question's id.
      shown: how many of its passages the reranker saw.
      trajectories: distinct lists, in the order first sampled.
      policy: fingerprint of the weights that sampled.
      reference: fingerprint of the weights behind ``reference_logp``.
      tokenizer: fingerprint of the tokenizer they were computed with.
      prompt: fingerprint of the reranker's prompt they were computed for.
      max_list: the longest list of the grammar they were computed under; 0 is not on record.
      dtype: the type of the activations they were computed in; empty is not on record.
      answers: what preference training of the generator needs, where it was asked for.
    """

    id: str
    shown: int
    trajectories: tuple[Trajectory, ...]
    policy: str
    reference: str
    tokenizer: str = ""
    prompt: str = ""
    answers: Answers | None = None
    max_list: int = 0
    dtype: str = ""


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
    expert, source = None, ""
    if fields.has("expert"):
        inner = Fields(f"{where}: expert", fields.mapping("expert"))
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
    fields = Fields(where, value)
    ids = fields.integers("list")
    wrong = valid_list(ids, shown)
    if wrong:
        raise InputError(f"{where}: field 'list' {wrong}")
    terms = Fields(f"{where}: terms", fields.mapping("terms"))
    missing = fields.strings("missing") if fields.has("missing") else ()
    # A reward function may say nothing: that is no reward of 0.
    unsaid = [name for name in terms.values if not terms.has(name)]
    if not fields.has("reward"):
        unsaid.append("reward")
    return Trajectory(
        list=ids,
        count=fields.integer("count", 1, least=1),
        answer=fields.string("answer", default="", blank=True),
        terms={name: terms.number(name) or 0.0 for name in terms.values if terms.has(name)},
        reward=fields.number("reward", 0.0) or 0.0,
        logp=fields.number("logp", 0.0) or 0.0,
        reference_logp=fields.number("reference_logp", 0.0) or 0.0,
        logps=fields.numbers("logps"),
        reference_logps=fields.numbers("reference_logps"),
        weight=fields.number("weight"),
        missing=tuple(dict.fromkeys([*missing, *unsaid])),
    )


def _answers_from_json(value: dict[str, Any], where: str, shown: int) -> Answers:
    fields = Fields(where, value)
    ids = fields.integers("list")
    if wrong := valid_list(ids, shown):
        raise InputError(f"{where}: field 'list' {wrong}")
    texts = fields.strings("texts")
    rewards = fields.numbers("rewards")
    logps = fields.values.get("reference_logps")
    if not isinstance(logps, list):
        raise fields.fail("reference_logps", "must be a list of lists of numbers")
    each = Fields(f"{where}: reference_logps", {str(i): x for i, x in enumerate(logps)})
    if not len(texts) == len(rewards) == len(logps):
        raise InputError(
            f"{where}: {len(texts)} texts, {len(rewards)} rewards and {len(logps)} "
            f"reference_logps; there is one of each an answer"
        )
    return Answers(
        list=ids,
        prompt=fields.string("prompt"),
        texts=texts,
        rewards=rewards,
        reference_logps=tuple(each.numbers(name) for name in each.values),
        missing=fields.integers("missing") if fields.has("missing") else (),
    )


def rollout_from_json(value: dict[str, Any], where: str) -> Rollout:
    """Read one rollout; raise InputError naming ``where`` and the field."""
    fields = Fields(where, value)
    shown = fields.integer("shown", 0, least=0)
    trajectories = tuple(
        _trajectory_from_json(item, f"{where}: trajectories[{i}]", shown)
        for i, item in enumerate(fields.objects("trajectories"))
    )
    first: dict[tuple[int, ...], int] = {}
    for i, t in enumerate(trajectories):
        if t.list in first:
            raise InputError(
                f"{where}: trajectories[{i}] repeats the list {list(t.list)} of "
                f"trajectories[{first[t.list]}]; give each list once, with its count"
            )
        first[t.list] = i
    return Rollout(
        id=fields.string("id"),
        shown=shown,
        trajectories=trajectories,
        policy=fields.string("policy"),
        reference=fields.string("reference"),
        tokenizer=fields.string("tokenizer", default="", blank=True),
        prompt=fields.string("prompt", default="", blank=True),
        answers=_answers_from_json(fields.mapping("answers"), f"{where}: answers", shown)
        if fields.has("answers")
        else None,
        max_list=fields.integer("max_list", 0, least=0),
        dtype=fields.string("dtype", default="", blank=True),
    )


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """The JSON object of a rollout."""
    return {
        "id": rollout.id,
        "shown": rollout.shown,
        "policy": rollout.policy,
        "reference": rollout.reference,
        "tokenizer": rollout.tokenizer,
        "prompt": rollout.prompt,
        **({"max_list": rollout.max_list} if rollout.max_list else {}),
        **({"dtype": rollout.dtype} if rollout.dtype else {}),
        "trajectories": [_trajectory_to_json(t) for t in rollout.trajectories],
    } | ({"answers": _answers_to_json(rollout.answers)} if rollout.answers else {})


def _answers_to_json(answers: Answers) -> dict[str, Any]:
    value = dict(vars(answers))
    if not value["missing"]:
        del value["missing"]
    return value


def _trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    value = dict(vars(trajectory))
    if value["weight"] is None:
        del value["weight"]
    if not value["missing"]:
        del value["missing"]
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


def stream_questions(path: PathLike) -> Iterator[Question]:
    """Read a file of our own layout; ``data.reading`` reads those of every known format.

    Raises:
      InputError: on the first line that is no valid question.
    """
    rows = ((n, question_from_json(v, f"{path}:{n}")) for n, v in read_jsonl(path))
    return _unique(rows, path)


def read_questions(path: PathLike) -> list[Question]:
    """Read a question file; InputError on the first line that is not a valid question."""
    return list(stream_questions(path))


def write_questions(path: PathLike, questions: Iterable[Question]) -> int:
    """Write a question file atomically; return the number of questions."""
    return write_jsonl(path, (question_to_json(q) for q in questions))


def write_passages(path: PathLike, passages: Iterable[Passage]) -> int:
    """Write a corpus file atomically; return the number of passages."""
    return write_jsonl(path, (passage_to_json(p) for p in passages))


def read_rollouts(path: PathLike) -> list[Rollout]:
    """Read a rollout file; InputError on the first line that is not a valid rollout."""
    rows = ((n, rollout_from_json(v, f"{path}:{n}")) for n, v in read_jsonl(path))
    return list(_unique(rows, path))
