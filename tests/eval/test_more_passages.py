"""One rule for questions with more candidates than a prompt shows, the same in every stage."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_jsonl, write_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.objectives.terms import Objectives, SimPo, TokenNll
from dynarag_jax.records import write_questions
from dynarag_jax.rollout_records import Rollout, Trajectory, rollout_to_json
from dynarag_jax.sampling.windows import Seen, Windows, expected_calls, plan
from dynarag_jax.stages.bench import Bench
from dynarag_jax.stages.evaluate import Evaluate
from dynarag_jax.stages.feedback import Feedback
from dynarag_jax.stages.rerank import Rerank
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.config import Stream

from .conftest import IDS, PROMPTS, ask

QUESTIONS = [ask(i, passages, task="short") for i, passages in enumerate([5, 20, 6, 9, 3])]
MANY = {q.id for q in QUESTIONS if len(q.passages) > IDS}
RULES = ("windows", "show_first", "set_aside")


def ran(directory: Path, stage, name: str, rule: str = "windows") -> Path:
    run = Run(directory=str(directory), more_passages=rule, prompts=PROMPTS)  # type: ignore[arg-type]
    assert run_stage(Context(run, {name: stage}, name), program_of(name, stage).run)
    return directory / name


@pytest.mark.parametrize(
    "rule", ["windows", *(pytest.param(r, marks=pytest.mark.slow) for r in RULES[1:])]
)
def test_rerank_evaluate_and_bench_give_a_question_the_same_list(model, tmp_path, rule, capsys):
    path = tmp_path / "asked.jsonl"
    write_questions(path, QUESTIONS)
    place = ran(tmp_path, Rerank(str(model), (str(path),), batch=8), "rerank", rule)
    said = capsys.readouterr().err
    assert (
        "2 of 5 questions have more passages than prompts.ids = 6, 'q1' the first of them" in said
    )
    assert ("5 questions to rerank, about 1" in said) == (rule == "windows")
    lists = {row["id"]: row for _, row in read_jsonl(place / "asked.jsonl")}
    rejected = {row["id"] for _, row in read_jsonl(place / "rejects-asked.jsonl")}
    evaluate = Evaluate(
        {"m": str(model)}, str(path), top_k=(2,), examples=2, samples=2, shuffled=True, batch=8
    )
    place = ran(tmp_path, evaluate, "evaluate", rule)
    found = {(r["system"], r["id"]): r for _, r in read_jsonl(place / "predictions.jsonl")}
    bench = Bench(
        {"hotpotqa": str(path)}, models={"m": str(model)}, sampling=evaluate.sampling,
        answer_tokens={}, batch=8,
    )  # fmt: skip
    place = ran(tmp_path, bench, "bench", rule)
    benched = {
        (r["system"], r["id"]): r for _, r in read_jsonl(place / "predictions-hotpotqa.jsonl")
    }
    # Every question counts for every system.
    for rows in (found, benched):
        per_system = Counter(system for system, _ in rows)
        assert set(per_system.values()) == {len(QUESTIONS)}
    assert rejected == (MANY if rule == "set_aside" else set())
    for question in QUESTIONS:
        ours = [rows["m", question.id] for rows in (found, benched)]
        if question.id in rejected:
            assert all("has" in row["failed"] and not row["answer"] for row in ours)
            assert {found[s, i]["score"] for s, i in found if i == question.id} == {0.0}
            continue
        row = lists[question.id]
        assert [one["list"] for one in ours] == [row["list"]] * 2
        assert [one["chosen"] for one in ours] == [row["chosen"]] * 2
        windows = rule == "windows" and question.id in MANY
        assert (row["calls"] > 1) == windows
        assert row["shown"] == (
            len(question.passages) if windows else min(len(question.passages), IDS)
        )
        if not windows:
            assert max([*row["list"], *found["m, shuffled", question.id]["list"], 0]) <= IDS


@pytest.mark.slow  # two stages a rule
@pytest.mark.parametrize("rule", RULES)
def test_what_is_learned_shows_the_first_passages_or_leaves_the_question_out(
    model, tmp_path, rule, capsys
):
    path = tmp_path / "train.jsonl"
    experts = [dataclasses.replace(q, expert=(2, 1)) for q in QUESTIONS]
    write_questions(path, experts)
    stream = Stream(batch=8)
    sft = Sft(init=str(model), questions=str(path), reranker=stream, generator=stream, steps=1)
    ran(tmp_path, sft, "sft", rule)
    rollouts = [
        Rollout(
            id=q.id, shown=min(len(q.passages), IDS),
            trajectories=(Trajectory((1,), reward=1.0), Trajectory((2,), reward=0.0)),
            policy="p", reference="r",
        )
        for q in experts
    ]  # fmt: skip
    lines = tmp_path / "rollouts.jsonl"
    write_jsonl(lines, [rollout_to_json(r) for r in rollouts])
    chosen = Objectives(nll=TokenNll(weight=0.0), simpo=SimPo(weight=1.0))
    feedback = Feedback(
        init=str(model), questions=str(path), rollouts=str(lines), steps=1,
        reranker=Stream(batch=8, objectives=chosen), generator=Stream(batch=0),
    )  # fmt: skip
    ran(tmp_path, feedback, "feedback", rule)
    said = capsys.readouterr().err
    done = "set aside" if rule == "set_aside" else "their first 6 are shown"
    for name in ("train.jsonl", "rollouts.jsonl"):
        assert (
            f"{name}: 2 of 5 questions have more passages than prompts.ids = 6, 'q1' the first of "
            f"them with 20: {done} (more_passages = {rule})"
        ) in said
    assert "[sft] step 1 of 1: loss " in said  # at once, not at the end of log_every steps
    kept = 3 if rule == "set_aside" else 5
    assert f"{kept} pairs of lists from {kept} questions" in said


def test_a_rule_that_sets_all_aside_is_refused_in_one_line(model, tmp_path):
    path = tmp_path / "train.jsonl"
    write_questions(path, [ask(1, 9, expert=(1,))])
    for name, stage in {
        "sft": Sft(init=str(model), questions=str(path), steps=1),
        "evaluate": Evaluate({"m": str(model)}, str(path)),
        "rerank": Rerank(str(model), (str(path),)),
    }.items():
        with pytest.raises(InputError, match="'q1' has 9 passages") as error:
            ran(tmp_path, stage, name, "set_aside")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [Rerank, Evaluate, Bench])
def test_windows_that_nothing_reads_are_refused(kind):
    with pytest.raises(InputError, match="more_passages = show_first reads no windows"):
        kind(more_passages="show_first", windows=Windows(window=5, budget=2))
    kind(more_passages="show_first")


@pytest.mark.parametrize("n", [1, 6, 7, 20, 100])
def test_the_prompts_expected_bound_those_of_any_reranker_that_keeps_something(n):
    windows = Windows(window=6, budget=2)
    least, most = expected_calls(n, windows)

    def calls(keep):
        going, answers, count = plan(n, windows), None, 0
        while True:
            try:
                views = next(going) if answers is None else going.send(answers)
            except StopIteration:
                return count
            count += len(views)
            answers = [Seen(tuple(range(1, 1 + keep(count)))[: len(v)], len(v)) for v in views]

    for keep in (lambda i: 1, lambda i: 1 + i % 2, lambda i: 2, lambda i: 2 - i % 2):
        assert least <= calls(keep) <= most
