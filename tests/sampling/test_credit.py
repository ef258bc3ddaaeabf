"""Credit by step: exact against every part of a list computed by itself, and cheaper."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.files import fingerprint
from dynarag_jax.objectives.terms import Grpo, Objectives, TokenNll
from dynarag_jax.policy.batches import BatchShape, collate
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.shared_scoring import Continuation, common_prefix, plan_shared
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.scorer import Answered, Scorer
from dynarag_jax.rollout_records import Rollout, Trajectory, rollout_from_json, rollout_to_json
from dynarag_jax.sampling.answer_scoring import gold_likelihood
from dynarag_jax.sampling.answer_server import NoAnswer
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.credit import (
    CreditKind,
    SharedLikelihood,
    credit_of,
    parts_of,
    with_credit,
    with_parts,
)
from dynarag_jax.sampling.list_sources import policy_lists
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.rollouts import roll_out
from dynarag_jax.training.preferences import Expected, RankedRollout, check_rollouts, list_example
from dynarag_jax.training.step import loss_inputs

LISTS = [(2, 1, 4), (2, 1, 3), (4, 1), (3,), ()]


def every_part(kind: CreditKind = "leave_one_out"):
    parts = [part for one in LISTS for part in parts_of(one, kind)]
    return list(dict.fromkeys(parts))


@pytest.fixture(scope="module")
def sampler(tiny_policy):
    policy, prompts = tiny_policy
    return PolicySampler(policy, prompts, 8, 0)


@pytest.mark.slow  # two samplers
def test_shared_prefills_are_exact_against_every_prompt_by_itself(sampler, question):
    questions = [question("a", 4), question("b", 4, answers=("there", "nowhere at all"))]
    questions += [question("none", 4, answers=())]
    parts = dict.fromkeys([*every_part(), *every_part("gains")])
    pairs = [(q, part) for q in questions for part in parts]
    shared = SharedLikelihood(sampler)(pairs)
    naive = gold_likelihood(sampler)(pairs)
    assert shared[-1] is naive[-1] is None
    known = [(a, b) for a, b in zip(shared, naive, strict=True) if b is not None]
    assert len(known) == 2 * len(parts)
    np.testing.assert_allclose(*zip(*known, strict=True), rtol=2e-5)


def test_what_is_common_is_computed_once(sampler, question):
    """Five long passages: prefixes cost little more than the list, leaving one out three lists."""
    long = question("long", 5)
    passages = tuple(dataclasses.replace(p, text=f"{p.text} " * 12) for p in long.passages)
    long = dataclasses.replace(long, passages=passages)
    limit = dataclasses.replace(sampler.prompts, answer_prompt_tokens=4096)
    maker = ExampleMaker(sampler.policy.tokenizer, sampler.policy.spelling, limit)
    whole = (1, 2, 3, 4, 5)

    def computed(kind):
        prompts = [maker.answer_prompt(long, part).tokens for part in parts_of(whole, kind)]
        plan = plan_shared([Continuation(0, tokens, [1]) for tokens in prompts])
        for prompt, trunk, seen in zip(prompts, plan.trunk, plan.seen, strict=True):
            own = prompts[plan.trunks[trunk]]
            assert prompt[:seen] == own[:seen] and seen < len(prompt)
            assert seen <= common_prefix(prompt, own)
        # No causal model needs less: every distinct beginning of a prompt, once. Where a prompt is
        # wholly another's beginning, its last token is run again for what it predicts.
        least = len({tuple(prompt[:n]) for prompt in prompts for n in range(1, len(prompt) + 1)})
        one = len(maker.answer_prompt(long, whole).tokens)
        # What has less than a tenth in common with every trunk is one by itself.
        assert least <= plan.computed <= least + len(prompts) + 0.1 * one
        return plan.computed / one, sum(map(len, prompts)) / one

    shared, naive = computed("gains")
    assert shared < 1.4 < 3 < naive
    shared, naive = computed("leave_one_out")
    # The list itself, and 4 + 3 + 2 + 1 of its passages again: twice the list beyond it.
    assert shared < 3.3 < 4.8 < naive
    # Prompts of different questions share nothing.
    assert plan_shared([Continuation(0, [1, 2], [1]), Continuation(1, [1, 2], [1])]).computed == 4


def test_lists_and_their_parts_are_computed_together_and_once(sampler, question):
    """What scoring asks later is there: the values of one by one, from fewer tokens."""
    questions = [question("a", 4), question("b", 4, answers=("there", "nowhere at all"))]
    pairs = [(q, one) for q in questions for one in LISTS]
    every = with_parts(pairs, "leave_one_out")
    assert [one for q, one in every if q.id == "a"][:4] == [(2, 1, 4), (1, 4), (2, 4), (2, 1)]
    shared, computed = SharedLikelihood(sampler), []

    def counted(params, scored, plan, score=shared._score):
        computed.append(plan.computed)
        return score(params, scored, plan)

    shared._score = counted
    shared.prepare(pairs, "leave_one_out")
    together = sum(computed)
    found: Any = shared(every)
    assert sum(computed) == together
    naive: Any = gold_likelihood(sampler)(every)
    np.testing.assert_allclose(found, naive, rtol=2e-5)
    other = SharedLikelihood(sampler)
    other._score, computed = counted, []
    other(pairs)
    other([one for one in every if one not in pairs])
    assert together < sum(computed)
    # What was not prepared is computed, too, and what comes next is prepared afresh.
    assert shared([(questions[0], (4, 3, 2))]) == pytest.approx(
        gold_likelihood(sampler)([(questions[0], (4, 3, 2))]), rel=2e-5
    )
    shared.prepare([(question("none", 2, answers=()), (1,))], "gains")
    assert shared([(question("none", 2, answers=()), (1,))]) == [None]


@pytest.mark.slow  # two samplers
def test_answers_from_parts_go_on_from_their_lists(sampler, question):
    """In the sampling engine: few slots, more lists than it holds, long passages."""
    policy, prompts = sampler.policy, sampler.prompts
    wide = dataclasses.replace(prompts, ids=6, max_list=5, answer_prompt_tokens=1024)

    def long(name):
        asked = question(name, 6)
        passages = tuple(dataclasses.replace(p, text=f"{p.text} " * 8) for p in asked.passages)
        return dataclasses.replace(asked, passages=passages)

    pairs = [(long(name), one) for name in "ab" for one in itertools.permutations(range(1, 6))]
    pairs = pairs[::17]
    both = with_parts(pairs, "leave_one_out")

    def answered(*calls):
        own = PolicySampler(policy, wide, 4, 0)
        said = {
            (q.id, one): text
            for call in calls
            for (q, one), text in zip(call, own.answers(call), strict=True)
        }
        work = own.answer_engine.work
        whole = sum(len(own.maker.answer_prompt(q, one).tokens) for q, one in pairs)
        return said, (work.prompt_tokens - work.shared_tokens) / whole

    said, together = answered(both)
    again, apart = answered(pairs, [one for one in both if one not in pairs])
    assert said == again
    assert together < 0.9 * apart
    assert 1 < together < 3.4  # one by one they would be 5


@pytest.mark.parametrize("kind", ["gains", pytest.param("leave_one_out", marks=pytest.mark.slow)])
def test_the_credit_of_rollouts_is_that_of_rewards_computed_one_by_one(
    sampler, question, kind, tmp_path
):
    questions = [question(f"q{i}", 4) for i in range(3)]
    weights = RewardWeights(em=0.0, f1=1.0, likelihood=2.0, passages=0.25)
    source = policy_lists(sampler, questions, Sampling(), 4)
    made = roll_out(sampler, sampler, source, 4, weights, credit=kind)
    found = {r.id: r for r in made if isinstance(r, Rollout)}
    scorer = Scorer(weights, likelihood=gold_likelihood(sampler))

    def reward(question, part):
        (text,) = sampler.answers([(question, part)])
        return scorer.score([Answered(question, part, text)])[0].value

    for one in questions:
        rollout = found[one.id]
        assert rollout.credit == kind
        line = json.loads(json.dumps(rollout_to_json(rollout)))
        assert rollout_from_json(line, "x") == rollout
        for t in rollout.trajectories:
            rewards = [reward(one, part) for part in parts_of(t.list, kind)]
            np.testing.assert_allclose(t.credit, credit_of(t.list, kind, rewards), atol=1e-5)
            if kind == "gains":
                total = t.reward - reward(one, ())
                assert sum(t.credit) == pytest.approx(total, abs=1e-5)
    # They become rewards of steps at the tokens that end them.
    rollout = max(found.values(), key=lambda r: max(len(t.list) for t in r.trajectories))
    asked = next(q for q in questions if q.id == rollout.id)
    objectives = Objectives(nll=TokenNll(weight=0.0), grpo=Grpo(weight=1.0, credit=0.5))
    order = tuple(range(len(rollout.trajectories)))
    example = list_example(sampler.maker, asked, RankedRollout(rollout, order), objectives)
    longest = sampler.policy.spelling.longest(sampler.prompts.max_list)
    batch = collate([example], BatchShape(200, len(order), longest, 4, steps=True))
    for branch, t in enumerate(rollout.trajectories):
        ends = np.flatnonzero(batch.step_ends[0, branch])
        np.testing.assert_allclose(batch.step_rewards[0, branch, ends], [*t.credit, 0.0], atol=1e-6)
        tokens = list(example.branches[branch])
        assert ends[-1] == len(tokens) - 1
        for step, end in enumerate(ends[:-1]):
            # As far as this token the list holds so many ids, and a token less one fewer.
            said = sampler.policy.tokenizer.decode(tokens[: end + 1])
            assert said.count("[") == step + 1
    # What each step decided, beside all lists of two passages.
    small = question("small", 2)
    lists = [(), (1,), (2,), (1, 2), (2, 1)]
    (logps,) = sampler.logps([small], [lists], 5)
    p = {one: np.exp(sum(x)) for one, x in zip(lists, logps, strict=True)}
    made = [Trajectory(one, logps=x) for one, x in zip(lists, logps, strict=True)]
    own = dataclasses.replace(
        rollout, id="small", shown=2, trajectories=tuple(made),
        prompt=fingerprint(list(sampler.maker.rerank_prompt(small).tokens)),
    )  # fmt: skip
    ranked = RankedRollout(own, tuple(range(5)))
    example = list_example(sampler.maker, small, ranked, objectives)
    shape = BatchShape(200, 5, longest, 4, steps=True)
    policy = sampler.policy
    inputs = loss_inputs(
        policy.cfg, policy.params, collate([example], shape), policy.grammar, objectives
    )
    stops = {first: p[first,] / (p[first,] + p[first, 3 - first]) for first in (1, 2)}
    wanted = [[p[()]], *([1 - p[()], stops[first]] for first in (1, 2))]
    wanted += [[1 - p[()], 1 - stops[first], 1.0] for first in (1, 2)]
    for branch, each in enumerate(wanted):
        ends = np.flatnonzero(np.asarray(inputs.step_ends)[0, branch])
        found_here = np.exp(np.asarray(inputs.decisions)[0, branch, ends])
        np.testing.assert_allclose(found_here, each, rtol=1e-4)
        assert np.asarray(inputs.decided)[0, branch, ends].all()
    expected = Expected(Path("rollouts.jsonl"), "", "", rollout.tokenizer, 3, "float32")
    bare = dataclasses.replace(rollout, credit="")
    with pytest.raises(InputError, match="no credit by step, which 'grpo' reads"):
        check_rollouts([bare], objectives, expected)


def test_a_part_without_an_answer_leaves_its_lists_without_credit(sampler, question):
    asked = question("q", 3)

    source = policy_lists(sampler, [asked], Sampling(), 4)
    (rollout,) = roll_out(sampler, sampler, source, 4, RewardWeights())
    assert isinstance(rollout, Rollout)
    lists = [(2, 1), (3,)]
    trajectories = [
        dataclasses.replace(rollout.trajectories[0], list=one, thought=None) for one in lists
    ]
    rollout = dataclasses.replace(rollout, trajectories=tuple(trajectories))
    weights = Scorer(RewardWeights(em=1.0, passages=0.0))
    answers = {("q", part): "here" for part in ((), (2, 1), (3,))} | {
        ("q", (2,)): NoAnswer("silent")
    }
    (found,) = with_credit(answers, [asked], [rollout], weights, "gains")
    first, second = found.trajectories
    assert first.missing == ("credit",) and not first.credit
    assert not second.missing and len(second.credit) == 1


def test_parts_and_credit_by_hand():
    assert parts_of((3, 1), "gains") == [(), (3,), (3, 1)]
    assert parts_of((3, 1), "leave_one_out") == [(3, 1), (1,), (3,)]
    assert credit_of((3, 1), "gains", [0.1, 0.5, 0.4]) == pytest.approx((0.4, -0.1))
    assert credit_of((3, 1), "leave_one_out", [0.4, 0.2, 0.5]) == pytest.approx((0.2, -0.1))
    assert parts_of((), "gains") == parts_of((), "leave_one_out") == [()]
    values = list(itertools.accumulate([0.0, 0.3, -0.2]))
    assert sum(credit_of((1, 2), "gains", values)) == pytest.approx(0.1)
