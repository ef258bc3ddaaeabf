"""Files of predictions, read and scored: what ``score`` and ``compare`` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynarag_jax.evaluation.outputs import write_scores, write_trec
from dynarag_jax.evaluation.protocols import ScoringProtocol, answerer, check_protocol, note
from dynarag_jax.evaluation.runs import Scored, score_files
from dynarag_jax.evaluation.scoring import CUTOFFS, check_dataset, require_positive
from dynarag_jax.launch.context import Context, StageDone
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.processes import once
from dynarag_jax.stages.common.files import inputs, sources


@dataclass(frozen=True)
class ScoredPredictions:
    """Predictions of one or several systems on the same questions, and how they are scored."""

    questions: tuple[str, ...] = ()
    """question files; every one of their questions counts"""
    predictions: tuple[str, ...] = ()
    """files of predictions, {id, answer} a line and more (see dynarag_jax/evaluation/predictions):
    FILE, or NAME=FILE to say what the system is called; one may hold several systems"""
    dataset: str = ""
    """benchmark of the questions that do not say theirs: nq, triviaqa, hotpotqa, ...; without one,
    the form of the answers decides"""
    protocol: ScoringProtocol = "benchmark"
    """benchmark: as the benchmarks' authors score; released-code: as the released DynamicRAG
    scripts do, mistakes and all, for comparison with their numbers"""
    cutoffs: tuple[int, ...] = CUTOFFS
    """of recall, precision, nDCG and answer recall of the lists"""
    metrics: MetricsConfig = MetricsConfig()

    stage_name: ClassVar[str]
    """how messages call the stage"""

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        require_positive(self.stage_name, "cutoffs", self.cutoffs)
        check_protocol(self.protocol, self.metrics)


def score_or_show(
    context: Context, stage: ScoredPredictions, page: str
) -> tuple[Scored, str] | None:
    """Score the predictions and write the scores: what was found, and its page as Markdown.

    Of several processes process 0 does it; None in the others.

    Raises:
        StageDone: everything stands already; the file ``page`` has been printed.
        InputError: a file is missing or cannot be read, or a prediction's question is unknown.
    """
    questions = [path for _, path in sources(context, stage.questions, "questions")]
    named = sources(context, stage.predictions, "predictions")
    files = inputs({"questions": questions, "predictions": [path for _, path in named]})
    try:
        context.manifest(inputs=files)
    except StageDone:
        context.print((context.stage_directory / page).read_text())
        raise
    scored = once(
        lambda: score_files(
            questions,
            named,
            dataset=stage.dataset,
            cutoffs=stage.cutoffs,
            answerer=answerer(stage.protocol, stage.dataset, stage.metrics),
        )
    )
    directory = context.begin()

    def write() -> tuple[Scored, str]:
        assert scored is not None
        write_trec(directory / "trec", scored)
        _, text = write_scores(
            directory,
            scored.flat(),
            stage.protocol,
            note(stage.protocol) + scored.notes(),
            foot=stage.metrics.note(),
            seed=context.seed,
        )
        return scored, text

    return once(write)
