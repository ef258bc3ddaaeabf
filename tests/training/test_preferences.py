"""Examples from rollouts: who is preferred to whom, and what is refused as stale."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.files import fingerprint
from dynarag_jax.objectives.terms import Dpo, Dro, Grpo, Objectives, PlackettLuce, SimPo, TokenNll
from dynarag_jax.policy.grammar import read_list
from dynarag_jax.prompts import answer_prompt, decode_answer, rerank_prompt
from dynarag_jax.records import Passage, Question
from dynarag_jax.rollout_records import Answers, Rollout, Trajectory
from dynarag_jax.training.preferences import (
    Expected,
    RankedRollout,
    answer_example,
    check_rollouts,
    judge,
    list_example,
)
from tests.policy.split_words import example_maker, word_tokenizer

DPO = Objectives(nll=TokenNll(0.0), dpo=Dpo(1.0))
GRPO = Objectives(nll=TokenNll(0.0), grpo=Grpo(1.0))
RANKED = Objectives(nll=TokenNll(0.0), plackett_luce=PlackettLuce(1.0))
SIMPO = Objectives(nll=TokenNll(0.0), simpo=SimPo(1.0))


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


QUESTION = Question(
    "q1", "who founded arlo", answers=("ada lives", "ada"),
    passages=tuple(Passage(f"p{i}", "ada lives here") for i in range(8)),
)  # fmt: skip


@pytest.fixture
def maker(tokenizer):
    return example_maker(tokenizer)


def rollout(name, *rewards, **more):
    lists = tuple(
        Trajectory((i + 1,), reward=r, count=i + 1, logps=(-i,), reference_logps=(-2.0 * i,))
        for i, r in enumerate(rewards)
    )
    more = {"max_list": 3, "dtype": "float32"} | more
    return Rollout(name, 8, lists, "weights a", "weights a", "tokenizer a", **more)


def test_best_against_worst_of_the_same_question_and_never_a_list_against_itself():
    rollouts = [
        rollout("a", 0.2, 0.9, 0.1, 0.5), rollout("same", 0.4, 0.4), rollout("one", 1.0),
        rollout("near", 0.50, 0.55), rollout("none"),
    ]  # fmt: skip
    judged, counts = judge(rollouts, pairs=True)
    assert [(j.rollout.id, j.order) for j in judged] == [("a", (1, 2)), ("near", (1, 0))]
    assert (counts.kept, counts.ties, counts.single) == (2, 1, 2)
    judged, counts = judge(rollouts, min_gap=0.1, pairs=True)
    assert [j.rollout.id for j in judged] == ["a"]
    assert (counts.kept, counts.ties, counts.single) == (1, 2, 2)


def test_groups_hold_every_list_the_best_and_the_worst_first():
    judged, _ = judge([rollout("a", 0.2, 0.9, 0.1, 0.5)], pairs=False)
    assert judged[0].order == (1, 2, 3, 0)


def spelled(maker, *lists):
    """A rollout whose log-probabilities have one number a token."""
    trajectories = []
    for place, ids in enumerate(lists):
        tokens = len(maker.spelling.spell(ids))
        trajectories.append(
            Trajectory(
                ids, count=place + 1, reward=1.0 - place / 4, logps=(-0.5,) * tokens,
                reference_logps=tuple(-float(i) for i in range(tokens)),
            )
        )  # fmt: skip
    prompt = fingerprint(maker.rerank_prompt(QUESTION).tokens)
    return Rollout("q1", 8, tuple(trajectories), "w", "w", "t", prompt)


def test_lists_carry_rewards_counts_and_the_log_probabilities_that_are_read(maker, tokenizer):
    one = RankedRollout(spelled(maker, (2,), (), (4, 1)), (0, 2, 1))
    example = list_example(maker, QUESTION, one, DPO)
    assert example.prompt == rerank_prompt(tokenizer, QUESTION, "compact", 200).tokens
    assert [read_list(maker.spelling, b) for b in example.branches] == [(2,), (4, 1), ()]
    assert example.rewards == (1.0, 0.5, 0.75)
    assert example.counts == (1, 3, 2)
    assert example.preferred and example.shown == 8 and not example.supervised
    assert example.reference[2] == (0.0, -1.0)
    assert example.behavior == ()
    group = list_example(maker, QUESTION, one, GRPO)
    assert group.reference == () and group.behavior[2] == (-0.5, -0.5)


def test_lists_over_passages_that_are_not_shown_are_refused(maker, tokenizer):
    maker.rerank_length = len(rerank_prompt(tokenizer, QUESTION, "compact", 200, 7).tokens)
    one = RankedRollout(spelled(maker, (2,), (8,)), (0, 1))
    with pytest.raises(InputError, match=r"'q1': the sampled list \[8\] holds 8, outside 1..7"):
        list_example(maker, QUESTION, one, SIMPO)


def test_log_probabilities_of_another_prompt_are_refused(maker):
    one = RankedRollout(spelled(maker, (2,), ()), (0, 1))
    other = dataclasses.replace(QUESTION, text="who founded ada")
    with pytest.raises(InputError, match=r"'q1': .* are of another prompt \("):
        list_example(maker, other, one, DPO)
    assert list_example(maker, other, one, SIMPO).reference == ()  # nothing is read, nothing stale


def test_answers_are_compared_over_the_best_lists_passages(maker, tokenizer):
    prompt = fingerprint(answer_prompt(tokenizer, QUESTION, (5, 2), "compact", 100).tokens)
    answers = Answers(
        (5, 2), prompt, ("ada lives", "here", "ada"), (1.0, 0.0, 0.5),
        ((-0.1, -0.2, -0.3), (-1.0, -2.0), (-3.0, -4.0)),
    )  # fmt: skip
    judged, _ = judge([Rollout("q1", 8, (), "w", "w", answers=answers)], pairs=False, answers=True)
    example = answer_example(maker, QUESTION, judged[0], DPO)
    assert example.prompt == answer_prompt(tokenizer, QUESTION, (5, 2), "compact", 100).tokens
    assert [decode_answer(tokenizer, b) for b in example.branches] == ["ada lives", "here", "ada"]
    assert example.rewards == (1.0, 0.0, 0.5)
    assert example.reference == ((-0.1, -0.2, -0.3), (-1.0, -2.0), (-3.0, -4.0))
    assert example.shown == 0 and example.preferred
    stale = dataclasses.replace(answers, prompt="other")
    one = RankedRollout(dataclasses.replace(judged[0].rollout, answers=stale), judged[0].order)
    with pytest.raises(InputError, match="another prompt"):
        answer_example(maker, QUESTION, one, DPO)


EXPECTED = Expected(Path("r.jsonl"), "weights a", "models/a", "tokenizer a", 3, "float32")


def test_fresh_rollouts_are_accepted():
    for objectives in (DPO, GRPO, RANKED, SIMPO):
        check_rollouts([rollout("a", 0.1, 0.2)], objectives, EXPECTED)
    # What is not read cannot be stale.
    old = dataclasses.replace(rollout("a", 0.1, 0.2), reference="other", tokenizer="other")
    check_rollouts([old], SIMPO, EXPECTED)


def without(rollout, name):
    bare = (dataclasses.replace(t, **{name: ()}) for t in rollout.trajectories)
    return dataclasses.replace(rollout, trajectories=tuple(bare))


GOOD = rollout("a", 0.1, 0.2)


@pytest.mark.parametrize(
    ("bad", "objectives", "message"),
    [
        (
            dataclasses.replace(GOOD, reference="weights b"), DPO,
            r"r.jsonl: question 'a': its reference log-probabilities are of other weights "
            r"\(weights b\) than models/a \(weights a\); name their model",
        ),
        (
            dataclasses.replace(GOOD, tokenizer="tokenizer b"), DPO,
            r"'a': its log-probabilities are of another tokenizer \(tokenizer b, this one is "
            r"tokenizer a\); compute them with python -m train.reference",
        ),
        (dataclasses.replace(GOOD, tokenizer=""), GRPO, "an unknown tokenizer"),
        (
            dataclasses.replace(GOOD, max_list=2), DPO,
            r"'a': its log-probabilities are under the grammar of lists of at most 2 ids, and this "
            r"stage has prompts.max_list = 3; set it to what was sampled with, or compute them",
        ),
        (dataclasses.replace(GOOD, max_list=0), GRPO, "of at most an unknown number of ids"),
        (
            dataclasses.replace(GOOD, dtype="bfloat16"), GRPO,
            r"'a': its log-probabilities were computed in bfloat16, and this stage computes in "
            r"float32: .* set model.dtype to that type, or compute them .* with dtype float32",
        ),
        (dataclasses.replace(GOOD, dtype=""), DPO, "computed in a type that is not on record"),
        (without(GOOD, "reference_logps"), RANKED, "no reference .* 'plackett_luce' reads"),
        (without(GOOD, "logps"), GRPO, "no log-probabilities of the sampling .* --policy MODEL"),
    ],
    ids=[
        "weights", "tokenizer", "unknown", "grammar", "unknown-grammar", "type", "unknown-type",
        "reference", "behavior",
    ],
)  # fmt: skip
def test_stale_or_missing_log_probabilities_are_refused_in_one_line(bad, objectives, message):
    with pytest.raises(InputError, match=message) as error:
        check_rollouts([GOOD, bad], objectives, EXPECTED)
    assert "\n" not in str(error.value)


def test_dro_takes_only_rewards_that_are_likelihoods():
    dro = Objectives(nll=TokenNll(0.0), dro=Dro(1.0))

    def rewarded(*pairs, **terms):
        lists = tuple(
            Trajectory((i + 1,), reward=r, terms={"likelihood": p} | terms)
            for i, (r, p) in enumerate(pairs)
        )
        return Rollout("q", 8, lists, "weights a", "weights a")

    check_rollouts(
        [rewarded((0.2, 0.2), (0.9, 0.9)), rewarded((1.0, 0.5), (0.0, 0.0))], dro, EXPECTED
    )
    for wrong, says in (
        (rollout("a", 0.1, 0.2), "these are of unknown terms"),
        (rewarded((0.5, 0.2), em=1.0), r"these are of likelihood \+ em"),
        (rewarded((0.2, 0.2), (0.8, 0.9)), "these carry a price of passages"),
        (rewarded((-0.1, 0.0)), "likelihoods of the reference"),
    ):
        with pytest.raises(InputError, match=says):
            check_rollouts([wrong], dro, EXPECTED)
    with pytest.raises(InputError, match="answers are no lists"):
        check_rollouts([], dro, EXPECTED, answers=True)


def test_objectives_that_would_do_nothing_are_refused():
    with pytest.raises(InputError, match="objective 'nll' learns from given targets"):
        check_rollouts([GOOD], Objectives(dpo=Dpo(1.0)), EXPECTED)


def test_answers_need_to_be_scored_and_are_no_samples_of_one_prompt():
    with pytest.raises(InputError, match="'a' has no scored answers; sample with --answers True"):
        check_rollouts([GOOD], DPO, EXPECTED, answers=True)
    with pytest.raises(InputError, match="'grpo' needs samples of one prompt"):
        check_rollouts([GOOD], GRPO, EXPECTED, answers=True)


def test_a_list_that_the_grammar_cannot_write_is_refused(maker):
    """Its probability is 0, and the loss would be infinite."""
    long = dataclasses.replace(GOOD.trajectories[1], list=(4, 1, 2, 3))
    spoiled = dataclasses.replace(GOOD, trajectories=(GOOD.trajectories[0], long))
    judged, _ = judge([spoiled], pairs=True)
    with pytest.raises(InputError, match=r"'q1': .* \[4, 1, 2, 3\] has 4 ids, more than .*= 3"):
        list_example(maker, QUESTION, judged[0], SIMPO)


def test_answers_that_are_cut_have_no_end_and_are_counted(maker, tokenizer):
    answers = Answers((1,), "p", ("ada lives here ada", "ada"), (0.1, 0.9), ((), ()))
    judged, _ = judge([dataclasses.replace(GOOD, answers=answers)], pairs=True, answers=True)
    example = answer_example(maker, QUESTION, judged[0], SIMPO)
    short, long = example.branches
    assert short[-1] == tokenizer.eos_token_id and decode_answer(tokenizer, short) == "ada"
    assert len(long) == 3 and decode_answer(tokenizer, long) == "ada lives here"
    assert example.dropped_tokens == 2  # a word and the end
    question = dataclasses.replace(QUESTION, answers=("ada lives here ada",))
    supervised = maker.answer(question, (1,))
    assert list(supervised.branches[0]) == list(long) and supervised.dropped_tokens == 2
    assert maker.answer(QUESTION, (1,)).dropped_tokens == 0


def test_a_reward_that_lacks_a_term_is_compared_with_none():
    """A failed judgment must make its list neither chosen nor rejected."""
    whole = rollout("a", 0.2, 0.9, 0.1, 0.5)
    lists = [dataclasses.replace(t, missing=("judge",)) for t in whole.trajectories]
    best_and_worst = (whole.trajectories[0], lists[1], lists[2], whole.trajectories[3])
    spoiled = dataclasses.replace(whole, trajectories=best_and_worst)
    for pairs in (True, False):
        judged, counts = judge([spoiled], pairs=pairs)
        assert judged[0].order == (3, 0) and counts.kept == 1
    one_left = dataclasses.replace(whole, trajectories=(*lists[:3], whole.trajectories[3]))
    judged, counts = judge([one_left], pairs=True)
    assert not judged and (counts.missing, counts.single, counts.ties) == (1, 0, 0)
    answers = Answers((1,), "p", ("x", "y", "z"), (0.1, 0.9, 0.5), ((), (), ()), missing=(1,))
    judged, _ = judge([dataclasses.replace(whole, answers=answers)], pairs=True, answers=True)
    assert judged[0].order == (2, 0)
