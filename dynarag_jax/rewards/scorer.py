"""Rewards of many answers at once, with the models that some terms need.

What a term's model could not say is *missing*. A missing term adds nothing, the other weights stay
as they are, and the reward names what it lacks: whoever trains on rewards leaves such an answer out
of pairs and groups, since it can be compared with none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dynarag_jax.errors import InputError
from dynarag_jax.metrics.bertscore import BertScorer, load_bert_scorer
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import RewardWeights, text_terms, weighted
from dynarag_jax.rewards.judge import Asked, Judge

Likelihood = Callable[[Sequence[tuple[Question, tuple[int, ...]]]], list[float | None]]
"""From questions and lists to how likely a reference answer is given the list's passages, in
[0, 1]; None where no reference can be scored. In a run of several processes all of them call it."""


@dataclass(frozen=True)
class BertScoreConfig:
    """The encoder behind the reward term 'bertscore'."""

    encoder: str = ""
    """BERT or RoBERTa: a directory, a hub id, or package:NAME; needed where the term has weight"""
    layer: int = 0
    """whose hidden states are compared; 0 takes the authors' choice for the encoder's name"""
    baseline: tuple[float, ...] = ()
    """precision, recall and F1 of unrelated texts, which then score 0; empty leaves scores as they
    are"""

    def __post_init__(self) -> None:
        if len(self.baseline) not in (0, 3):
            raise InputError(
                f"bertscore: baseline = {list(self.baseline)} must be three numbers, or empty"
            )

    def load(self) -> BertScorer:
        """The scorer."""
        if not self.encoder:
            raise InputError("bertscore: the reward weighs it, and 'encoder' is empty; name one")
        baseline = (self.baseline[0], self.baseline[1], self.baseline[2]) if self.baseline else None
        return load_bert_scorer(self.encoder, self.layer or None, baseline=baseline)


@dataclass(frozen=True)
class Answered:
    """An answer to a question, given from the passages of a list."""

    question: Question
    list: tuple[int, ...]
    text: str
    missing: bool = False
    """whether there is no answer, which is another thing than an empty one"""


@dataclass(frozen=True)
class Reward:
    """What an answer earned.

    Attributes:
      value: the weighted sum of ``terms``, less the price of the passages.
      terms: each in [0, 1] before weighting.
      missing: terms of nonzero weight that could not be had; ``answer`` alone where there is no
        answer to judge.
    """

    value: float
    terms: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def _set_f1(question: Question, chosen: tuple[int, ...]) -> float | None:
    """F1 of a list against the needed passages; None where nobody says which they are."""
    if question.gold is None:
        return None
    return set_f1([question.passages[i - 1].id for i in chosen], question.gold)


class Scorer:
    """Reward weights with the models they need.

    Args:
      weights: of the terms; one of nonzero weight needs its model here.
      likelihood: may be set later, before the first use, by whoever has the generator.

    Raises:
      InputError: a term carries weight and its model is absent.
    """

    def __init__(
        self,
        weights: RewardWeights,
        *,
        bertscore: BertScorer | None = None,
        judge: Judge | None = None,
        likelihood: Likelihood | None = None,
    ):
        for name, model, mend in (
            ("bertscore", bertscore, "name an encoder as bertscore.encoder"),
            ("judge", judge, "give judge.url and judge.model"),
        ):
            if getattr(weights, name) and model is None:
                raise InputError(
                    f"the reward weighs '{name}', and its model is not here: {mend} where the "
                    f"stage has these settings, or set the weight to 0"
                )
        self.weights, self.bertscore, self.judge = weights, bertscore, judge
        self.likelihood = likelihood

    def score(self, answered: Sequence[Answered]) -> list[Reward]:
        """The reward of each answer; every model sees all of them in one call.

        An answer that is missing earns nothing, and its reward says that it lacks one.

        In a run of several processes all of them call this, each with its share, however small,
        where 'likelihood' carries weight.
        """
        scored = iter(self._score([a for a in answered if not a.missing]))
        return [Reward(0.0, {}, ("answer",)) if a.missing else next(scored) for a in answered]

    def _score(self, answered: Sequence[Answered]) -> list[Reward]:
        weights = self.weights
        found = [text_terms(a.text, a.question.answers, len(a.list), weights) for a in answered]
        missing: list[list[str]] = [[] for _ in answered]

        def add(name: str, values: Sequence[float | None]) -> None:
            for terms, lacks, value in zip(found, missing, values, strict=True):
                if value is None:
                    lacks.append(name)
                else:
                    terms[name] = value

        if weights.bertscore:
            add("bertscore", self._bertscore(answered))
        if weights.judge:
            assert self.judge is not None
            requests = [Asked(a.question.text, a.question.answers, a.text) for a in answered]
            add("judge", [judgment.score for judgment in self.judge.score(requests)])
        if weights.set_f1:
            add("set_f1", [_set_f1(a.question, a.list) for a in answered])
        if weights.likelihood:
            if self.likelihood is None:
                raise InputError("the reward weighs 'likelihood', and no generator is here")
            add("likelihood", self.likelihood([(a.question, a.list) for a in answered]))
        return [
            Reward(weighted(terms, len(a.list), weights), terms, tuple(lacks))
            for a, terms, lacks in zip(answered, found, missing, strict=True)
        ]

    def _bertscore(self, answered: Sequence[Answered]) -> list[float]:
        """F1 against the best reference, cut to [0, 1]: cosines may be negative."""
        assert self.bertscore is not None
        scores = self.bertscore.score(
            [a.text for a in answered], [list(a.question.answers) for a in answered]
        )
        # A blank answer is none, also where a baseline would move its 0 elsewhere.
        return [
            float(min(max(f1, 0.0), 1.0)) if a.text.strip() else 0.0
            for a, f1 in zip(answered, scores.f1, strict=True)
        ]
