"""Score predictions, whoever made them: all metrics of the benchmarks, with intervals.

    python -m eval.score --questions nq.jsonl --predictions answers.jsonl --dataset nq
    python -m eval.score --questions nq.jsonl --predictions ours=a.jsonl theirs=b.jsonl
    python -m eval.score configs/llama3_8b.py --stage score

A prediction is a line {"id", "answer"}; "list" or "chosen" say which passages were read. Every
question counts: what has no prediction counts 0, in a column of its own. Prints Markdown, and
writes scores.md, scores.json, rows.jsonl (a line a question and system) and TREC runs.
"""

from __future__ import annotations

from dynarag_jax.evaluation.protocols import answerer, note
from dynarag_jax.evaluation.runs import Scored, score_files
from dynarag_jax.evaluation.scoring import row_to_json
from dynarag_jax.evaluation.summary import Summary, summarize, summary_to_json
from dynarag_jax.evaluation.tables import file_name, report, trec_judgments, trec_run
from dynarag_jax.evaluation_stages import Score
from dynarag_jax.files import atomic_write, write_json, write_jsonl
from train.context import StageDone
from train.plain import inputs, main, sources
from train.program import Context


def write(
    context: Context, scored: Scored, protocol: str, notes: list[str]
) -> tuple[list[Summary], str]:
    """Write rows, scores, tables and TREC files; returns the summaries and the page."""
    place = context.stage_directory
    rows = scored.flat()
    summaries = summarize(rows, context.seed)
    page = report(summaries, notes)
    write_jsonl(place / "rows.jsonl", [row_to_json(row) for row in rows])
    for system, own in scored.predictions.items():
        if lines := trec_run(scored.questions, own, system):
            with atomic_write(place / "trec" / f"{file_name(system)}.run") as stream:
                stream.write("\n".join(lines) + "\n")
    if lines := trec_judgments(scored.questions):
        with atomic_write(place / "trec" / "judgments.qrels") as stream:
            stream.write("\n".join(lines) + "\n")
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
        print((context.stage_directory / "scores.md").read_text(), end="")
        raise
    scored = score_files(
        questions,
        named,
        dataset=stage.dataset,
        cutoffs=stage.cutoffs,
        answerer=answerer(stage.protocol, stage.dataset),
    )
    _, page = write(context, scored, stage.protocol, note(stage.protocol) + scored.notes())
    print(page, end="")


if __name__ == "__main__":
    main("score", Score, run)
