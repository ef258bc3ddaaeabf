"""Preference pairs as text: which there are, what is left out, and the forms others read."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json, read_jsonl, write_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.records import Passage, Question, question_to_json
from dynarag_jax.rollout_records import Answers, Rollout, Trajectory, rollout_to_json
from dynarag_jax.stages import pairs as program
from dynarag_jax.stages.pairs import Pairs
from dynarag_jax.training.pairs import (
    PairCounts,
    all_pairs,
    llama_factory_records,
    pairs_of,
    preference_records,
    ranked_pairs,
)


def question(name: str) -> Question:
    passages = tuple(Passage(f"{name}/{i}", f"text {i} of {name}") for i in range(4))
    return Question(name, f"who is {name}?", ("x",), passages=passages)


def rollout(name: str, rewards, lists=None, answers=None) -> Rollout:
    lists = lists or [(i + 1,) for i in range(len(rewards))]
    made = tuple(
        Trajectory(ids, answer=f"{name} says {i}", reward=r)
        for i, (ids, r) in enumerate(zip(lists, rewards, strict=True))
    )
    return Rollout(name, 4, made, "p", "r", answers=answers)


QUESTIONS = {name: question(name) for name in "abcd"}
ROLLOUTS = [
    rollout("a", [0.1, 0.9, 0.5]),
    rollout("b", [0.4, 0.4]),
    rollout("c", [1.0], [()]),
    rollout("d", [0.30, 0.35, 0.0], [(2, 1), (), (4,)]),
]


def test_best_against_worst_and_every_pair_above_a_gap():
    found, counts = all_pairs(QUESTIONS, ROLLOUTS, "list")
    assert [(p.id, p.chosen, p.rejected) for p in found] == [
        ("a", "[2]", "[1]"),
        ("d", "None", "[4]"),
    ]
    assert counts == PairCounts(pairs=2, ties=1, single=1)
    found, counts = all_pairs(QUESTIONS, ROLLOUTS, "list", which="all", min_gap=0.1)
    assert [(p.id, p.chosen, p.rejected) for p in found] == [
        ("a", "[2]", "[3]"), ("a", "[2]", "[1]"), ("a", "[3]", "[1]"),
        ("d", "None", "[4]"), ("d", "[2], [1]", "[4]"),
    ]  # fmt: skip
    assert counts == PairCounts(pairs=5, ties=2, single=1)
    assert [round(p.gap, 6) for p in found] == [0.4, 0.8, 0.4, 0.35, 0.3]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.55, 1.0]), st.sampled_from("xyz")), max_size=6
    )
)
def test_no_pair_prefers_a_text_to_itself_or_a_worse_one(branches):
    rewards, texts = [r for r, _ in branches], [t for _, t in branches]
    for which in ("best_worst", "all"):
        counts = PairCounts()
        found = ranked_pairs(rewards, texts, which, 0.1, counts)
        n = len(branches)
        candidates = 0 if n < 2 else 1 if which == "best_worst" else n * (n - 1) // 2
        assert counts.pairs + counts.ties + counts.same == candidates
        for better, worse in found:
            assert rewards[better] - rewards[worse] > 0.1 and texts[better] != texts[worse]


def test_pairs_depend_on_their_own_record_alone():
    """The released code gives its first 10,000 records to one kind and leaks between records."""

    def answers(name: str) -> Answers:
        texts = (f"{name} one", f"{name} two", " one")
        return Answers((2,), "p", texts, (0.1, 0.9, 0.1), ((),) * 3)

    many = [rollout(name, [0.1, 0.9], answers=answers(name)) for name in "abcd"]
    for kind in ("list", "answer"):
        whole = {p.id: p for p in all_pairs(QUESTIONS, many, kind)[0]}
        assert set(whole) == set("abcd")  # both kinds, of every record
        shuffled = random.Random(0).sample(many, 4)
        assert {p.id: p for p in all_pairs(QUESTIONS, shuffled, kind)[0]} == whole
        for one in many:
            assert all_pairs(QUESTIONS, [one], kind)[0] == [whole[one.id]]
        for pair in whole.values():
            said = pair.messages[-1]["content"]
            assert f"who is {pair.id}?" in said and pair.chosen != pair.rejected
            if kind == "answer":
                assert {pair.chosen, pair.rejected} <= {f"{pair.id} one", f"{pair.id} two", " one"}
                assert f"text 1 of {pair.id}" in said and f"text 0 of {pair.id}" not in said


def test_equal_texts_and_missing_rewards_are_left_out_and_counted():
    made = rollout(
        "a", [0.9, 0.1], answers=Answers((1,), "p", ("yes", " yes"), (0.9, 0.1), ((), ()))
    )
    counts = PairCounts()
    assert not pairs_of(QUESTIONS["a"], made, "answer", counts)
    assert counts == PairCounts(same=1)
    lists = tuple(dataclasses.replace(t, missing=("judge",)) for t in made.trajectories)
    spoiled = dataclasses.replace(made, trajectories=(made.trajectories[0], lists[1]))
    counts = PairCounts()
    assert not pairs_of(QUESTIONS["a"], spoiled, "list", counts)
    assert counts == PairCounts(missing=1, single=1)


def test_records_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match="put beside question 'b'"):
        pairs_of(QUESTIONS["b"], ROLLOUTS[0], "list", PairCounts())
    with pytest.raises(InputError, match="'a' of the rollouts is not among the questions"):
        all_pairs({}, ROLLOUTS, "list")
    few = dataclasses.replace(QUESTIONS["a"], passages=QUESTIONS["a"].passages[:2])
    with pytest.raises(InputError, match="was shown 4 passages, and the question has 2"):
        pairs_of(few, ROLLOUTS[0], "list", PairCounts())
    with pytest.raises(InputError, match="no scored answers"):
        pairs_of(QUESTIONS["a"], ROLLOUTS[0], "answer", PairCounts())


def test_forms():
    (pair, *_), _ = all_pairs(QUESTIONS, ROLLOUTS, "list")
    (record,) = preference_records([pair])
    assert [m["role"] for m in record["prompt"]] == [m["role"] for m in pair.messages]
    assert record["chosen"] == [{"role": "assistant", "content": "[2]"}]
    assert record["rejected"] == [{"role": "assistant", "content": "[1]"}]
    (record,) = llama_factory_records([pair])
    assert set(record) == {"instruction", "input", "chosen", "rejected", "system"}
    assert "who is a?" in record["instruction"] and record["input"] == ""


@pytest.mark.parametrize("form", ["preference", "llama-factory"])
def test_the_program_writes_both_kinds(tmp_path, form, capsys):
    answers = Answers((1,), "p", ("good", "bad"), (0.9, 0.1), ((), ()))
    rollouts = [dataclasses.replace(r, answers=answers) for r in ROLLOUTS[:2]]
    questions = tmp_path / "q.jsonl"
    write_jsonl(questions, [question_to_json(q) for q in QUESTIONS.values()])
    file = tmp_path / "r.jsonl"
    write_jsonl(file, [rollout_to_json(r) for r in rollouts])
    stage = Pairs(str(file), str(questions), form=form)  # type: ignore[arg-type]
    context = Context(Run(str(tmp_path / "run")), {"pairs": stage}, "pairs")
    run_stage(context, program.run)
    made = context.stage_directory
    counts = read_json(made / "counts.json")
    assert (counts["lists"]["pairs"], counts["lists"]["ties"]) == (1, 1)
    assert counts["answers"]["pairs"] == 2
    rows = [row for _, row in read_jsonl(made / "answers.jsonl")]
    assert "good" in json.dumps(rows[0]["chosen"]) and "bad" in json.dumps(rows[0]["rejected"])
    info = made / "dataset_info.json"
    assert info.exists() == (form == "llama-factory")
    if info.exists():
        declared = read_json(info)["dynarag_lists"]
        assert declared["ranking"] and (made / declared["file_name"]).exists()
        assert set(declared["columns"].values()) == set(rows[0])
