"""Write the expert's list of each question, to be imitated by behavior cloning.

python -m train.label configs/quickstart.py --source gold
python -m train.label configs/llama3_8b.py --source scores --scorer /models/monot5-base

Scoring that was killed continues: what stands in the scores' file is not computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.facts.expert import label_questions
from dynarag_jax.records import Question, read_questions, write_questions
from dynarag_jax.retrieval.relevance import Scorer, above, load_scorer
from dynarag_jax.stages import Label
from train.program import Context, main
from train.scores import score_once


def by_scores(
    context: Context, stage: Label, scorer: Scorer, path: Path, questions: Sequence[Question]
) -> list[Question]:
    """Label by a scorer; the scores are kept in scores-NAME.jsonl, appended as they come."""
    output = context.stage_directory / f"scores-{path.name}"
    scored = score_once(context, scorer, output, path.name, questions)
    return [
        dataclasses.replace(
            q,
            expert=above(scored[q.id], stage.threshold, stage.limit),
            expert_source=f"{scorer.kind} {stage.scorer}, above {stage.threshold:g}",
        )
        for q in questions
    ]


def run(context: Context, stage: Label) -> None:
    """Label every question file and write it under its own name."""
    context.require_one_process()
    paths = [context.path(path) for path in stage.questions]
    inputs = {path.name: path for path in paths}
    if stage.source == "scores":
        inputs["scorer"] = context.model(stage.scorer)
    context.manifest(inputs=inputs)
    scorer = load_scorer(inputs["scorer"], stage.dtype) if stage.source == "scores" else None
    for path in paths:
        questions = read_questions(path)
        if bare := [q.id for q in questions if not q.passages]:
            raise InputError(f"{path}: question '{bare[0]}' has no passages; retrieve some first")
        if scorer is not None:
            labeled = by_scores(context, stage, scorer, path, questions)
        else:
            labeled = label_questions(questions, stage.source, context.run.seed, stage.noise)
        lists = [q.expert for q in labeled if q.expert is not None]
        write_questions(context.stage_directory / path.name, labeled)
        mean = sum(map(len, lists)) / max(len(lists), 1)
        context.log(f"{path.name}: {len(lists)} lists, {mean:.2f} passages on average")


if __name__ == "__main__":
    main("label", Label, run)
