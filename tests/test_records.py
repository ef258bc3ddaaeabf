"""Records: strict about every field, by file, line and name; what is read is written back."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import replace
from typing import get_args

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dynarag_jax.errors import InputError
from dynarag_jax.files import write_jsonl
from dynarag_jax.records import (
    TASKS,
    Passage,
    Question,
    Task,
    question_from_json,
    question_to_json,
    read_questions,
    valid_list,
    write_passages,
    write_questions,
)
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
from dynarag_jax.rollout_records import (
    Rollout,
    Trajectory,
    read_rollouts,
    rollout_to_json,
    signal_figures,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
WORD = TEXT.filter(str.strip)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PASSAGES = st.builds(Passage, id=WORD, text=TEXT, title=TEXT, score=st.none() | FINITE)


@st.composite
def questions(draw):
    passages = draw(st.lists(PASSAGES, max_size=5, unique_by=lambda p: p.id))
    lists = st.permutations(range(1, len(passages) + 1)).flatmap(
        lambda order: st.integers(0, len(order)).map(lambda k: tuple(order[:k]))
    )
    expert = draw(st.none() | lists)
    return Question(
        id=draw(WORD),
        text=draw(WORD),
        answers=tuple(draw(st.lists(TEXT, max_size=3))),
        task=draw(st.sampled_from(get_args(Task))),
        type=draw(TEXT),
        passages=tuple(passages),
        gold=draw(st.none() | st.lists(WORD, max_size=3).map(tuple)),
        expert=expert,
        expert_source="" if expert is None else draw(TEXT),
        extra=draw(st.dictionaries(WORD.map(lambda w: f"x{w}"), st.integers() | TEXT, max_size=2)),
    )


@settings(max_examples=40)
@given(st.lists(questions(), max_size=4, unique_by=lambda q: q.id))
def test_questions_round_trip(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    assert write_questions(path, records) == len(records)
    assert read_questions(path) == records


@settings(max_examples=40)
@given(st.lists(PASSAGES, max_size=4, unique_by=lambda p: p.id))
def test_passages_round_trip(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("passages") / "p.jsonl"
    assert write_passages(path, records) == len(records)
    if records:
        # A corpus has no scores.
        wanted = [replace(passage, score=None) for passage in records]
        assert list(read_corpus(CorpusConfig((str(path),)))) == wanted


TRAJECTORIES = st.builds(
    Trajectory,
    list=st.lists(st.integers(1, 5), unique=True).map(tuple),
    count=st.integers(1, 8),
    answer=TEXT,
    terms=st.dictionaries(WORD, FINITE, max_size=2),
    reward=FINITE,
    logp=FINITE,
    reference_logp=FINITE,
)
ROLLOUTS = st.builds(
    Rollout,
    id=WORD,
    shown=st.just(5),
    trajectories=st.lists(TRAJECTORIES, max_size=3, unique_by=lambda t: t.list).map(tuple),
    policy=WORD,
    reference=WORD,
    max_list=st.integers(0, 9),
    dtype=st.sampled_from(["", "float32", "bfloat16"]),
)


@settings(max_examples=40)
@given(st.lists(ROLLOUTS, max_size=3, unique_by=lambda r: r.id))
def test_rollouts_round_trip(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("rollouts") / "r.jsonl"
    write_jsonl(path, [rollout_to_json(r) for r in records])
    assert read_rollouts(path) == records


# ---------------------------------------------------------------------------- strict errors

QUESTION = {
    "id": "q1",
    "question": "Who?",
    "answers": ["Ada"],
    "task": "short",
    "ctxs": [{"id": "p1", "text": "one"}, {"id": 7, "title": "T", "text": "two", "score": 0.5}],
    "gold": ["p1"],
    "expert": {"list": [2, 1], "source": "gold"},
    "hops": 2,
}


def spoiled(**fields):
    return {k: v for k, v in (QUESTION | fields).items() if v != "gone"}


def test_a_whole_question_and_the_least_one():
    question = question_from_json(QUESTION, "here")
    assert [p.id for p in question.passages] == ["p1", "7"]  # a number as id is its text
    assert question.extra == {"hops": 2}
    assert question.gold_list() == (1,)
    assert question_to_json(question) == QUESTION | {
        "ctxs": [
            {"id": "p1", "title": "", "text": "one"},
            {"id": "7", "title": "T", "text": "two", "score": 0.5},
        ]
    }
    least = question_from_json({"id": 3, "question": "Who?", "answers": None}, "here")
    assert least == Question(id="3", text="Who?")
    assert least.gold_list() is None


def test_shuffling_keeps_the_shown_passages_and_the_experts_choice():
    passages = tuple(Passage(id=f"p{i}", text=f"text {i}") for i in range(1, 10))
    before = Question("q", "what?", passages=passages, gold=("p5", "p2"), expert=(5, 8, 2))
    orders = set()
    for seed in range(50):
        after, order = before.shuffled(6, random.Random(seed))
        assert sorted(order) == [1, 2, 3, 4, 5, 6]
        assert after.passages == tuple(passages[i - 1] for i in order)
        # The eighth is not shown; the others are the same passages in the same order.
        assert [after.passages[i - 1].id for i in after.expert or ()] == ["p5", "p2"]
        assert after.gold_list() == after.expert
        assert before.shuffled(6, random.Random(seed)) == (after, order)
        orders.add(order)
    assert len(orders) > 40
    bare = dataclasses.replace(before, expert=None)
    assert bare.shuffled(20, random.Random(0))[0].expert is None


def test_gold_passages_that_are_not_candidates_have_no_place():
    question = question_from_json(spoiled(gold=["7", "elsewhere", "p1"]), "here")
    assert question.gold_list() == (2, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "gone"}, "field 'id' is missing"),
        ({"id": " "}, "field 'id' must not be empty, found ' '"),
        ({"id": True}, "field 'id' must be a string, found True"),
        (
            {"question": "gone", "questions": "Who?"},
            "field 'question' is missing (did you mean 'questions'?)",
        ),
        ({"question": 5}, "field 'question' must be a string, found 5"),
        ({"answers": "Ada"}, "field 'answers' must be a list of strings, found 'Ada'"),
        ({"answers": ["Ada", 3]}, "field 'answers' must be a list of strings"),
        ({"task": "essay"}, "field 'task' must be one of short, label, paragraph, found 'essay'"),
        ({"ctxs": {}}, "field 'ctxs' must be a list of objects"),
        ({"ctxs": ["text"]}, "field 'ctxs' must be a list of objects"),
        ({"ctxs": [{"id": "p"}]}, "ctxs[0]: field 'text' is missing"),
        ({"ctxs": [{"id": "p", "text": None}]}, "ctxs[0]: field 'text' is missing"),
        (
            {"ctxs": [{"id": "p", "text": "x", "score": "high"}]},
            "ctxs[0]: field 'score' must be a finite number, found 'high'",
        ),
        (
            {"ctxs": [{"id": "p", "text": "x", "score": 10**400}]},
            "ctxs[0]: field 'score' must be a finite number",
        ),
        (
            {"ctxs": [{"id": "p", "text": "x", "score": True}]},
            "ctxs[0]: field 'score' must be a finite number",
        ),
        (
            {"ctxs": [{"id": 7, "text": "x"}, {"id": "7", "text": "y"}]},
            "ctxs[1] repeats the passage id '7'",
        ),
        ({"gold": "p1"}, "field 'gold' must be a list of strings"),
        ({"expert": [1]}, "field 'expert' must be an object"),
        ({"expert": {"source": "x"}}, "expert: field 'list' must be a list of integers"),
        ({"expert": {"list": [1.0]}}, "expert: field 'list' must be a list of integers"),
        # The released code of the paper selects the last passage by an id of 0.
        ({"expert": {"list": [0]}}, "field 'expert.list' holds 0, outside 1..2"),
        ({"expert": {"list": [3]}}, "field 'expert.list' holds 3, outside 1..2"),
        ({"expert": {"list": [1, 1]}}, "field 'expert.list' holds 1 twice"),
        ({"answers": "x" * 100}, "found '" + "x" * 56 + "..."),
    ],
    ids=str,
)
def test_fields_that_are_wrong_are_named_by_file_line_and_name(tmp_path, fields, message):
    path = tmp_path / "q.jsonl"
    lines = [json.dumps(QUESTION | {"id": "q0"}), "", json.dumps(spoiled(**fields))]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_ids_are_unique_in_a_file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(QUESTION | {"id": i}) + "\n" for i in (1, 2, "1")))
    with pytest.raises(InputError, match=r"q.jsonl:3: field 'id' repeats '1' of line 1"):
        read_questions(path)


ROLLOUT = {
    "id": "q1",
    "shown": 2,
    "policy": "abc",
    "reference": "abc",
    "trajectories": [{"list": [2]}],
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": ""}, "field 'policy' must not be empty"),
        ({"shown": 2.5}, "field 'shown' must be an integer"),
        ({"shown": -1}, "field 'shown' must be 0 or more"),
        ({"trajectories": 3}, "field 'trajectories' must be a list of objects"),
        ({"trajectories": [{}]}, "trajectories[0]: field 'list' must be a list of integers"),
        ({"trajectories": [{"list": [3]}]}, "trajectories[0]: field 'list' holds 3, outside 1..2"),
        ({"trajectories": [{"list": [], "reward": "x"}]}, "field 'reward' must be a finite number"),
        ({"trajectories": [{"list": [], "count": 0}]}, "field 'count' must be 1 or more"),
        (
            {"trajectories": [{"list": [2]}, {"list": []}, {"list": [2], "reward": 1}]},
            "trajectories[2] repeats the list [2] of trajectories[0]; give each list once",
        ),
        (
            {"trajectories": [{"list": [], "terms": {"em": "x"}}]},
            "trajectories[0]: terms: field 'em' must be a finite number",
        ),
    ],
    ids=str,
)
def test_rollouts_that_are_wrong_are_named(tmp_path, fields, message):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(ROLLOUT | fields))
    with pytest.raises(InputError) as error:
        read_rollouts(path)
    assert str(error.value).startswith(f"{path}:1: ")
    assert message in str(error.value)


def test_rewards_that_say_nothing_are_missing_not_zero(tmp_path):
    lists = [
        {"list": [1], "reward": None},
        {"list": [2]},
        {"list": [], "reward": 0.5, "terms": {"em": 0.5, "judge": None}},
        {"list": [1, 2], "reward": 0, "missing": ["judge"]},
    ]
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(ROLLOUT | {"trajectories": lists}))
    (rollout,) = read_rollouts(path)
    null, absent, term, said = rollout.trajectories
    assert null.missing == absent.missing == ("reward",)
    assert term.missing == said.missing == ("judge",)
    assert term.terms == {"em": 0.5} and term.reward == 0.5
    write_jsonl(path, [rollout_to_json(rollout)])
    assert read_rollouts(path) == [rollout]


def test_figures_of_signal_count_every_sample():
    def sample(reward, count=1, answer="", missing=(), **terms):
        return Trajectory((1,), count, answer, terms, reward, missing=missing)

    teaches = Rollout(
        "a", 2,
        (sample(1.0, 3, "two words", judge=0.9, em=1.0), sample(0.0, judge=0.5, em=0.0, f1=0.25)),
        "p", "p",
    )  # fmt: skip
    alike = Rollout(
        "b", 2, (sample(0.5, 2, "one"), sample(0.0, missing=("judge",), em=1.0)), "p", "p"
    )
    assert signal_figures([teaches, alike]) == {
        "without_signal": 0.5,
        "answer_words": (3 * 2 + 0 + 2 * 1 + 0) / 7,
        "judge_gap/em": pytest.approx((3 * 0.1 + 0.5) / 4),
        "judge_gap/f1": 0.25,
    }
    assert signal_figures([]) == {"without_signal": 0.0, "answer_words": 0.0}


def test_tasks_and_lists():
    assert TASKS == ("short", "label", "paragraph")
    assert valid_list((), 0) is None
    assert valid_list((2, 1), 2) is None
    assert valid_list((1, 2), 1) == "holds 2, outside 1..1"
    assert valid_list((-1,), 3) == "holds -1, outside 1..3"
