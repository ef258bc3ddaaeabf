"""Score predictions, whoever made them: all metrics of the benchmarks, with intervals.

    dynarag score --questions nq.jsonl --predictions answers.jsonl --dataset nq
    dynarag score --questions nq.jsonl --predictions ours=a.jsonl theirs=b.jsonl
    dynarag score configs/bench.py

A prediction is a line {"id", "answer"}; "list" or "chosen" say which passages were read. Every
question counts: what has no prediction counts 0, in a column of its own. Prints Markdown, and
writes scores.md, scores.json, rows.jsonl (a line a question and system), and in TREC's forms the
lists (trec/SYSTEM.run, judgments.qrels) and the metrics by question (trec/SYSTEM.values).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.evaluation.protocols import ScoringProtocol, answerer, note
from dynarag_jax.evaluation.runs import Scored, score_files
from dynarag_jax.evaluation.scoring import (
    CUTOFFS,
    Row,
    check_dataset,
    require_positive,
    row_to_json,
)
from dynarag_jax.evaluation.summary import Summary, summarize, summary_to_json
from dynarag_jax.evaluation.tables import file_name, report, trec_judgments, trec_run
from dynarag_jax.files import atomic_write, write_json, write_jsonl
from dynarag_jax.launch.context import Context, StageDone
from dynarag_jax.metrics.tables import Scored as ScoredAnswer
from dynarag_jax.metrics.tables import trec
from dynarag_jax.stages.common.files import inputs, sources

CONFIG_OPTIONAL = True
"""Options alone will do: no config file is needed."""


@dataclass(frozen=True)
class Score:
    """Score files of predictions: every metric of the benchmarks, with intervals."""

    questions: tuple[str, ...] = ()
    """question files; every one of their questions counts"""
    predictions: tuple[str, ...] = ()
    """files of predictions, {id, answer} a line and more (see dynarag_jax/evaluation/predictions):
    FILE, or NAME=FILE to say what the system is called"""
    dataset: str = ""
    """benchmark of the questions that do not say theirs: nq, triviaqa, hotpotqa, ...; without one,
    the form of the answers decides"""
    protocol: ScoringProtocol = "benchmark"
    """benchmark: as the benchmarks' authors score; released-code: as the released DynamicRAG
    scripts do, mistakes and all, for comparison with their numbers"""
    cutoffs: tuple[int, ...] = CUTOFFS
    """of recall, precision, nDCG and answer recall of the lists"""

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        require_positive("score", "cutoffs", self.cutoffs)


def write_trec(place: Path, scored: Scored) -> None:
    """Every system's lists as a TREC run, and the needed passages as judgments."""
    files: dict[str, list[str]] = {}
    for system, own in scored.predictions.items():
        name = file_name(system)
        while f"{name}.run" in files:
            name += "-"
        files[f"{name}.run"] = trec_run(scored.questions, own, system)
    files["judgments.qrels"] = trec_judgments(scored.questions)
    for name, lines in files.items():
        if lines:
            with atomic_write(place / name) as stream:
                stream.write("\n".join(lines) + "\n")


def write_values(place: Path, rows: Sequence[Row]) -> None:
    """Every question's metrics in the form of ``trec_eval -q``, a file a system."""
    for system in dict.fromkeys(row.system for row in rows):
        own = [
            ScoredAnswer(r.id, r.answer, r.dataset, r.type, failed=r.state != "answered")
            for r in rows
            if r.system == system and r.answer
        ]
        if own:
            with atomic_write(place / f"{file_name(system)}.values") as stream:
                stream.write(trec(system, own))


def write(
    context: Context, rows: Sequence[Row], protocol: str, notes: list[str]
) -> tuple[list[Summary], str]:
    """Write rows, scores and tables; returns the summaries and the page."""
    place = context.stage_directory
    summaries = summarize(rows, context.seed)
    page = report(summaries, notes)
    write_jsonl(place / "rows.jsonl", [row_to_json(row) for row in rows])
    if protocol == "benchmark":
        write_values(place / "trec", rows)
    with atomic_write(place / "scores.md") as stream:
        stream.write(page)
    scores = {
        "protocol": protocol,
        "notes": notes,
        "summaries": [summary_to_json(summary) for summary in summaries],
    }
    write_json(place / "scores.json", scores)
    return summaries, page


def run(context: Context, stage: Score) -> None:
    """Score and write."""
    context.require_one_process()
    questions = [path for _, path in sources(context, stage.questions, "questions")]
    named = sources(context, stage.predictions, "predictions")
    files = inputs({"questions": questions, "predictions": [path for _, path in named]})
    try:
        context.manifest(inputs=files)
    except StageDone:
        context.print((context.stage_directory / "scores.md").read_text())
        raise
    scored = score_files(
        questions,
        named,
        dataset=stage.dataset,
        cutoffs=stage.cutoffs,
        answerer=answerer(stage.protocol, stage.dataset),
    )
    write_trec(context.stage_directory / "trec", scored)
    _, page = write(context, scored.flat(), stage.protocol, note(stage.protocol) + scored.notes())
    context.print(page)
