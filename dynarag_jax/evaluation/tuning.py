"""Rules for how many passages to read, with parameters chosen on questions set aside for it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.evaluation import rules
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.files import PathLike
from dynarag_jax.metrics.normalizers import normalize
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Question, passage_text

RuleName = Literal[
    "fixed-k", "threshold", "largest-gap", "clusters", "cumulative-mass", "less-redundancy"
]
RULES: tuple[RuleName, ...] = get_args(RuleName)
_NAMES: Mapping[RuleName, str] = {
    "fixed-k": "best fixed k",
    "threshold": "score threshold",
    "largest-gap": "largest gap",
    "clusters": "score clusters",
    "cumulative-mass": "cumulative mass",
    "less-redundancy": "relevance less redundancy",
}

# Thresholds tried: all distinct scores where there are no more of them.
_MOST_THRESHOLDS = 200


@dataclass(frozen=True)
class RulesConfig:
    """Rules for how many passages to read, tuned on questions of their own."""

    names: tuple[RuleName, ...] = ()
    """fixed-k, threshold, largest-gap, clusters, cumulative-mass, less-redundancy"""
    tuning: str = ""
    """question file with candidates, their scores and the needed passages (``gold``), by which the
    parameters are chosen: training or development questions, none of which is evaluated; in
    eval.bench, ``{dataset}`` stands for each benchmark's name"""
    limit: int = 2000
    """questions of the file that are tuned on, the first; 0 takes all"""
    budget: int = 0
    """words of a list at most, of less-redundancy; 0 for no limit"""

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in RULES:
                raise InputError(
                    f"rules: names = '{name}' is none of {', '.join(RULES)}{nearest(name, RULES)}"
                )
        if bool(self.names) != bool(self.tuning):
            raise InputError(
                f"rules: names = {list(self.names)} and tuning = '{self.tuning}': rules need a "
                f"file of questions to be tuned on, and nothing else does"
            )
        for name, value in (("limit", self.limit), ("budget", self.budget)):
            if value < 0:
                raise InputError(f"rules: {name} = {value} must not be negative")


@dataclass(frozen=True)
class TunedRule:
    """A rule and its parameters.

    Attributes:
      set_f1: its mean on the ``questions`` questions it was tuned on.
    """

    name: RuleName
    parameters: dict[str, float]
    set_f1: float
    questions: int

    @property
    def system(self) -> str:
        """What the rule is called among systems."""
        return f"{_NAMES[self.name]}, tuned"

    def choose(self, question: Question, scores: Sequence[float]) -> Chosen:
        """The rule's list for a question; ``scores`` are of its candidates."""
        return choose(self.name, question, scores, self.parameters)


def retriever_scores(questions: Sequence[Question], most: int) -> list[list[float]]:
    """The scores that came with the first ``most`` candidates of each question.

    Raises:
      InputError: a candidate has none.
    """
    scores = []
    for question in questions:
        values = [p.score for p in question.passages[:most]]
        if None in values:
            bare = question.passages[values.index(None)].id
            raise InputError(
                f"question '{question.id}': passage '{bare}' has no score, and rules choose by "
                f"scores; leave 'rules' empty, or take a scorer's"
            )
        scores.append([float(s) for s in values if s is not None])
    return scores


def choose(
    name: RuleName, question: Question, scores: Sequence[float], parameters: Mapping[str, float]
) -> Chosen:
    """A rule's list for a question, whose first candidates ``scores`` are of."""
    if name == "fixed-k":
        return rules.fixed_k(scores, int(parameters["k"]))
    if name == "threshold":
        return rules.score_threshold(scores, parameters["threshold"])
    if name == "largest-gap":
        return rules.largest_gap(scores, int(parameters["more"]))
    if name == "clusters":
        return rules.score_clusters(scores, int(parameters["clusters"]))
    if name == "cumulative-mass":
        return rules.cumulative_mass(scores, parameters["share"], parameters["temperature"])
    similarity, lengths = _words(tuple(passage_text(p) for p in question.passages[: len(scores)]))
    budget = int(parameters["budget"])
    return rules.less_redundancy(scores, similarity, lengths, parameters["redundancy"], budget)


@functools.lru_cache(maxsize=4096)
def _words(texts: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """How alike the passages are, and their words."""
    return rules.word_similarity(texts), tuple(len(text.split()) for text in texts)


def grid(
    name: RuleName, scores: Sequence[Sequence[float]], budget: int = 0
) -> list[dict[str, float]]:
    """The parameters to try for questions whose candidates have such scores.

    Those that choose fewer passages come first, and win where two are equally good.
    """
    every = np.unique(np.concatenate([np.asarray(values, np.float64) for values in scores]))
    longest = max(map(len, scores))
    if name == "fixed-k":
        return [{"k": k} for k in range(longest + 1)]
    if name == "threshold":
        if len(every) > _MOST_THRESHOLDS:
            shares = np.linspace(0, 1, _MOST_THRESHOLDS)
            every = np.unique(np.quantile(every, shares, method="nearest"))
        return [{"threshold": float(t)} for t in every[::-1]]
    if name == "largest-gap":
        return [{"more": more} for more in range(min(longest, 6))]
    if name == "clusters":
        return [{"clusters": c} for c in range(min(longest, 6), 1, -1)] or [{"clusters": 2}]
    if name == "cumulative-mass":
        scale = float(np.std(np.concatenate([np.asarray(values) for values in scores]))) or 1.0
        return [
            {"share": share / 20, "temperature": heat * scale}
            for share in range(2, 20)
            for heat in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
        ]
    return [{"redundancy": r / 10, "budget": budget} for r in range(40, -1, -1)]


def tune(
    name: RuleName,
    questions: Sequence[Question],
    scores: Sequence[Sequence[float]],
    budget: int = 0,
) -> TunedRule:
    """The parameters of ``grid`` with the highest mean set F1 against the needed passages.

    Args:
      scores: of each question's first candidates.

    Raises:
      InputError: there is no question, or one does not say which passages are needed.
    """
    if not questions or not any(map(len, scores)):
        raise InputError("rules: no questions with candidates to tune on")
    if unknown := [q.id for q in questions if q.gold is None]:
        raise InputError(
            f"rules: question '{unknown[0]}' does not say which passages are needed (field "
            f"'gold'), and rules are tuned by them"
        )
    best: TunedRule | None = None
    for parameters in grid(name, scores, budget):
        figures = [
            set_f1(
                [q.passages[i - 1].id for i in choose(name, q, values, parameters)], q.gold or ()
            )
            for q, values in zip(questions, scores, strict=True)
        ]
        mean = float(np.mean(figures))
        if best is None or mean > best.set_f1 + 1e-12:
            best = TunedRule(name, parameters, mean, len(questions))
    if best is None:
        raise InputError(f"rules: no parameters to try for '{name}'")
    return best


def check_apart(tuning: Sequence[Question], evaluated: Sequence[Question]) -> None:
    """Refuse a question that is both tuned on and evaluated, known by its normalized text."""
    texts = {normalize(q.text): q.id for q in tuning}
    for question in evaluated:
        if (twin := texts.get(normalize(question.text))) is not None:
            raise InputError(
                f"rules: question '{question.id}' is evaluated and, as '{twin}', tuned on; tune on "
                f"training or development questions"
            )


def read_tuning(path: PathLike, config: RulesConfig) -> list[Question]:
    """The questions that rules are tuned on."""
    questions = read_questions(path)
    return questions[: config.limit] if config.limit else questions


ScoredQuestions = tuple[Sequence[Question], Sequence[Sequence[float]]]
"""Questions, and the scores of the first candidates of each."""


def rule_systems(
    config: RulesConfig, tuning: ScoredQuestions, evaluated: ScoredQuestions
) -> tuple[dict[str, list[Chosen]], list[dict[str, Any]]]:
    """The lists of every tuned rule by system, and what was tuned, for the record.

    Raises:
      InputError: a question is tuned on and evaluated, or as for ``tune``.
    """
    check_apart(tuning[0], evaluated[0])
    tuned = [tune(name, *tuning, budget=config.budget) for name in config.names]
    lists = {
        rule.system: [rule.choose(q, values) for q, values in zip(*evaluated, strict=True)]
        for rule in tuned
    }
    return lists, [{"system": rule.system} | asdict(rule) for rule in tuned]
