"""Which passages of a list earned its reward: credit by step, from rewards of parts of the list.

- *gains*: what the reward rises by as each passage is added, ``r(d_1..d_t) - r(d_1..d_t-1)``; they
  sum to what the list earns beyond the empty one.
- *leave_one_out*: what the reward falls by without each passage, its order kept (Context-Picker,
  arXiv 2512.14465, takes such differences for what is needed).

Parts of lists of one question begin alike. Their prompts' common beginnings are computed once: the
sampling engine does so for answers, ``shared_likelihood`` for likelihoods.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.policy.shared_scoring import Continuation, make_shared_scorer, plan_shared
from dynarag_jax.prompts import buckets
from dynarag_jax.records import Question
from dynarag_jax.rewards.scorer import Answered, Likelihood, Scorer
from dynarag_jax.rollout_records import Rollout, Trajectory
from dynarag_jax.sampling.answer_scoring import gold_likelihood, references_of
from dynarag_jax.sampling.answer_server import NoAnswer, ServerAnswers
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler

CreditKind = Literal["", "gains", "leave_one_out"]

TOKENS = 1 << 14
"""prompt tokens whose caches are held at once, about"""


def parts_of(chosen: Chosen, kind: CreditKind) -> list[Chosen]:
    """The parts of a list whose rewards its credit needs, the list itself among them."""
    if kind == "gains":
        return [chosen[:n] for n in range(len(chosen) + 1)]
    return [chosen, *(chosen[:n] + chosen[n + 1 :] for n in range(len(chosen)))]


def credit_of(chosen: Chosen, kind: CreditKind, rewards: Sequence[float]) -> tuple[float, ...]:
    """The credit of each passage, from the rewards of ``parts_of`` in their order."""
    if kind == "gains":
        return tuple(b - a for a, b in itertools.pairwise(rewards))
    whole, *without = rewards
    return tuple(whole - one for one in without)


def with_credit(
    answerer: PolicySampler | ServerAnswers | None,
    questions: Sequence[Question],
    rollouts: Sequence[Rollout],
    scorer: Scorer,
    kind: CreditKind,
) -> list[Rollout]:
    """Rollouts with the credit of every list's passages, by the reward that the lists earned.

    Where the reward of a part cannot be had, its lists' credit is missing, and they with it.

    Args:
      answerer: who answers from parts; None where nothing that judges answers is weighed.
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
    pairs = [(questions[i], part) for i, part in asked]
    texts = answerer.try_answers(pairs) if answerer is not None else [""] * len(pairs)
    answered = [
        Answered(question, part, str(text), missing=isinstance(text, NoAnswer | InputError))
        for (question, part), text in zip(pairs, texts, strict=True)
    ]
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


def shared_likelihood(sampler: PolicySampler) -> Likelihood:
    """As ``answer_scoring.gold_likelihood``, with common beginnings of prompts computed once.

    Of several processes each computes its prompts whole.
    """
    if sampler.team.several:
        return gold_likelihood(sampler)
    references = references_of(sampler)
    lengths = buckets(sampler.prompts.answer_prompt_tokens)
    score = make_shared_scorer(sampler.policy.cfg, sampler.policy.mesh, lengths)

    def likelihood(pairs: Sequence[tuple[Question, Chosen]]) -> list[float | None]:
        best: list[float | None] = [None] * len(pairs)
        by_question: dict[str, list[int]] = {}
        for place, (question, _) in enumerate(pairs):
            by_question.setdefault(question.id, []).append(place)
        work: list[tuple[int, Continuation]] = []

        def flush() -> None:
            nonlocal work
            if work:
                scored = [one for _, one in work]
                found = score(sampler.policy.params, scored, plan_shared(scored))
                for (place, _), logps in zip(work, found, strict=True):
                    value = math.exp(math.fsum(logps) / len(logps))
                    best[place] = max(value, best[place] or 0.0)
            work = []

        for group, places in enumerate(by_question.values()):
            question = pairs[places[0]][0]
            golds = references(question)
            for place in places if golds else ():
                prompt = sampler.maker.answer_prompt(question, pairs[place][1]).tokens
                work += [(place, Continuation(group, prompt, gold)) for gold in golds]
            if sum(len(one.prompt) for _, one in work) > TOKENS:
                flush()
        flush()
        return best

    return likelihood
