"""Questions that a config both trains and evaluates on, named before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dynarag_jax.data.overlap import overlap, texts_of
from dynarag_jax.data.reading import read_questions
from dynarag_jax.launch.context import Context

EVALUATIONS = ("evaluate", "bench", "answer", "rerank")
"""Stages whose questions are for measuring."""


def say_leakage(context: Context, trained: Iterable[str]) -> int:
    """Log which questions of the run's evaluations are trained on; return how many.

    Files that are not there yet cannot be compared.

    Args:
      trained: files of questions, as configurations name them.
    """
    measured: dict[str, str] = {}
    for name, stage in context.stages.items():
        if type(stage).__module__.rpartition(".")[2] in EVALUATIONS:
            measured |= dict.fromkeys(_files(stage), name)
    total = 0
    for file in dict.fromkeys(trained):
        if not context.path(file).exists():
            continue
        mine = texts_of(read_questions(context.path(file)))
        for other, name in measured.items():
            if not context.path(other).exists():
                continue
            if other == file:
                context.log(f"leakage: stage '{name}' evaluates on {file}, which is trained on")
                total += len(mine)
                continue
            shared = overlap(texts_of(read_questions(context.path(other))), mine)
            total += shared.count
            if shared.count:
                context.log(
                    f"leakage: {shared.count} questions of {other} (stage '{name}') are trained on "
                    f"in {file}, such as {shared.first[:80]!r}; leave them out of one of the two"
                )
    return total


def _files(stage: Any) -> list[str]:
    """The question files that a stage's configuration names."""
    given = getattr(stage, "questions", ())
    datasets = getattr(stage, "datasets", {})
    files = [given] if isinstance(given, str) else list(given)
    return [*files, *(datasets.values() if isinstance(datasets, dict) else ())]
