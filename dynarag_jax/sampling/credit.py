"""Which passages of a list earned its reward: credit by step, from rewards of parts of the list.

- *gains*: what the reward rises by as each passage is added, ``r(d_1..d_t) - r(d_1..d_t-1)``; they
  sum to what the list earns beyond the empty one.
- *leave_one_out*: what the reward falls by without each passage, its order kept (Context-Picker,
  arXiv 2512.14465, takes such differences for what is needed).

Parts of lists of one question begin alike. Their prompts' common beginnings are computed once: the
sampling engine does so for answers, ``SharedLikelihood`` for likelihoods.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.policy.shared_scoring import Continuation, make_shared_scorer, plan_shared
from dynarag_jax.prompts import buckets
from dynarag_jax.records import Question
from dynarag_jax.rewards.scorer import Answered, Scorer
from dynarag_jax.rollout_records import Rollout, Trajectory
from dynarag_jax.sampling.answer_scoring import gold_likelihood, references_of
from dynarag_jax.sampling.answer_server import NoAnswer
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler

CreditKind = Literal["", "gains", "leave_one_out"]

TOKENS = 1 << 14
"""prompt tokens whose caches are held at once, about"""


def parts_of(chosen: Chosen, kind: CreditKind) -> list[Chosen]:
    """The parts of a list whose rewards its credit needs, the list itself among them."""
    if kind == "gains":
        return [chosen[:n] for n in range(len(chosen) + 1)]
    return [chosen, *(chosen[:n] + chosen[n + 1 :] for n in range(len(chosen)))]


def with_parts(
    pairs: Sequence[tuple[Question, Chosen]], kind: CreditKind
) -> list[tuple[Question, Chosen]]:
    """Lists, each with the parts behind it that its credit needs; what comes twice stands once.

    What is computed in this order finds what it begins with computed: of a list of k passages the k
    lists without one of them are k (k - 1) / 2 passages more. No fewer can be where their order is
    kept, since what a causal model makes of a passage depends on all that is before it.
    """
    every = {
        (question.id, part): (question, part)
        for question, chosen in pairs
        for part in (chosen, *(parts_of(chosen, kind) if kind else ()))
    }
    return list(every.values())


def credit_of(chosen: Chosen, kind: CreditKind, rewards: Sequence[float]) -> tuple[float, ...]:
    """The credit of each passage, from the rewards of ``parts_of`` in their order."""
    if kind == "gains":
        return tuple(b - a for a, b in itertools.pairwise(rewards))
    whole, *without = rewards
    return tuple(whole - one for one in without)


def with_credit(
    answers: Mapping[tuple[str, Chosen], str | InputError | NoAnswer] | None,
    questions: Sequence[Question],
    rollouts: Sequence[Rollout],
    scorer: Scorer,
    kind: CreditKind,
) -> list[Rollout]:
    """Rollouts with the credit of every list's passages, by the reward that the lists earned.

    Where the reward of a part cannot be had, its lists' credit is missing, and they with it.

    Args:
      answers: from the parts, by question and part; None where nothing that judges answers is
        weighed.
      questions: in the order of ``rollouts``.
      scorer: of the lists' own rewards.
    """
    wanted: dict[tuple[int, Chosen], None] = {}
    for i, rollout in enumerate(rollouts):
        for t in rollout.trajectories:
            wanted |= dict.fromkeys((i, part) for part in parts_of(t.list, kind))
    known = {
        (i, t.list): None if t.missing else t.reward
        for i, rollout in enumerate(rollouts)
        for t in rollout.trajectories
    }
    asked = [one for one in wanted if one not in known]
    answered = []
    for i, part in asked:
        text = "" if answers is None else answers[questions[i].id, part]
        lost = isinstance(text, NoAnswer | InputError)
        answered.append(Answered(questions[i], part, str(text), missing=lost))
    for one, earned in zip(asked, scorer.score(answered), strict=True):
        known[one] = None if earned.missing else earned.value

    def credited(i: int, t: Trajectory) -> Trajectory:
        rewards = [known[i, part] for part in parts_of(t.list, kind)]
        had = [x for x in rewards if x is not None]
        if len(had) < len(rewards):
            return replace(t, missing=tuple(dict.fromkeys([*t.missing, "credit"])))
        return replace(t, credit=credit_of(t.list, kind, had))

    return [
        replace(r, trajectories=tuple(credited(i, t) for t in r.trajectories), credit=kind)
        for i, r in enumerate(rollouts)
    ]


class SharedLikelihood:
    """As ``answer_scoring.gold_likelihood``, with common beginnings of prompts computed once.

    Of several processes each computes its prompts whole.
    """

    def __init__(self, sampler: PolicySampler):
        self._sampler = sampler
        self._whole = gold_likelihood(sampler) if sampler.team.several else None
        self._known: dict[tuple[str, Chosen], float | None] = {}
        lengths = buckets(sampler.prompts.answer_prompt_tokens)
        policy = sampler.policy
        self._score = make_shared_scorer(policy.cfg, policy.mesh, lengths)
        self._references = references_of(sampler)

    def prepare(self, pairs: Sequence[tuple[Question, Chosen]], kind: CreditKind) -> None:
        """Compute what will be asked of lists and of the parts that their credit needs.

        Together they cost less, since the parts of a list go on from what it begins with.
        """
        self._known = {}
        if self._whole is None:
            every = with_parts(pairs, kind)
            values = self._compute(every)
            self._known = {(q.id, one): x for (q, one), x in zip(every, values, strict=True)}

    def __call__(self, pairs: Sequence[tuple[Question, Chosen]]) -> list[float | None]:
        if self._whole is not None:
            return self._whole(pairs)
        left = [(q, chosen) for q, chosen in pairs if (q.id, chosen) not in self._known]
        found = iter(self._compute(left))
        return [
            self._known[q.id, chosen] if (q.id, chosen) in self._known else next(found)
            for q, chosen in pairs
        ]

    def _compute(self, pairs: Sequence[tuple[Question, Chosen]]) -> list[float | None]:
        sampler = self._sampler
        best: list[float | None] = [None] * len(pairs)
        by_question: dict[str, list[int]] = {}
        for place, (question, _) in enumerate(pairs):
            by_question.setdefault(question.id, []).append(place)
        work: list[tuple[int, Continuation]] = []

        def flush() -> None:
            nonlocal work
            if work:
                scored = [one for _, one in work]
                found = self._score(sampler.policy.params, scored, plan_shared(scored))
                for (place, _), logps in zip(work, found, strict=True):
                    value = math.exp(math.fsum(logps) / len(logps))
                    best[place] = max(value, best[place] or 0.0)
            work = []

        for group, places in enumerate(by_question.values()):
            question = pairs[places[0]][0]
            golds = self._references(question)
            for place in places if golds else ():
                prompt = sampler.maker.answer_prompt(question, pairs[place][1]).tokens
                work += [(place, Continuation(group, prompt, gold)) for gold in golds]
            if sum(len(one.prompt) for _, one in work) > TOKENS:
                flush()
        flush()
        return best
