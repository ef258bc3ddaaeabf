"""Gather a run's results: summary.json, the table on the terminal, report.html.

dynarag report configs/quickstart.py
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import NO_RETRIEVAL, ORACLE
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.intervals import bootstrap, paired_bootstrap
from dynarag_jax.metrics.ranking import size_matrix, sizes
from dynarag_jax.records import Question, Rollout, read_questions, read_rollouts
from dynarag_jax.report import (
    Choice,
    Curve,
    Example,
    KMatrix,
    RunFacts,
    RunReport,
    SampledList,
    ShownPassage,
    SystemRow,
    TypeRow,
    TypeScores,
    terminal_table,
    write_report,
    write_summary,
)
from dynarag_jax.stages.evaluate import Evaluate
from dynarag_jax.stages.rollout import SampleRollouts
from dynarag_jax.training.config import Train


@dataclass(frozen=True)
class Report:
    """Gather a run's results: summary.json, a table on the terminal, report.html."""

    title: str = "A dynamic reranker, trained"
    evaluation: str = "evaluate"
    """the stage whose predictions are reported"""
    before: str = "behavior cloning"
    """the model before feedback, by its name in the evaluation"""
    after: str = "after feedback"
    """the model after feedback"""
    notes: tuple[str, ...] = ()
    """remarks shown at the top of the page"""


Rows = list[dict[str, Any]]


def role(system: str, stage: Report) -> Any:
    """What a system is, for the report's colors and headline."""
    fixed = {
        stage.before: "cloning",
        stage.after: "feedback",
        NO_RETRIEVAL: "none",
        ORACLE: "oracle",
    }
    return fixed.get(system, "fixed" if system.startswith("top-") else "other")


def system_row(name: str, rows: Rows, stage: Report, seed: int) -> SystemRow:
    """A system's means with their intervals."""

    def interval(figure: str) -> Any:
        values = [row[figure] for row in rows]
        return None if any(v is None for v in values) else bootstrap(values, seed=seed)

    return SystemRow(
        name=name,
        role=role(name, stage),
        answer=interval("score"),
        set_f1=interval("set_f1"),
        mean_k=interval("k"),
        tokens=interval("tokens"),
        k_sd=sizes([row["k"] for row in rows]).sd,
        failed=sum("failed" in row for row in rows),
    )


def type_rows(before: Rows | None, after: Rows | None) -> list[TypeRow]:
    """The scores by type of question, before and after feedback."""

    def scores(rows: Rows | None, name: str) -> TypeScores | None:
        part = [row for row in rows or [] if row["type"] == name]
        if not part:
            return None
        known = all(row["set_f1"] is not None for row in part)
        mean = lambda figure: sum(row[figure] for row in part) / len(part)  # noqa: E731
        return TypeScores(mean("score"), mean("set_f1") if known else None, mean("k"))

    some = after or before or []
    found = []
    for name in dict.fromkeys(row["type"] for row in some if row["type"]):
        part = [row for row in some if row["type"] == name]
        needed = [row["needed"] for row in part]
        mean = None if any(n is None for n in needed) else sum(needed) / len(needed)
        found.append(TypeRow(name, len(part), mean, scores(before, name), scores(after, name)))
    return sorted(found, key=lambda row: (row.needed_k is None, row.needed_k or 0.0, row.name))


def matrix(title: str, rows: Rows | None) -> KMatrix | None:
    """Needed k against chosen k; None where the needed passages are unknown."""
    if not rows or any(row["needed"] is None for row in rows):
        return None
    return KMatrix(title, size_matrix([r["needed"] for r in rows], [r["k"] for r in rows]))


def curves(context: Context) -> list[Curve]:
    """Loss curves of the training stages, reward curves of the rollouts."""
    found = []
    for name, stage in context.stages.items():
        path = context.directory / name / "metrics.jsonl"
        if not path.is_file() or not isinstance(stage, Train | SampleRollouts):
            continue
        lines = [line for _, line in read_jsonl(path)]
        if len(lines) < 2:
            continue
        steps = [line["step"] for line in lines]

        def panel(label: str, wanted: Mapping[str, str], axis: str = "training step") -> None:
            series = {
                shown: [line.get(key) for line in lines]  # noqa: B023
                for key, shown in wanted.items()
                if any(key in line for line in lines)  # noqa: B023
            }
            if series:
                found.append(Curve(name, label, steps, series, axis))  # noqa: B023

        if isinstance(stage, SampleRollouts):
            panel("mean reward", {"reward": "reward"}, "questions sampled")
            continue
        panel(
            "loss (nats per token)",
            {
                "reranker/nll": "lists",
                "generator/nll": "answers",
                "reranker/dpo/chosen_nll": "chosen lists",
            },
        )
        for term, objective in stage.reranker.objectives.active().items():
            figures = f"reranker/{term}"
            if any(f"{figures}/chosen_reward" in line for line in lines):
                panel(f"{term}: loss", {figures: "loss"})
                panel(
                    f"{term}: implicit reward",
                    {
                        f"{figures}/chosen_reward": "best list",
                        f"{figures}/rejected_reward": "worst list",
                    },
                )
                panel(f"{term}: share of pairs ranked right", {f"{figures}/accuracy": "pairs"})
            elif objective.reads_behavior:
                panel(f"{term}: share of ratios clipped", {f"{figures}/clipped": "clipped"})
                panel(f"{term}: divergence", {f"{figures}/kl_to_sampler": "from the sampler"})
    return found


def example(
    question: Question, rollout: Rollout, chosen: Sequence[tuple[str, dict[str, Any]]]
) -> Example:
    """A question in full: its passages, the lists sampled, what each policy chose."""
    gold = question.gold_list()
    return Example(
        id=question.id,
        question=question.text,
        answers=question.answers,
        type=question.type,
        passages=[
            ShownPassage(i, p.text, p.title, None if gold is None else i in gold)
            for i, p in enumerate(question.passages[: rollout.shown], 1)
        ],
        sampled=[
            SampledList(t.list, t.count, t.answer, t.reward, t.terms) for t in rollout.trajectories
        ],
        choices=[Choice(n, r["list"], r["answer"], r["score"] == 1) for n, r in chosen],
    )


def gather(context: Context, stage: Report) -> RunReport:
    """Read everything the run has written about itself."""
    evaluate = context.stages.get(stage.evaluation)
    if not isinstance(evaluate, Evaluate):
        raise InputError(f"report.evaluation = '{stage.evaluation}' is no evaluation stage")
    place = context.directory / stage.evaluation
    by_system: dict[str, Rows] = {}
    for _, row in read_jsonl(place / "predictions.jsonl"):
        by_system.setdefault(row["system"], []).append(row)
    before, after = by_system.get(stage.before), by_system.get(stage.after)
    records = {
        name: read_json(context.directory / name / "run.json")
        for name in context.stages
        if name != context.stage and (context.directory / name / "run.json").is_file()
    }
    questions = {q.id: q for q in read_questions(context.path(evaluate.questions))}
    needed = [q.gold_list() for q in questions.values()]
    known = [len(g) for g in needed if g is not None]
    examples = []
    if (place / "examples.jsonl").is_file():
        rows = {(system, row["id"]): row for system in by_system for row in by_system[system]}
        for rollout in read_rollouts(place / "examples.jsonl"):
            chosen = [
                (name, rows[name, rollout.id])
                for name in evaluate.models
                if (name, rollout.id) in rows
            ]
            examples.append(example(questions[rollout.id], rollout, chosen))
    change = None
    if before and after:
        score = {row["id"]: row["score"] for row in before}
        change = paired_bootstrap(
            [row["score"] for row in after], [score[row["id"]] for row in after]
        )
    facts = RunFacts(
        config=Path(sys.argv[1]).stem if len(sys.argv) > 1 else context.directory.name,
        seed=context.seed,
        questions=len(questions),
        candidates=min(max(len(q.passages) for q in questions.values()), evaluate.prompts.ids),
        needed_mean_k=sum(known) / len(known) if len(known) == len(needed) else None,
        reward=evaluate.reward.describe(),
        seconds={name: record["seconds"] for name, record in records.items()},
        peak_memory_bytes=max(
            (r["peak_memory_bytes"] for r in records.values() if "peak_memory_bytes" in r),
            default=None,
        ),
        versions=records[stage.evaluation]["versions"],
        command=shlex.join(["python", *sys.orig_argv[1:]]),
    )
    return RunReport(
        title=stage.title,
        facts=facts,
        systems=[system_row(name, rows, stage, context.seed) for name, rows in by_system.items()],
        curves=curves(context),
        k_before=matrix(stage.before, before),
        k_after=matrix(stage.after, after),
        change=change,
        types=type_rows(before, after),
        examples=examples,
        notes=stage.notes,
    )


def run(context: Context, stage: Report) -> None:
    """Write summary.json and report.html, here and at the top of the run directory."""
    place = context.directory / stage.evaluation
    context.manifest(inputs={"predictions": place / "predictions.jsonl"})
    found = gather(context, stage)
    write_summary(context.stage_directory / "summary.json", found)
    write_report(context.stage_directory / "report.html", found)
    for name in ("summary.json", "report.html"):
        shutil.copyfile(context.stage_directory / name, context.directory / name)
    context.log("\n" + terminal_table(found))
    context.log(f"read {context.directory / 'report.html'}")
