"""Compare systems on the same questions: paired differences with intervals and p-values.

    python -m eval.compare --questions nq.jsonl --predictions before=a.jsonl after=b.jsonl
    python -m eval.compare --questions q.jsonl --predictions runs/x/evaluate/predictions.jsonl \\
        --baseline top-5

Each file may hold several systems. Prints Markdown, the systems' scores first, and writes
compare.md and compare.json beside what eval.score writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynarag_jax.evaluation.comparison import compare, compared_to_json, comparison_table
from dynarag_jax.evaluation.outputs import write_scores, write_trec
from dynarag_jax.evaluation.protocols import ScoringProtocol, answerer, check_protocol, note
from dynarag_jax.evaluation.runs import score_files
from dynarag_jax.evaluation.scoring import CUTOFFS, check_dataset, require_positive
from dynarag_jax.files import atomic_write, write_json
from dynarag_jax.launch.context import Context, StageDone
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.stages.common.files import inputs, sources

CONFIG_OPTIONAL = True
"""Options alone will do: no config file is needed."""


@dataclass(frozen=True)
class Compare:
    """Compare systems on the same questions: paired differences, intervals, p-values."""

    questions: tuple[str, ...] = ()
    """question files; every one of their questions counts"""
    predictions: tuple[str, ...] = ()
    """files of predictions, FILE or NAME=FILE; one may hold several systems"""
    baseline: str = ""
    """the system that the others are compared with; empty takes the first"""
    every: bool = False
    """compare all pairs of systems instead"""
    dataset: str = ""
    """benchmark of the questions that do not say theirs"""
    protocol: ScoringProtocol = "benchmark"
    """as of eval.score"""
    cutoffs: tuple[int, ...] = CUTOFFS
    """of recall, precision, nDCG and answer recall of the lists"""
    metrics: MetricsConfig = MetricsConfig()

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        require_positive("compare", "cutoffs", self.cutoffs)
        check_protocol(self.protocol, self.metrics)


def run(context: Context, stage: Compare) -> None:
    """Score, compare and write."""
    context.require_one_process()
    questions = [path for _, path in sources(context, stage.questions, "questions")]
    named = sources(context, stage.predictions, "predictions")
    files = inputs({"questions": questions, "predictions": [path for _, path in named]})
    page = context.stage_directory / "compare.md"
    try:
        context.manifest(inputs=files)
    except StageDone:
        context.print(page.read_text())
        raise
    scored = score_files(
        questions,
        named,
        dataset=stage.dataset,
        cutoffs=stage.cutoffs,
        answerer=answerer(stage.protocol, stage.dataset, stage.metrics),
    )
    compared = compare(scored.rows, stage.baseline, context.seed, stage.every)
    write_trec(context.stage_directory / "trec", scored)
    _, scores = write_scores(
        context.stage_directory,
        scored.flat(),
        stage.protocol,
        note(stage.protocol) + scored.notes(),
        foot=stage.metrics.note(),
        seed=context.seed,
    )
    text = f"{scores}\n# Differences\n\n{comparison_table(compared)}"
    with atomic_write(page) as stream:
        stream.write(text)
    found = {"protocol": stage.protocol, "compared": [compared_to_json(c) for c in compared]}
    write_json(context.stage_directory / "compare.json", found)
    context.print(text)
