"""Gather a run's results: summary.json, the table on the terminal, report.html.

    dynarag report configs/quickstart.py

Prints the table, and writes report.html and summary.json into the run's directory.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.intervals import paired_bootstrap
from dynarag_jax.processes import once
from dynarag_jax.report import (
    Curve,
    RunFacts,
    RunReport,
    terminal_table,
    write_figures,
    write_report,
    write_summary,
)
from dynarag_jax.report.gather import (
    answer_metric,
    config_name,
    needed_matrix,
    rank_rows,
    role_of,
    rollout_curves,
    shown_question,
    system_row,
    training_curves,
    type_rows,
)
from dynarag_jax.rollout_records import read_rollouts
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


def curves(context: Context) -> list[Curve]:
    """What every stage that trained or sampled logged of itself, in the order of the stages."""
    panels: list[Curve] = []
    for name, stage in context.stages.items():
        path = context.directory / name / "metrics.jsonl"
        if not path.is_file() or not isinstance(stage, Train | SampleRollouts):
            continue
        if not (lines := [line for _, line in read_jsonl(path)]):
            continue
        if isinstance(stage, SampleRollouts):
            panels += rollout_curves(name, lines)
            continue
        streams = {"reranker": stage.reranker, "generator": stage.generator}
        terms = {
            name: [t for t in stream.objectives.active() if t not in ("nll", "prompt_nll")]
            for name, stream in streams.items()
        }
        panels += training_curves(name, lines, terms)
    return panels


def gather(context: Context, stage: Report) -> RunReport:
    """Read everything the run has written about itself."""
    evaluate = context.stages.get(stage.evaluation)
    if not isinstance(evaluate, Evaluate):
        raise InputError(f"report.evaluation = '{stage.evaluation}' is no evaluation stage")
    directory = context.directory / stage.evaluation
    by_system: dict[str, list[dict[str, Any]]] = {}
    for _, row in read_jsonl(directory / "predictions.jsonl"):
        by_system.setdefault(row["system"], []).append(row)
    before, after = by_system.get(stage.before), by_system.get(stage.after)
    records = {
        name: read_json(context.directory / name / "run.json")
        for name in context.stages
        if name != context.stage and (context.directory / name / "run.json").is_file()
    }
    evaluated = {row["id"] for rows in by_system.values() for row in rows}
    source = context.path(evaluate.questions)
    questions = {q.id: q for q in read_questions(source, context.log) if q.id in evaluated}
    if lost := evaluated - questions.keys():
        raise InputError(
            f"{source}: question '{min(lost)}' was evaluated and is not in the file any more; "
            f"evaluate again"
        )
    needed = [q.gold_list() for q in questions.values()]
    known = [len(g) for g in needed if g is not None]
    examples = []
    if (directory / "examples.jsonl").is_file():
        rows = {(system, row["id"]): row for system in by_system for row in by_system[system]}
        for rollout in read_rollouts(directory / "examples.jsonl"):
            chosen = [
                (name, rows[name, rollout.id])
                for name in evaluate.models
                if (name, rollout.id) in rows
            ]
            examples.append(shown_question(questions[rollout.id], rollout, chosen))
    change = None
    if before and after:
        score = {row["id"]: row["score"] for row in before}
        change = paired_bootstrap(
            [row["score"] for row in after], [score[row["id"]] for row in after]
        )
    command = records[stage.evaluation]["command"]
    facts = RunFacts(
        config=config_name(command) or context.directory.name,
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
        command=command,
    )
    return RunReport(
        title=stage.title,
        facts=facts,
        systems=[
            system_row(name, rows, role_of(name, stage.before, stage.after), context.seed)
            for name, rows in by_system.items()
        ],
        curves=curves(context),
        k_before=needed_matrix(stage.before, before),
        k_after=needed_matrix(stage.after, after),
        change=change,
        types=type_rows(before, after),
        ranks=rank_rows(list(questions.values()), evaluate.prompts.ids),
        examples=examples,
        answer_metric=answer_metric(list(questions.values())),
        notes=[*stage.notes, *([note] if (note := evaluate.metrics.note()) else [])],
    )


def run(context: Context, stage: Report) -> None:
    """Write summary.json, report.html and figures as SVG; the first two also atop the run."""
    directory = context.directory / stage.evaluation
    context.manifest(inputs={"predictions": directory / "predictions.jsonl"})
    gathered = once(lambda: gather(context, stage))
    directory = context.begin()
    once(lambda: write(context, directory, gathered))


def write(context: Context, directory: Path, found: Any) -> None:
    """Write what was gathered, and show it."""
    write_summary(directory / "summary.json", found)
    write_report(directory / "report.html", found)
    write_figures(directory, found)
    for name in ("summary.json", "report.html"):
        shutil.copyfile(directory / name, context.directory / name)
    context.log("\n" + terminal_table(found))
    context.log(f"read {context.directory / 'report.html'}")
