"""Rollouts: the lists sampled for a question, what came of them, and their log-probabilities.

A rollout is a line of JSON, as a question is; see ``records``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.fields import Fields
from dynarag_jax.files import PathLike, read_jsonl
from dynarag_jax.records import unique, valid_list


@dataclass(frozen=True)
class Thought:
    """What the policy thought before a list.

    Attributes:
      text: what was thought, without what closes it.
      tokens: with what closes it; those that the policy itself wrote, and not those of the text.
      logps: their log-probabilities under the weights that sampled them, 0 where the grammar leaves
        no choice; empty where the rollout comes from elsewhere.
      reference_logps: the same under the reference weights.
      cut: whether it reached the limit, and was closed for the policy.
    """

    text: str
    tokens: tuple[int, ...]
    logps: tuple[float, ...] = ()
    reference_logps: tuple[float, ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class Trajectory:
    """One list written by the policy, and what came of it.

    Attributes:
      list: 1-based passage positions in the order written; ``()`` is ``None``.
      count: how many of the samples were this list.
      answer: what the generator answered from it.
      terms: the reward's terms, each in [0, 1] before weighting.
      reward: their weighted sum.
      logp: log-probability under the weights that sampled it (constrained policy, temperature 1),
        given the thought before it.
      reference_logp: log-probability under the reference weights.
      logps: ``logp`` by token; empty where the rollout comes from elsewhere.
      reference_logps: ``reference_logp`` by token.
      weight: of a list drawn without replacement, what it is worth in an estimate of an expectation
        under the policy: the sum of weight times f over the lists; None of other lists.
      missing: terms of the reward that could not be had (a judge's, say) and are in ``reward``
        with nothing, ``answer`` where there is none, or ``reward`` itself; such a reward is to be
        compared with none.
      thought: what was thought before it; None where the policy does not think.
      credit: what of the reward is owed to each passage, in the list's order; empty where nobody
        asked, or where it could not be had.
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
    thought: Thought | None = None
    credit: tuple[float, ...] = ()

    @property
    def written(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """The list, and the tokens of the thought before it: what tells trajectories apart."""
        return self.list, self.thought.tokens if self.thought else None


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
      generator: the server that answered, by its model and settings; empty where the policy did.
      thought_tokens: the longest thought of the grammar; 0 where the policy does not think.
      answers: what preference training of the generator needs, where it was asked for.
      credit: how the lists' credit was found, gains or leave_one_out; empty where it was not.
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
    generator: dict[str, Any] = field(default_factory=dict)
    thought_tokens: int = 0
    credit: str = ""


# ---------------------------------------------------------------------------- JSON


def _thought_from_json(value: dict[str, Any], where: str) -> Thought:
    fields = Fields(where, value)
    thought = Thought(
        text=fields.string("text", blank=True),
        tokens=fields.integers("tokens"),
        logps=fields.numbers("logps"),
        reference_logps=fields.numbers("reference_logps"),
        cut=bool(value.get("cut", False)),
    )
    if not isinstance(value.get("cut", False), bool):
        raise fields.fail("cut", "must be true or false")
    if any(token < 0 for token in thought.tokens):
        raise fields.fail("tokens", "must not be negative")
    for name in ("logps", "reference_logps"):
        numbers = getattr(thought, name)
        if numbers and len(numbers) != len(thought.tokens):
            raise fields.fail(name, f"has {len(numbers)} numbers for {len(thought.tokens)} tokens")
    return thought


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
        thought=_thought_from_json(fields.mapping("thought"), f"{where}: thought")
        if fields.has("thought")
        else None,
        credit=_credit(fields, len(ids)),
    )


def _credit(fields: Fields, passages: int) -> tuple[float, ...]:
    credit = fields.numbers("credit")
    if credit and len(credit) != passages:
        raise fields.fail("credit", f"has {len(credit)} numbers for {passages} passages")
    return credit


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
    first: dict[Any, int] = {}
    for i, t in enumerate(trajectories):
        if t.written in first:
            raise InputError(
                f"{where}: trajectories[{i}] repeats the list {list(t.list)} of "
                f"trajectories[{first[t.written]}]; give each list once, with its count"
            )
        first[t.written] = i
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
        generator=fields.mapping("generator"),
        thought_tokens=fields.integer("thought_tokens", 0, least=0),
        credit=fields.string("credit", default="", blank=True),
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
        **({"thought_tokens": rollout.thought_tokens} if rollout.thought_tokens else {}),
        "trajectories": [_trajectory_to_json(t) for t in rollout.trajectories],
        **({"answers": _answers_to_json(rollout.answers)} if rollout.answers else {}),
        **({"generator": rollout.generator} if rollout.generator else {}),
        **({"credit": rollout.credit} if rollout.credit else {}),
    }


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
    value["thought"] = dict(vars(trajectory.thought)) if trajectory.thought else None
    if value["thought"] is None:
        del value["thought"]
    if not value["credit"]:
        del value["credit"]
    return value


LEXICAL = ("em", "f1", "containment", "rouge_l")
"""Terms of the reward that compare an answer's words with the reference answers'."""


def signal_figures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What shows whether rewards still teach, and what they are paid for.

    Returns:
      ``without_signal``, the share of questions whose lists were all rewarded alike;
      ``answer_words``, the mean words of an answer over all samples; where a judge grades,
      ``judge_gap/em`` and so on, how far its grades are from what compares with the reference
      answers, the mean absolute difference: a gap that grows is a judge that is being flattered.
    """
    alike = [
        len({round(t.reward, 9) for t in r.trajectories if not t.missing}) < 2 for r in rollouts
    ]
    words = [
        len(t.answer.split()) for r in rollouts for t in r.trajectories for _ in range(t.count)
    ]
    figures = {
        "without_signal": sum(alike) / max(len(alike), 1),
        "answer_words": sum(words) / max(len(words), 1),
    }
    for name in LEXICAL:
        gaps = [
            abs(t.terms["judge"] - t.terms[name])
            for r in rollouts
            for t in r.trajectories
            if "judge" in t.terms and name in t.terms
            for _ in range(t.count)
        ]
        if gaps:
            figures[f"judge_gap/{name}"] = sum(gaps) / len(gaps)
    return figures


def read_rollouts(path: PathLike) -> list[Rollout]:
    """Read a rollout file; InputError on the first line that is not a valid rollout."""
    rows = ((n, rollout_from_json(v, f"{path}:{n}")) for n, v in read_jsonl(path))
    return list(unique(rows, path))
