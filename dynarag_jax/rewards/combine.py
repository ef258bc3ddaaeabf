"""The reward of one answer: the weighted sum of the terms that carry weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from dynarag_jax.errors import InputError
from dynarag_jax.rewards import terms


@dataclass(frozen=True)
class RewardWeights:
    """The weight of each reward term. A term of weight 0 is not computed.

    The default pays 1 for a right answer and up to 0.25 more for having read few passages, so that
    reading one passage less never outweighs being right. The paper's weights, without the terms
    that need another model, are ``RewardWeights(em=0.2, rouge_l=0.2, length=0.2, passages=0)``.

    Attributes:
      em: exact match, SQuAD-normalized.
      f1: token F1.
      containment: the answer contains a reference answer.
      rouge_l: ROUGE-L F1 with stemmer.
      length: 1 / (1 + words of the answer).
      passages: 1 / (1 + k) where the answer is an exact match, else 0.
    """

    em: float = 1.0
    f1: float = 0.0
    containment: float = 0.0
    rouge_l: float = 0.0
    length: float = 0.0
    passages: float = 0.25

    def __post_init__(self) -> None:
        weights = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise InputError(
                    f"reward weight '{name}' must be a finite number of at least 0, found {weight}"
                )
        if not any(weights.values()):
            raise InputError("all reward weights are 0; give at least one term a weight")

    @property
    def highest(self) -> float:
        """The sum of the weights: no reward exceeds it."""
        return math.fsum(getattr(self, field.name) for field in fields(self))

    def describe(self) -> str:
        """The reward as a formula in words, for reports."""
        names = {
            "em": "EM",
            "f1": "F1",
            "containment": "containment",
            "rouge_l": "ROUGE-L",
            "length": "1/(1 + words)",
            "passages": "1/(1 + k) if right",
        }
        parts = [(getattr(self, name), label) for name, label in names.items()]
        return " + ".join(
            label if weight == 1 else f"{weight:g} × {label}" for weight, label in parts if weight
        )


def score_answer(
    prediction: str, answers: Sequence[str], k: int, weights: RewardWeights | None = None
) -> tuple[float, dict[str, float]]:
    """The reward of an answer that was given after reading ``k`` passages.

    Args:
      prediction: one answer.
      answers: the reference answers; none of them means that nothing can be right.
      k: how many passages the generator read.
      weights: the weights; the default of ``RewardWeights`` if None.

    Returns:
      The weighted sum, and each computed term in [0, 1] before weighting, by name.

    Raises:
      ValueError: ``k`` is negative.
    """
    weights = weights or RewardWeights()
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
    return math.fsum(getattr(weights, name) * term for name, term in found.items()), found
