"""Objectives as configuration: each term is a frozen dataclass that scores a batch of branches.

A training stage sums terms by weight. To add one, write a function on arrays in this package and
a ``Term`` that feeds it, and name the term in ``Objectives``; nothing else changes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from dynarag_jax.objectives.group_terms import Dro, Grpo, Rloo
from dynarag_jax.objectives.preference_terms import (
    Dpo,
    Hinge,
    Ipo,
    LipoLambda,
    PlackettLuce,
    RobustDpo,
    SimPo,
)
from dynarag_jax.objectives.scores import LossInputs, Term, Value
from dynarag_jax.objectives.supervised_terms import (
    LambdaLoss,
    ListMle,
    ListNet,
    PromptNll,
    RankNet,
    SetNll,
    TokenNll,
)

__all__ = [
    "Dpo",
    "Dro",
    "Grpo",
    "Hinge",
    "Ipo",
    "LambdaLoss",
    "LipoLambda",
    "ListMle",
    "ListNet",
    "LossInputs",
    "Objectives",
    "PlackettLuce",
    "PromptNll",
    "RankNet",
    "Rloo",
    "RobustDpo",
    "SetNll",
    "SimPo",
    "Term",
    "TokenNll",
    "Value",
]


@dataclass(frozen=True)
class Objectives:
    """The weighted sum of terms that a stream of examples is trained on."""

    nll: TokenNll = field(default_factory=lambda: TokenNll(weight=1.0))
    set_nll: SetNll = SetNll()
    prompt_nll: PromptNll = PromptNll()
    list_mle: ListMle = ListMle()
    list_net: ListNet = ListNet()
    rank_net: RankNet = RankNet()
    lambda_loss: LambdaLoss = LambdaLoss()
    dpo: Dpo = Dpo()
    robust_dpo: RobustDpo = RobustDpo()
    hinge: Hinge = Hinge()
    ipo: Ipo = Ipo()
    simpo: SimPo = SimPo()
    plackett_luce: PlackettLuce = PlackettLuce()
    lipo: LipoLambda = LipoLambda()
    rloo: Rloo = Rloo()
    grpo: Grpo = Grpo()
    dro: Dro = Dro()

    def active(self) -> dict[str, Term]:
        """The terms of nonzero weight, by name."""
        terms = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: term for name, term in terms.items() if term.weight != 0}

    def reads(
        self,
        what: Literal[
            "prompt",
            "again",
            "ids",
            "sets",
            "pairs",
            "groups",
            "behavior",
            "reference",
            "likelihoods",
            "steps",
        ],
    ) -> list[str]:
        """Names of the active terms that need these arrays."""
        return [n for n, term in self.active().items() if getattr(term, f"reads_{what}")]
