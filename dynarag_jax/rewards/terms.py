"""The reward's terms: pure functions of one answer, each in [0, 1].

DynamicRAG (arXiv 2505.07233, section 3) sums exact match, BERTScore, ROUGE-L, a length term and a
judge's score. The length term is there to favor short answers, so it is 1 / (1 + words).
"""

from __future__ import annotations

from collections.abc import Sequence

from dynarag_jax.metrics import answers as metrics


def em(prediction: str, answers: Sequence[str]) -> float:
    """Exact match after SQuAD's normalization, the maximum over answers: 0 or 1."""
    return metrics.exact_match(prediction, answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1, the maximum over answers, with HotpotQA's rule for yes and no."""
    return metrics.f1(prediction, answers)


def containment(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalized prediction contains some normalized answer, else 0; never the reverse."""
    return metrics.containment(prediction, answers)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L F1 with stemmer, the maximum over answers."""
    return metrics.rouge_l(prediction, answers)


def length(prediction: str) -> float:
    """``1 / (1 + words)`` of this one answer, words being what white space separates.

    A blank answer is no answer and gets 0, though the formula would pay it the most.
    """
    words = len(prediction.split())
    return 1 / (1 + words) if words else 0.0


def passage_cost(right: bool, k: int) -> float:
    """``1 / (1 + k)`` for an answer that is right with ``k`` passages read, else 0.

    Gated by correctness: paid for wrong answers too, the cheapest policy is to read nothing.

    Raises:
      ValueError: ``k`` is negative.
    """
    if k < 0:
        raise ValueError(f"k must not be negative, found {k}")
    return 1 / (1 + k) if right else 0.0
