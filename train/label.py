"""Write the expert's list of each question, to be imitated by behavior cloning.

python -m train.label configs/quickstart.py --source gold
python -m train.label configs/llama3_8b.py --source scores --scorer /models/monot5-base
python -m train.label configs/llama3_8b.py --source judge --judge.url http://host:8000/v1 \
    --judge.model NAME

Scoring that was killed continues: what stands in the scores' file, or in the judge's file of
replies, is not computed again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.facts.expert import label_questions
from dynarag_jax.files import JsonlAppender, read_jsonl, write_jsonl
from dynarag_jax.records import Question, read_questions, write_questions
from dynarag_jax.retrieval.embed import passage_text
from dynarag_jax.retrieval.relevance import Scorer, above, load_scorer, score_questions
from dynarag_jax.rewards.judge import Asked, Judge, Replies
from dynarag_jax.stages import Label
from train.program import Context, main

JUDGED = 64
"""Questions whose passages are graded together."""


def from_scores(
    questions: Sequence[Question], scores: Path, source: str, stage: Label
) -> list[Question]:
    """The lists that scores on record make; a question whose scores are missing has none."""
    scored = {row["id"]: row["scores"] for _, row in read_jsonl(scores)}
    return [
        q
        if (own := scored[q.id]) is None
        else dataclasses.replace(
            q,
            expert=above(own, stage.threshold, stage.limit),
            expert_source=f"{source}, above {stage.threshold:g}",
        )
        for q in (dataclasses.replace(q, expert=None, expert_source="") for q in questions)
    ]


def by_scores(
    context: Context, stage: Label, scorer: Scorer, path: Path, questions: Sequence[Question]
) -> list[Question]:
    """Label by a scorer; the scores are kept in scores-NAME.jsonl, appended as they come."""
    output = context.stage_directory / f"scores-{path.name}"
    with (
        JsonlAppender(output) as rows,
        context.progress(sum(len(q.passages) for q in questions), path.name) as bar,
    ):
        bar.update(sum(len(q.passages) for q in questions if q.id in rows.done))
        todo = [q for q in questions if q.id not in rows.done]
        for question, scores in score_questions(scorer, todo):
            rows.append({"id": question.id, "scores": [round(float(s), 6) for s in scores]})
            bar.update(len(scores))
    return from_scores(questions, output, f"{scorer.kind} {stage.scorer}", stage)


def by_judge(
    context: Context, stage: Label, judge: Judge, path: Path, questions: Sequence[Question]
) -> list[Question]:
    """Label by a judge's grades of the passages.

    A question of which a grade is missing gets no list: the one that was not graded may be the
    best.
    """
    output = context.stage_directory / f"scores-{path.name}"
    rows, missing = [], 0
    with context.progress(sum(len(q.passages) for q in questions), path.name) as bar:
        for i in range(0, len(questions), JUDGED):
            group = questions[i : i + JUDGED]
            asked = [Asked(q.text, (), passage_text(p)) for q in group for p in q.passages]
            grades = iter(judge.score(asked))
            for question in group:
                own = [next(grades).score for _ in question.passages]
                missing += None in own
                rows.append({"id": question.id, "scores": None if None in own else own})
                bar.update(len(own))
    write_jsonl(output, rows)
    if missing:
        why = ", ".join(f"{reason} ({count})" for reason, count in judge.reasons.most_common())
        context.log(
            f"{path.name}: {missing} questions have no list, since grades are missing: {why}"
        )
    return from_scores(questions, output, f"judge {stage.judge.model}", stage)


def run(context: Context, stage: Label) -> None:
    """Label every question file and write it under its own name."""
    context.require_one_process()
    paths = [context.path(path) for path in stage.questions]
    inputs = {path.name: path for path in paths}
    if stage.source == "scores":
        inputs["scorer"] = context.model(stage.scorer)
    context.manifest(inputs=inputs)
    scorer = load_scorer(inputs["scorer"], stage.dtype) if stage.source == "scores" else None
    judge = None
    if stage.source == "judge":
        key = os.environ.get(stage.judge.key_variable, "") if stage.judge.key_variable else ""
        judge = Judge(stage.judge, key, Replies(context.path(stage.judge.cache)))
    with judge or nullcontext():
        label_files(context, stage, paths, scorer, judge)


def label_files(
    context: Context,
    stage: Label,
    paths: Sequence[Path],
    scorer: Scorer | None,
    judge: Judge | None,
) -> None:
    """Label each file by what the stage asks for."""
    for path in paths:
        questions = read_questions(path)
        if bare := [q.id for q in questions if not q.passages]:
            raise InputError(f"{path}: question '{bare[0]}' has no passages; retrieve some first")
        if scorer is not None:
            labeled = by_scores(context, stage, scorer, path, questions)
        elif judge is not None:
            labeled = by_judge(context, stage, judge, path, questions)
        else:
            source: Any = stage.source
            labeled = label_questions(questions, source, context.run.seed, stage.noise)
        lists = [q.expert for q in labeled if q.expert is not None]
        write_questions(context.stage_directory / path.name, labeled)
        mean = sum(map(len, lists)) / max(len(lists), 1)
        context.log(f"{path.name}: {len(lists)} lists, {mean:.2f} passages on average")


if __name__ == "__main__":
    main("label", Label, run)
