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

from dataclasses import dataclass

from dynarag_jax.evaluation.outputs import write_scores, write_trec
from dynarag_jax.evaluation.protocols import ScoringProtocol, answerer, check_protocol, note
from dynarag_jax.evaluation.runs import score_files
from dynarag_jax.evaluation.scoring import CUTOFFS, check_dataset, require_positive
from dynarag_jax.launch.context import Context, StageDone
from dynarag_jax.metrics.normalizers import MetricsConfig
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
    metrics: MetricsConfig = MetricsConfig()

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        require_positive("score", "cutoffs", self.cutoffs)
        check_protocol(self.protocol, self.metrics)


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
        answerer=answerer(stage.protocol, stage.dataset, stage.metrics),
    )
    write_trec(context.stage_directory / "trec", scored)
    _, page = write_scores(
        context.stage_directory,
        scored.flat(),
        stage.protocol,
        note(stage.protocol) + scored.notes(),
        foot=stage.metrics.note(),
        seed=context.seed,
    )
    context.print(page)
