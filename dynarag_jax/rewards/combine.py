"""The reward of one answer: the weighted sum of the terms that carry weight, less a price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from dynarag_jax.errors import InputError
from dynarag_jax.rewards import terms

LIST_TERMS = ("likelihood", "passages", "set_f1")
"""Terms that judge the list, not what the answer says."""


@dataclass(frozen=True)
class RewardWeights:
    """The weight of each reward term. A term of weight 0 is not computed.

    The default pays 1 for a right answer and up to 0.25 more for having read few passages, so that
    reading one passage less never outweighs being right. The paper's weights are
    ``RewardWeights(em=0.2, bertscore=0.2, rouge_l=0.2, length=0.2, judge=0.2, passages=0)``.
    """

    em: float = 1.0
    """exact match, SQuAD-normalized"""
    f1: float = 0.0
    """token F1"""
    containment: float = 0.0
    """the answer contains a reference answer"""
    rouge_l: float = 0.0
    """ROUGE-L F1 with stemmer"""
    length: float = 0.0
    """1 / (1 + words of the answer)"""
    passages: float = 0.25
    """1 / (1 + k) where the answer is an exact match, else 0"""
    bertscore: float = 0.0
    """BERTScore F1, cut to [0, 1]; needs an encoder"""
    judge: float = 0.0
    """a language model's grade; needs a server"""
    likelihood: float = 0.0
    """how likely the generator finds a reference answer given the list's passages: the mean
    probability of a token, the best of the references"""
    set_f1: float = 0.0
    """F1 of the list's passages against the needed ones (``gold``); needs no answer"""
    price: float = 0.0
    """taken off for every passage read, whether the answer is right or not"""

    def __post_init__(self) -> None:
        weights = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise InputError(
                    f"reward weight '{name}' must be a finite number of at least 0, found {weight}"
                )
        if not any(self.terms().values()):
            raise InputError("all reward weights are 0; give at least one term a weight")

    def terms(self) -> dict[str, float]:
        """The weight of every term; ``price`` is none, since nothing is earned by it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "price"}

    def answered(self) -> list[str]:
        """The terms of nonzero weight that judge an answer: they need a generator."""
        return [name for name, weight in self.terms().items() if weight and name != "set_f1"]

    def judged(self) -> list[str]:
        """The terms of nonzero weight that judge what an answer says."""
        return [name for name in self.answered() if name != "likelihood"]

    @property
    def highest(self) -> float:
        """The sum of the weights: no reward exceeds it."""
        return math.fsum(self.terms().values())

    def describe(self) -> str:
        """The reward as a formula in words, for reports."""
        names = {
            "em": "EM",
            "f1": "F1",
            "containment": "containment",
            "rouge_l": "ROUGE-L",
            "length": "1/(1 + words)",
            "passages": "1/(1 + k) if right",
            "bertscore": "BERTScore",
            "judge": "judge",
            "likelihood": "likelihood of the reference",
            "set_f1": "set F1",
        }
        parts = [(getattr(self, name), label) for name, label in names.items()]
        formula = " + ".join(
            label if weight == 1 else f"{weight:g} × {label}" for weight, label in parts if weight
        )
        return formula + (f" - {self.price:g} × k" if self.price else "")


def text_terms(
    prediction: str, answers: Sequence[str], k: int, weights: RewardWeights
) -> dict[str, float]:
    """The terms of nonzero weight that need no other model, each in [0, 1], by name."""
    found: dict[str, float] = {}
    if weights.em:
        found["em"] = terms.em(prediction, answers)
    if weights.f1:
        found["f1"] = terms.f1(prediction, answers)
    if weights.containment:
        found["containment"] = terms.containment(prediction, answers)
    if weights.rouge_l:
        found["rouge_l"] = terms.rouge_l(prediction, answers)
    if weights.length:
        found["length"] = terms.length(prediction)
    if weights.passages:
        right = found.get("em")
        right = terms.em(prediction, answers) if right is None else right
        found["passages"] = terms.passage_cost(right == 1, k)
    return found


def weighted(found: Mapping[str, float], k: int, weights: RewardWeights) -> float:
    """The reward of terms in [0, 1] by name, after reading ``k`` passages.

    A term that is absent adds nothing, and the weights of the others stay what they are: a reward
    that lacks a term is no higher than it would be, and is not to be compared with whole ones.
    """
    earned = (getattr(weights, name) * term for name, term in found.items())
    return math.fsum(earned) - weights.price * k
