"""Gold lists against hard negatives: what a pair is, who has none, and that feedback takes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Passage, Question, write_questions
from dynarag_jax.rollout_records import read_rollouts
from dynarag_jax.stages import contrast, reference
from dynarag_jax.stages.contrast import Contrast
from dynarag_jax.stages.reference import Reference
from dynarag_jax.training.preferences import Expected, check_rollouts, judge


def ask(name: str, gold: tuple[int, ...] | None, passages: int = 4) -> Question:
    shown = tuple(Passage(f"{name}/{i}", f"river {i}") for i in range(1, passages + 1))
    needed = None if gold is None else tuple(f"{name}/{i}" for i in gold)
    return Question(name, f"where is port {name}?", ("here",), passages=shown, gold=needed)


def written(directory: Path, questions: list[Question], **more) -> Context:
    path = directory / "q.jsonl"
    write_questions(path, questions)
    stage = Contrast(questions=str(path), **more)
    context = Context(Run(str(directory / "run")), {"contrast": stage}, "contrast")
    run_stage(context, contrast.run)
    return context


PROMPTS = PromptConfig(style="compact", ids=4, max_list=3)


@pytest.mark.parametrize(
    ("negatives", "wrong"), [("first", (1, 3)), ("replace", (2, 1)), ("random", (1, 3))]
)
def test_needed_passages_are_preferred_to_as_many_others(tmp_path, capsys, negatives, wrong):
    questions: list[Question] = [
        ask("pair", (4, 2)), ask("unmarked", None), ask("none", ()), ask("far", (5,), passages=6),
        ask("all", (1, 2, 3)),
    ]  # fmt: skip
    written(tmp_path, questions, negatives=negatives, prompts=PROMPTS)
    made = {r.id: r for r in read_rollouts(tmp_path / "run" / "contrast" / "rollouts.jsonl")}
    best, worst = made["pair"].trajectories
    assert (best.list, best.reward, worst.reward) == ((2, 4), 1.0, 0.0)
    assert worst.list == wrong or (negatives == "random" and sorted(worst.list) == [1, 3])
    assert set(made) == {"pair"} | ({"all"} if negatives == "replace" else set())
    said = capsys.readouterr().err
    assert "1 do not say which passages they need" in said
    assert "2 have no needed passage among their candidates" in said


@given(
    st.sets(st.integers(1, 6), max_size=4), st.integers(1, 6), st.integers(1, 4),
    st.sampled_from(["first", "random", "replace"]),
)  # fmt: skip
def test_pairs_are_valid_lists_of_one_length(gold, ids, longest, negatives):
    import random

    stage = Contrast(negatives=negatives, prompts=PromptConfig(ids=ids, max_list=longest))
    question = ask("q", tuple(gold), passages=6)
    right = tuple(sorted(i for i in gold if i <= ids))[:longest]
    if not right:
        return
    wrong = contrast.negative_list(question, right, ids, stage, random.Random(0))
    if not wrong:
        others = ids - len(right)
        assert others < (1 if negatives == "replace" else len(right))
        return
    assert len(wrong) == len(right) == len(set(wrong)) and wrong != right
    assert all(1 <= i <= ids for i in wrong)
    same = set(wrong) & set(right)
    assert same == (set(right[:-1]) if negatives == "replace" else set())


def referenced(directory: Path, model: Path, prompts: PromptConfig, **fields):
    """The pairs of ``written`` with log-probabilities under a model."""
    stage = Reference(
        model=str(model), rollouts=str(directory / "run" / "contrast" / "rollouts.jsonl"),
        questions=str(directory / "q.jsonl"), prompts=prompts, dtype="float32", batch=4, **fields,
    )  # fmt: skip
    context = Context(Run(str(directory / "run")), {"reference": stage}, "reference")
    context.mesh = jax.make_mesh(  # type: ignore[misc] - one device, of the eight simulated
        (1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1],
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )  # fmt: skip
    run_stage(context, reference.run)
    return read_rollouts(directory / "run" / "reference" / "rollouts.jsonl")


def test_feedback_takes_them_once_the_reference_has_scored_them(tmp_path, tiny_model, tiny_policy):
    policy, prompts = tiny_policy
    questions = [ask(f"q{i}", (1 + i % 3,)) for i in range(3)]
    written(tmp_path, questions, prompts=prompts)
    pairs = tmp_path / "run" / "contrast" / "rollouts.jsonl"
    scored = referenced(tmp_path, tiny_model, prompts)
    dpo = Objectives(nll=TokenNll(0.0), dpo=Dpo(1.0))
    expected = Expected(
        pairs, policy.fingerprint, "model", scored[0].tokenizer, prompts.max_list, "float32"
    )
    check_rollouts(scored, dpo, expected)
    kept, counts = judge(scored, pairs=True)
    assert len(kept) == 3 and not counts.ties
    for ranked, question in zip(kept, questions, strict=True):
        best, worst = (ranked.rollout.trajectories[i] for i in ranked.order)
        assert best.list == question.gold_list() and set(best.list).isdisjoint(worst.list)
        assert best.reference_logps and worst.reference_logps


def test_a_pair_that_the_prompt_cannot_show_is_refused_or_left_out_and_counted(
    tmp_path, tiny_model, tiny_policy, capsys
):
    policy, prompts = tiny_policy
    questions = [ask("q1", (1,)), ask("q2", (3,))]

    def shown(room):
        short = dataclasses.replace(prompts, rerank_tokens=room)
        made = ExampleMaker(policy.tokenizer, policy.spelling, short)
        return min(made.rerank_prompt(question).shown for question in questions)

    # Room for two passages and not for a third; the first that is not needed is shown.
    room = next(n for n in range(40, prompts.rerank_tokens) if shown(n) == 2)
    small = dataclasses.replace(prompts, rerank_tokens=room)
    written(tmp_path, questions, prompts=small)
    with pytest.raises(InputError, match=r"question 'q2': the list \[3\] holds 3, outside 1..2"):
        referenced(tmp_path, tiny_model, small)
    scored = referenced(tmp_path, tiny_model, small, not_shown="leave_out")
    assert [r.id for r in scored] == ["q1"]
    assert "1 of 2 questions are left out" in capsys.readouterr().err


def test_a_file_without_any_pair_is_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    write_questions(path, [dataclasses.replace(ask("q", None), id="q")])
    context = Context(Run(str(tmp_path)), {"contrast": Contrast(str(path))}, "contrast")
    with pytest.raises(InputError, match=r"no question gives a pair \(1 do not say which"):
        contrast.run(context, Contrast(str(path), prompts=PROMPTS))
    assert json.loads(path.read_text().splitlines()[0])["id"] == "q"
