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
from typing import ClassVar

from dynarag_jax.launch.context import Context
from dynarag_jax.stages.common.scored import ScoredPredictions, score_or_show

CONFIG_OPTIONAL = True
"""Options alone will do: no config file is needed."""


@dataclass(frozen=True)
class Score(ScoredPredictions):
    """Score files of predictions: every metric of the benchmarks, with intervals."""

    stage_name: ClassVar[str] = "score"


def run(context: Context, stage: Score) -> None:
    """Score and write."""
    if found := score_or_show(context, stage, "scores.md"):
        context.print(found[1])
