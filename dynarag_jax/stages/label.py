r"""Write the expert's list of each question, to be imitated by behavior cloning.

    dynarag label configs/quickstart.py --source gold
    dynarag label configs/llama3_8b.py --source scores --scorer /models/monot5-base
    dynarag label configs/llama3_8b.py --source judge --judge.url http://host:8000/v1 \
        --judge.model NAME

Writes each question file with its lists into RUN/label, and says their mean length.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.facts.expert import ExpertNoise, label_questions, why_empty
from dynarag_jax.files import read_jsonl, write_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.records import Question, write_questions
from dynarag_jax.retrieval.embed import passage_text
from dynarag_jax.retrieval.relevance import Scorer, above, load_scorer
from dynarag_jax.rewards.judge import Asked, Judge, JudgeConfig, Replies
from dynarag_jax.stages.common.scores import score_once

RELEVANCE = """\
How useful is a passage for answering a question?

Question: {question}
Passage: {answer}

Give full marks to a passage that answers the question or states a fact that an answer needs, and \
the lowest to one that does not help. A passage on the same subject that states nothing of use \
does not help.
Reply with one line and nothing else: Score: a number from {lowest} to {highest}"""
"""What a judge is asked about a passage."""


@dataclass(frozen=True)
class Label:
    """Write the expert's list of each question, to be imitated by behavior cloning."""

    questions: tuple[str, ...] = ("{run}/retrieve/train.jsonl",)
    source: Literal["gold", "answer", "scores", "judge", "noisy"] = "gold"
    """gold: the needed passages; answer: passages that contain an answer; scores: those that
    ``scorer`` scores above ``threshold``, best first; judge: those that a language model behind
    ``judge`` grades so; noisy: gold, spoiled"""
    scorer: str = ""
    """MonoT5 or cross-encoder with one logit: a directory or hub id"""
    threshold: float = 0.8
    """scores lie between 0 and 1; the default is the paper's"""
    limit: int = 15
    """passages in a list by scores at most; the default is the paper's"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the scorer's weights and activations"""
    judge: JudgeConfig = JudgeConfig(prompt=RELEVANCE, highest=10.0)
    """an OpenAI-compatible server; {answer} in its prompt stands for the passage"""
    noise: ExpertNoise = ExpertNoise()
    """how the noisy expert errs"""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold = {self.threshold} must lie in [0, 1]")
        if self.limit < 1:
            raise InputError(f"limit = {self.limit}: a list's limit is at least 1")
        if self.source == "scores" and not self.scorer:
            raise InputError("source 'scores' needs a scorer: a MonoT5 or a cross-encoder")
        if self.source == "judge" and not self.judge.url:
            raise InputError("source 'judge' needs a server: set judge.url and judge.model")


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
    score_once(context, scorer, output, path.name, questions)
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
        questions = read_questions(path, context.log)
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
        if scorer is None and judge is None:
            whys = Counter(why for q in labeled if (why := why_empty(q)))
            for why, count in whys.most_common():
                context.log(f"{path.name}: {count} of {len(labeled)} questions have {why}")
