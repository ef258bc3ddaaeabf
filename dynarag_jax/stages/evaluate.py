"""Score models on questions, beside fixed top-k, no retrieval and oracle passages.

    dynarag evaluate configs/quickstart.py

Every question counts in every mean, by the headline metric of its benchmark (of its task, where it
names no benchmark); one that cannot be answered counts 0 and says why. Predictions are appended as
they are made, one line a system and question, so that a killed evaluation continues.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

from dynarag_jax.config import INHERITED, SameResult
from dynarag_jax.data.reading import read_questions, with_candidates
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.answering import answer
from dynarag_jax.evaluation.lists import SHUFFLED, fixed_systems
from dynarag_jax.evaluation.scoring import by_benchmark, row_of_line, scored_line
from dynarag_jax.evaluation.summary import scores_by_system, summarize
from dynarag_jax.evaluation.tables import side_by_side
from dynarag_jax.evaluation.tuning import (
    RulesConfig,
    read_tuning,
    retriever_scores,
    rule_systems,
)
from dynarag_jax.files import JsonlAppender, read_jsonl, write_json, write_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question, rollout_to_json
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.rollouts import sample_rollouts
from dynarag_jax.sampling.sampler import Sampling


@dataclass(frozen=True)
class Evaluate:
    """Score models on questions beside fixed top-k, no retrieval and oracle passages."""

    models: dict[str, str] = field(default_factory=lambda: {"behavior cloning": "{run}/sft/model"})
    """name -> model directory; the last one also answers for the baselines"""
    questions: str = "{run}/label/evaluation.jsonl"
    prompts: PromptConfig = INHERITED
    sampling: Sampling = Sampling(temperature=0.0)
    """how lists are written; answers are greedy"""
    top_k: tuple[int, ...] = (1, 2, 3, 5, 10)
    """fixed cuts of the retriever's order to compare with"""
    rules: RulesConfig = RulesConfig()
    """systems that choose by the retriever's scores"""
    shuffled: bool = False
    """also show every model the candidates in random order: what it knows without the retriever's
    order"""
    examples: int = 10
    """questions shown in full in the report, with lists sampled from the first model"""
    samples: int = 8
    """lists sampled for each of them"""
    examples_sampling: Sampling = Sampling(temperature=1.0)
    reward: RewardWeights = RewardWeights()
    """of the lists sampled for the examples; without 'bertscore' and 'judge', whose models are not
    here"""
    metrics: MetricsConfig = MetricsConfig()
    dtype: Literal["float32", "bfloat16"] = INHERITED
    batch: SameResult[int] = 64
    """prompts sampled at once"""
    engine: SameResult[EngineConfig] = EngineConfig()


def choose(
    sampler: PolicySampler, system: str, stage: Evaluate, questions: Sequence[Question], seed: int
) -> list[tuple[int, ...]]:
    """A model's list for each question, in the positions of the question as it came."""
    if not system.endswith(SHUFFLED):
        return [found.lists[0] for found in sampler.lists(questions, stage.sampling)]
    rng = lambda question: random.Random(f"shuffle {seed} {question.id}")  # noqa: E731
    mixed = [question.shuffled(stage.prompts.ids, rng(question)) for question in questions]
    found = sampler.lists([question for question, _ in mixed], stage.sampling)
    return [
        tuple(order[i - 1] for i in one.lists[0])
        for one, (_, order) in zip(found, mixed, strict=True)
    ]


def run(context: Context, stage: Evaluate) -> None:
    """Write predictions.jsonl and scores.json."""
    context.require_one_process()
    questions_path = context.path(stage.questions)
    models = {name: context.model(path) for name, path in stage.models.items()}
    if not models:
        raise InputError("evaluate: name at least one model in 'models'")
    tuning = {"rules": context.path(stage.rules.tuning)} if stage.rules.names else {}
    context.manifest(inputs={"questions": questions_path} | models | tuning)
    questions = read_questions(questions_path, context.log)
    if not questions:
        raise InputError(f"{questions_path}: no questions")
    with_candidates(questions, questions_path, context.log)
    scored = by_benchmark(metrics=stage.metrics)
    fixed = fixed_systems(questions, stage.top_k, stage.prompts.ids)
    if stage.rules.names:
        both = (read_tuning(tuning["rules"], stage.rules), questions)
        asked = [(some, retriever_scores(some, stage.prompts.ids)) for some in both]
        lists, tuned = rule_systems(stage.rules, *asked)
        write_json(context.stage_directory / "rules.json", tuned)
        fixed |= lists
    output = context.stage_directory / "predictions.jsonl"
    seen = ("", SHUFFLED) if stage.shuffled else ("",)
    systems = [name + how for name in models for how in seen] + [*fixed]
    with (
        JsonlAppender(output, key=lambda row: f"{row['system']}/{row['id']}") as rows,
        context.progress(len(systems) * len(questions), context.stage) as bar,
    ):
        bar.update(len(rows.done))
        for place, (name, path) in enumerate(models.items()):
            last = place == len(models) - 1
            own = [name + how for how in seen]
            work = [*own, *(fixed if last else ())]
            shown = place > 0 or (context.stage_directory / "examples.jsonl").exists()
            if shown and all(f"{s}/{q.id}" in rows.done for s in work for q in questions):
                continue
            policy = load_policy(path, context.mesh, stage.prompts, stage.dtype)
            sampler = PolicySampler(
                policy, stage.prompts, stage.batch, context.run.seed, stage.engine
            )
            for system in work:
                todo = [i for i, q in enumerate(questions) if f"{system}/{q.id}" not in rows.done]
                if not todo:
                    continue
                asked = [questions[i] for i in todo]
                if system in own:
                    some = [question for question in asked if question.passages]
                    made = iter(choose(sampler, system, stage, some, context.run.seed))
                    lists = [next(made) if question.passages else () for question in asked]
                else:
                    lists = [fixed[system][i] for i in todo]
                for question, found in answer(sampler, asked, lists):
                    rows.append(scored_line(found, question, system, scored))
                    bar.update(1)
            if place == 0 and stage.examples:
                write_examples(context, stage, sampler, [q for q in questions if q.passages])
    scored_rows = [row_of_line(line) for _, line in read_jsonl(output)]
    ordered = [row for system in systems for row in scored_rows if row.system == system]
    summaries = summarize(ordered, context.run.seed, one_by_one=True)
    write_json(context.stage_directory / "scores.json", scores_by_system(summaries))
    context.log(side_by_side(summaries))
    if foot := stage.metrics.note():
        context.log(foot)


def examples(questions: Sequence[Question], count: int) -> list[Question]:
    """``count`` questions to show, taking the types in turn."""
    by_type: dict[str, list[Question]] = {}
    for question in questions:
        by_type.setdefault(question.type, []).append(question)
    in_turn = [q for row in zip_longest(*by_type.values()) for q in row if q is not None]
    return in_turn[:count]


def write_examples(
    context: Context, stage: Evaluate, sampler: PolicySampler, questions: Sequence[Question]
) -> None:
    """Sample lists for the questions that the report shows: examples.jsonl."""
    rollouts = sample_rollouts(
        sampler,
        sampler,
        examples(questions, stage.examples),
        stage.examples_sampling,
        stage.samples,
        stage.reward,
    )
    write_jsonl(context.stage_directory / "examples.jsonl", [rollout_to_json(r) for r in rollouts])
