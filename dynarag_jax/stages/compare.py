"""Compare systems on the same questions: paired differences with intervals and p-values.

    python -m eval.compare --questions nq.jsonl --predictions before=a.jsonl after=b.jsonl
    python -m eval.compare --questions q.jsonl --predictions runs/x/evaluate/predictions.jsonl \\
        --baseline top-5

Each file may hold several systems. Prints Markdown, the systems' scores first, and writes
compare.md and compare.json beside what eval.score writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynarag_jax.atomic import atomic_write
from dynarag_jax.evaluation.comparison import compare, compared_to_json, comparison_table
from dynarag_jax.files import write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.stages.common.scored import ScoredPredictions, score_or_show

CONFIG_OPTIONAL = True
"""Options alone will do: no config file is needed."""


@dataclass(frozen=True)
class Compare(ScoredPredictions):
    """Compare systems on the same questions: paired differences, intervals, p-values."""

    baseline: str = ""
    """the system that the others are compared with; empty takes the first"""
    every: bool = False
    """compare all pairs of systems instead"""

    stage_name: ClassVar[str] = "compare"


def run(context: Context, stage: Compare) -> None:
    """Score, compare and write."""
    found = score_or_show(context, stage, "compare.md")
    directory = context.begin()

    def write() -> None:
        assert found is not None
        scored, scores = found
        compared = compare(scored.rows, stage.baseline, context.seed, stage.every)
        text = f"{scores}\n# Differences\n\n{comparison_table(compared)}"
        with atomic_write(directory / "compare.md") as stream:
            stream.write(text)
        differences = [compared_to_json(c) for c in compared]
        write_json(
            directory / "compare.json", {"protocol": stage.protocol, "compared": differences}
        )
        context.print(text)

    once(write)
