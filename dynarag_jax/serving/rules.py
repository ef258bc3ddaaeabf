"""How many passages a scorer's order gives: one rule with its parameters, set by whoever serves.

``dynarag evaluate`` and ``bench`` tune these on questions set aside for it (docs/evaluation.md);
here they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.evaluation.tuning import RULES, RuleName, choose
from dynarag_jax.records import Question


@dataclass(frozen=True)
class CutOff:
    """Where the order of a scorer is cut off; scores lie between 0 and 1."""

    name: RuleName = "fixed-k"
    """fixed-k, threshold, largest-gap, clusters, cumulative-mass or less-redundancy"""
    k: int = 5
    """passages, of fixed-k"""
    threshold: float = 0.5
    """least score, of threshold"""
    more: int = 0
    """passages beyond the gap, of largest-gap"""
    clusters: int = 2
    """groups of scores, of clusters; the best is taken"""
    share: float = 0.9
    """sum of the probabilities softmax(scores / temperature), of cumulative-mass"""
    temperature: float = 0.1
    """of cumulative-mass"""
    redundancy: float = 0.5
    """what the likeness of two passages costs, of less-redundancy"""
    budget: int = 0
    """words of a list at most, of less-redundancy; 0 for no limit"""

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise InputError(
                f"rule: name = '{self.name}' is none of {', '.join(RULES)}"
                f"{nearest(self.name, RULES)}"
            )
        for name, least in (("k", 0), ("more", 0), ("clusters", 2), ("budget", 0)):
            if getattr(self, name) < least:
                raise InputError(f"rule: {name} = {getattr(self, name)} must be at least {least}")
        if not 0 < self.share <= 1:
            raise InputError(f"rule: share = {self.share} must lie in (0, 1]")
        if not self.temperature > 0:
            raise InputError(f"rule: temperature = {self.temperature} must be positive")
        if self.redundancy < 0:
            raise InputError(f"rule: redundancy = {self.redundancy} must not be negative")

    def choose(self, question: Question, scores: Sequence[float]) -> tuple[int, ...]:
        """The rule's list: 1-based positions in the question's candidates, best first."""
        if not len(scores):
            return ()
        return choose(self.name, question, scores, vars(self))
