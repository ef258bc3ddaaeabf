r"""Write the expert's list of each question, to be imitated by behavior cloning.

    dynarag label configs/quickstart.py --source gold
    dynarag label configs/llama3_8b.py --source scores --scorer /models/monot5-base
    dynarag label configs/llama3_8b.py --source judge --judge.url http://host:8000/v1 \
        --judge.model NAME

Writes each question file with its lists into RUN/label, and says their mean length.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.config import INHERITED
from dynarag_jax.data.reading import read_questions, with_candidates
from dynarag_jax.errors import InputError
from dynarag_jax.facts.expert import ExpertNoise, label_questions, why_empty
from dynarag_jax.files import read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.model import load_policy
from dynarag_jax.processes import ProcessTeam, once
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question, write_questions
from dynarag_jax.retrieval.labels import RELEVANCE, judge_passages, lists_by_scores
from dynarag_jax.retrieval.relevance import PairScorer, load_scorer
from dynarag_jax.rewards.judge import Judge, JudgeConfig
from dynarag_jax.sampling.answer_scoring import gold_likelihood
from dynarag_jax.sampling.minimal_lists import minimal_lists
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.stages.common.files import opened, questions_by_output
from dynarag_jax.stages.common.scores import score_once
from dynarag_jax.stages.common.servers import added_up, key_of, replies_of

MINIMAL = 256
"""Questions whose minimal lists are sought together."""


@dataclass(frozen=True)
class Label:
    """Write the expert's list of each question, to be imitated by behavior cloning."""

    questions: tuple[str, ...] = ("{run}/retrieve/train.jsonl",)
    source: Literal["gold", "answer", "scores", "judge", "noisy", "minimal"] = "gold"
    """gold: the needed passages; answer: passages that contain an answer; scores: those that
    ``scorer`` scores above ``threshold``, best first; judge: those that a language model behind
    ``judge`` grades so; noisy: gold, spoiled; minimal: what is left where nothing can be left out
    of the expert's list on record, or of the first ``limit`` candidates, without ``reader`` finding
    the answer less likely"""
    scorer: str = ""
    """MonoT5 or cross-encoder with one logit: a directory or hub id"""
    threshold: float = 0.8
    """scores lie between 0 and 1; the default is the paper's"""
    limit: int = 15
    """passages in a list by scores at most; the default is the paper's"""
    reader: str = ""
    """of minimal lists: the language model whose answer is to stay likely"""
    keep: float = 0.9
    """of minimal lists: share of the first list's likelihood of the answer that must stay"""
    prompts: PromptConfig = INHERITED
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the scorer's or reader's weights and activations"""
    judge: JudgeConfig = JudgeConfig(prompt=RELEVANCE, highest=10.0)
    """an OpenAI-compatible server; {answer} in its prompt stands for the passage"""
    noise: ExpertNoise = ExpertNoise()
    """how the noisy expert errs"""
    shuffled: bool = False
    """write the candidates in random order, the lists by their new places: what learns from the
    file must read, since ranks say nothing; an expert's thought, which may name places, is left
    out"""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold = {self.threshold} must lie in [0, 1]")
        if self.limit < 1:
            raise InputError(f"limit = {self.limit}: a list's limit is at least 1")
        if self.source == "scores" and not self.scorer:
            raise InputError("source 'scores' needs a scorer: a MonoT5 or a cross-encoder")
        if self.source == "minimal" and not self.reader:
            raise InputError("source 'minimal' needs a language model that reads: set 'reader'")
        if not 0 <= self.keep <= 1:
            raise InputError(f"keep = {self.keep} must lie in [0, 1]")
        if self.source == "judge" and not self.judge.url:
            raise InputError("source 'judge' needs a server: set judge.url and judge.model")


def run(context: Context, stage: Label) -> None:
    """Label every question file and write it under its own name."""
    paths = questions_by_output(context, stage.questions)
    inputs = dict(paths)
    if stage.source == "scores":
        inputs["scorer"] = context.model(stage.scorer)
    if stage.source == "minimal":
        inputs["reader"] = context.model(stage.reader)
    context.manifest(inputs=inputs)
    if stage.source == "minimal":
        label_minimal(context, stage, paths, inputs["reader"])
        return
    scorer = load_scorer(inputs["scorer"], stage.dtype) if stage.source == "scores" else None
    judge = None
    if stage.source == "judge":
        team = ProcessTeam(None)
        replies = replies_of(context, stage.judge, team)
        judge = Judge(stage.judge, key_of(stage.judge), replies, team)
    with judge or nullcontext():
        label_files(context, stage, paths, scorer, judge)


def label_files(
    context: Context,
    stage: Label,
    paths: Mapping[str, Path],
    scorer: PairScorer | None,
    judge: Judge | None,
) -> None:
    """Label each file by what the stage asks for; a question without candidates has no list."""
    directory = context.begin()
    for name, path in paths.items():
        every = read_questions(path, context.log)
        questions = with_candidates(every, path, context.log)
        scores = directory / f"scores-{name}"
        if scorer is not None:
            scores_of = score_once(context, scorer, scores, name, questions)
            named = f"{scorer.kind} {stage.scorer}"
            labeled = lists_by_scores(questions, scores_of, named, stage.threshold, stage.limit)
        elif judge is not None:
            labeled = judged(context, stage, judge, scores, path, questions)
        else:
            source: Any = stage.source
            labeled = label_questions(questions, source, context.run.seed, stage.noise)
        write_labeled(context, name, every, labeled, stage.shuffled)
        if scorer is None and judge is None:
            whys = Counter(why for q in labeled if (why := why_empty(q)))
            for why, count in whys.most_common():
                context.log(f"{name}: {count} of {len(labeled)} questions have {why}")


def write_labeled(
    context: Context,
    name: str,
    every: Sequence[Question],
    labeled: Sequence[Question],
    shuffled: bool,
) -> None:
    """Write a file's questions with their lists, and say their mean length."""
    lists = [q.expert for q in labeled if q.expert is not None]
    mine = {
        q.id: dataclasses.replace(q, expert=None, expert_source="", expert_thought="")
        for q in every
    }
    mine |= {q.id: q for q in labeled}
    if shuffled:
        seed = context.run.seed
        if thoughts := sum(bool(q.expert_thought) for q in mine.values()):
            context.log(f"{name}: {thoughts} thoughts before lists are left out: shuffled is set")
        for key, question in mine.items():
            rng = random.Random(f"{seed}/label/{key}")
            mine[key], _ = question.shuffled(len(question.passages), rng)
    output = context.stage_directory / name
    once(lambda: write_questions(output, (mine[q.id] for q in every)))
    mean = sum(map(len, lists)) / max(len(lists), 1)
    context.log(f"{name}: {len(lists)} lists, {mean:.2f} passages on average")


def label_minimal(context: Context, stage: Label, paths: Mapping[str, Path], reader: Path) -> None:
    """Label each file by what a reader cannot do without."""
    policy = load_policy(reader, context.mesh, stage.prompts, stage.dtype)
    sampler = PolicySampler(policy, stage.prompts, 64, context.run.seed)
    likelihood, team = gold_likelihood(sampler), sampler.team
    directory = context.begin()
    for name, path in paths.items():
        every = read_questions(path, context.log)
        questions = with_candidates(every, path, context.log)
        with (
            opened(context, directory / f"minimal-{name}", team) as rows,
            context.progress(len(questions), name) as bar,
        ):
            todo = [q for q in questions if q.id not in rows.done]
            bar.start_at(len(questions) - len(todo), len(questions))
            for _, mine in team.groups(todo, MINIMAL):
                begin = [
                    (q.expert or tuple(range(1, len(q.passages) + 1)))[: stage.limit] for q in mine
                ]
                lists = minimal_lists(
                    likelihood, mine, begin, stage.keep,
                    lambda n: bar.update(n * team.count), team.any,
                )  # fmt: skip
                for question, one in zip(mine, lists, strict=True):
                    rows.append({"id": question.id, "list": one})
            rows.finish(question.id for question in questions)
        found = {row["id"]: row["list"] for _, row in read_jsonl(rows.path)}
        labeled = [
            dataclasses.replace(
                q, expert=tuple(found[q.id]), expert_source=f"minimal for {stage.reader}",
                expert_thought="",
            )
            for q in questions
            if found[q.id] is not None
        ]  # fmt: skip
        if missing := len(questions) - len(labeled):
            context.log(
                f"{name}: {missing} questions have no list, since no answer to them can be scored: "
                f"they have none, or none of answer_tokens = {stage.prompts.answer_tokens}, or the "
                f"question alone is longer than a prompt"
            )
        write_labeled(context, name, every, labeled, stage.shuffled)


def judged(
    context: Context,
    stage: Label,
    judge: Judge,
    scores: Path,
    path: Path,
    questions: Sequence[Question],
) -> list[Question]:
    """Label by a judge's grades, and say of how many questions some are missing."""
    with context.progress(sum(len(q.passages) for q in questions), path.name) as bar:
        by_question = judge_passages(judge, questions, scores, bar.update)
    if missing := sum(own is None for own in by_question.values()):
        reasons = added_up(judge.reasons)
        why = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        context.log(
            f"{path.name}: {missing} questions have no list, since grades are missing: {why}"
        )
    source = f"judge {stage.judge.model}"
    return lists_by_scores(questions, by_question, source, stage.threshold, stage.limit)
