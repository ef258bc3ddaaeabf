"""What a scoring writes: rows, scores, tables, and TREC's files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dynarag_jax.atomic import atomic_write
from dynarag_jax.evaluation.runs import Scored
from dynarag_jax.evaluation.scoring import Row, row_to_json
from dynarag_jax.evaluation.summary import Summary, summarize, summary_to_json
from dynarag_jax.evaluation.tables import file_name, report
from dynarag_jax.files import write_json, write_jsonl
from dynarag_jax.retrieval.trec import judgment_lines, list_lines, value_lines


def write_scores(
    directory: Path,
    rows: Sequence[Row],
    protocol: str,
    notes: Sequence[str],
    *,
    foot: str = "",
    seed: int = 0,
) -> tuple[list[Summary], str]:
    """Write rows.jsonl, scores.json, scores.md, and metrics by question in TREC's form.

    Args:
      notes: what stands above the tables.
      foot: what stands below them, beside what is always said there.

    Returns:
      The summaries, and the page as Markdown.
    """
    summaries = summarize(rows, seed)
    page = report(summaries, notes, foot)
    write_jsonl(directory / "rows.jsonl", [row_to_json(row) for row in rows])
    if protocol == "benchmark":
        _write_values(directory / "trec", rows)
    with atomic_write(directory / "scores.md") as stream:
        stream.write(page)
    scores = {
        "protocol": protocol,
        "notes": [*notes, *([foot] if foot else [])],
        "summaries": [summary_to_json(summary) for summary in summaries],
    }
    write_json(directory / "scores.json", scores)
    return summaries, page


def write_trec(directory: Path, scored: Scored) -> None:
    """Every system's lists as a TREC run, and the needed passages as judgments."""
    files: dict[str, Iterable[str]] = {}
    for system, predictions in scored.predictions.items():
        lists = [
            (question.id, ranking)
            for question in scored.questions
            if question.id in predictions
            and (ranking := predictions[question.id].ranking(question)) is not None
        ]
        name = file_name(system)
        while f"{name}.run" in files:
            name += "-"
        files[f"{name}.run"] = list_lines(lists, file_name(system))
    files["judgments.qrels"] = judgment_lines(scored.questions)
    for name, lines in files.items():
        if text := "".join(lines):
            with atomic_write(directory / name) as stream:
                stream.write(text)


def _write_values(directory: Path, rows: Sequence[Row]) -> None:
    """Every question's metrics in the form of ``trec_eval -q``, a file a system.

    ``num_failed`` counts the questions that scored 0 for want of an answer. Of several datasets,
    the metrics carry the dataset before their name (``hotpotqa/em``).
    """
    for system in dict.fromkeys(row.system for row in rows):
        answered = [row for row in rows if row.system == system and row.answer]
        datasets = list(dict.fromkeys(row.dataset for row in answered))
        lines = [f"runid\tall\t{file_name(system)}\n"] if answered else []
        for dataset in datasets:
            part = [row for row in answered if row.dataset == dataset]
            failed = sum(row.state != "answered" for row in part)
            counts = {"num_q": len(part), "num_failed": failed}
            prefix = f"{dataset}/" if len(datasets) > 1 else ""
            lines += value_lines([(row.id, row.answer) for row in part], counts, prefix)
        if lines:
            with atomic_write(directory / f"{file_name(system)}.values") as stream:
                stream.write("".join(lines))
