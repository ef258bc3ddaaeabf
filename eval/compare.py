"""Compare systems on the same questions: paired differences with intervals and p-values.

    python -m eval.compare --questions nq.jsonl --predictions before=a.jsonl after=b.jsonl
    python -m eval.compare --questions q.jsonl --predictions runs/x/evaluate/predictions.jsonl \\
        --baseline top-5

Each file may hold several systems. Prints Markdown, the systems' scores first, and writes
compare.md and compare.json beside what eval.score writes.
"""

from __future__ import annotations

from dynarag_jax.evaluation.comparison import compare, compared_to_json, comparison_table
from dynarag_jax.evaluation.protocols import answerer, note
from dynarag_jax.evaluation.runs import score_files
from dynarag_jax.evaluation_stages import Compare
from dynarag_jax.files import atomic_write, write_json
from eval.score import write, write_trec
from train.context import StageDone
from train.plain import inputs, main, sources
from train.program import Context


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
        print(page.read_text(), end="")
        raise
    scored = score_files(
        questions,
        named,
        dataset=stage.dataset,
        cutoffs=stage.cutoffs,
        answerer=answerer(stage.protocol, stage.dataset),
    )
    compared = compare(scored.rows, stage.baseline, context.seed, stage.every)
    write_trec(context.stage_directory / "trec", scored)
    notes = note(stage.protocol) + scored.notes()
    _, scores = write(context, scored.flat(), stage.protocol, notes)
    text = f"{scores}\n# Differences\n\n{comparison_table(compared)}"
    with atomic_write(page) as stream:
        stream.write(text)
    found = {"protocol": stage.protocol, "compared": [compared_to_json(c) for c in compared]}
    write_json(context.stage_directory / "compare.json", found)
    print(text, end="")


if __name__ == "__main__":
    main("compare", Compare, run)
