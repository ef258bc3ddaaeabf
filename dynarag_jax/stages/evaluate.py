"""Score models on questions, beside fixed top-k, no retrieval and oracle passages.

    dynarag evaluate configs/quickstart.py

Every question counts in every mean, by the headline metric of its benchmark (of its task, where it
names no benchmark); one that cannot be answered counts 0 and says why. Predictions are appended as
they are made, one line a system and question, so that a killed evaluation continues.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

from dynarag_jax.config import INHERITED, MorePassages, SameResult
from dynarag_jax.data.reading import read_questions, with_candidates
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.answering import answer
from dynarag_jax.evaluation.lists import SHUFFLED, fixed_systems
from dynarag_jax.evaluation.predictions import Prediction, thoughts_to_json
from dynarag_jax.evaluation.scoring import Answerer, by_benchmark, row_of_line, scored_line
from dynarag_jax.evaluation.summary import scores_by_system, summarize
from dynarag_jax.evaluation.tables import side_by_side
from dynarag_jax.evaluation.tuning import (
    RulesConfig,
    read_tuning,
    retriever_scores,
    rule_systems,
)
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.files import read_jsonl, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.parts import by_system, keys_of
from dynarag_jax.policy.model import load_policy
from dynarag_jax.processes import ProcessTeam, agree, once
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rollout_records import Rollout, rollout_to_json
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.sampling.list_sources import policy_lists
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.reranking import Reranked, try_rerank
from dynarag_jax.sampling.rollouts import roll_out
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.stages.common.calibrated import calibrated
from dynarag_jax.stages.common.candidates import OPEN, check_windows, to_rerank
from dynarag_jax.stages.common.curves import CurveConfig, draw_curves
from dynarag_jax.stages.common.encoder_evaluation import evaluate_encoders
from dynarag_jax.stages.common.encoder_samplers import check_reader
from dynarag_jax.stages.common.files import opened
from dynarag_jax.stages.common.predicting import PromptCount, counted
from dynarag_jax.stages.common.servers import generator_of


@dataclass(frozen=True)
class Evaluate:
    """Score models on questions beside fixed top-k, no retrieval and oracle passages."""

    models: dict[str, str] = field(default_factory=lambda: {"behavior cloning": "{run}/sft/model"})
    """name -> model directory; the last one also answers for the baselines"""
    questions: str = "{run}/label/evaluation.jsonl"
    prompts: PromptConfig = INHERITED
    sampling: Sampling = Sampling(temperature=0.0)
    """how lists are written; answers are greedy"""
    more_passages: MorePassages = INHERITED
    windows: Windows = OPEN
    """for questions with more candidates than ``prompts.ids``"""
    top_k: tuple[int, ...] = (1, 2, 3, 5, 10)
    """fixed cuts of the retriever's order to compare with"""
    baselines: bool = True
    """beside the models no retrieval, the fixed cuts, and the oracle where it is known"""
    rules: RulesConfig = RulesConfig()
    """systems that choose by the retriever's scores, of encoder policies by ``scorer``'s"""
    curve: CurveConfig = CurveConfig()
    scorer: str = ""
    """of encoder policies: the cross-encoder or MonoT5 whose scores rules and fixed cuts go by;
    empty takes the retriever's"""
    reader: str = ""
    """of encoder policies: the language model that answers from every system's lists; empty scores
    lists alone"""
    reader_dtype: Literal["", "float32", "bfloat16"] = ""
    """what the reader computes in; empty takes ``dtype``"""
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
    generator: GeneratorConfig = GeneratorConfig()
    """a server that answers in place of the model"""

    def __post_init__(self) -> None:
        check_windows(self.windows, self.prompts, self.more_passages)
        check_reader(self.reader, self.reader_dtype)


def choose(
    sampler: PolicySampler, system: str, stage: Evaluate, questions: Sequence[Question], seed: int
) -> list[Reranked | InputError]:
    """A model's list for each question, in the positions of the question as it came.

    In place of a list that cannot be written, the reason.
    """
    orders = [tuple(range(1, len(question.passages) + 1)) for question in questions]
    if system.endswith(SHUFFLED):
        mixed = [
            question.shuffled(
                len(question.passages), random.Random(f"shuffle {seed} {question.id}")
            )
            for question in questions
        ]
        questions, orders = [q for q, _ in mixed], [order for _, order in mixed]
    reranked = try_rerank(sampler, questions, stage.sampling, stage.windows)
    return [
        one
        if isinstance(one, InputError)
        else replace(one, list=tuple(order[i - 1] for i in one.list))
        for one, order in zip(reranked, orders, strict=True)
    ]


def run(context: Context, stage: Evaluate) -> None:
    """Write predictions.jsonl and scores.json."""
    questions_path = context.path(stage.questions)
    models = {name: context.model(path) for name, path in stage.models.items()}
    if not models:
        raise InputError("evaluate: name at least one model in 'models'")
    tuning = {"rules": context.path(stage.rules.tuning)} if stage.rules.names else {}
    beside = {
        name: context.model(text)
        for name, text in (("scorer", stage.scorer), ("reader", stage.reader))
        if text
    }
    context.manifest(inputs={"questions": questions_path} | models | tuning | beside)
    if any(map(is_encoder_policy, models.values())):
        evaluate_encoders(context, stage, models, questions_path, tuning.get("rules"))
        return
    if beside:
        raise InputError(
            f"evaluate: '{next(iter(beside))}' is of encoder policies, and the models are language "
            f"models, which answer themselves; leave it empty"
        )
    questions = read_questions(questions_path, context.log)
    if not questions:
        raise InputError(f"{questions_path}: no questions")
    with_candidates(questions, questions_path, context.log)
    scored = by_benchmark(metrics=stage.metrics)
    everyone, rule, ids = questions, stage.more_passages, stage.prompts.ids
    questions, aside = to_rerank(questions, ids, rule, questions_path.name, context.log)
    if not questions:
        raise InputError(f"{questions_path}: every question is set aside; {aside[0].reason}")
    # No baseline sees more candidates than a model: all that are left, by windows or in a prompt.
    seen_at_most = max(len(q.passages) for q in questions)
    fixed = fixed_systems(questions, stage.top_k, seen_at_most) if stage.baselines else {}
    tuned = None
    if stage.rules.names:
        tuned_on, _ = to_rerank(
            read_tuning(tuning["rules"], stage.rules), ids, rule, tuning["rules"].name, context.log
        )
        both = (tuned_on, questions)
        asked = [
            (some, retriever_scores(some, max((len(q.passages) for q in some), default=0)))
            for some in both
        ]
        lists, tuned = rule_systems(stage.rules, *asked)
        fixed |= lists
    directory = context.begin()
    if tuned is not None and context.primary:
        write_json(directory / "rules.json", tuned)
    output = directory / "predictions.jsonl"
    seen = ("", SHUFFLED) if stage.shuffled else ("",)
    systems = [name + how for name in models for how in seen] + [*fixed]
    team = ProcessTeam(context.mesh)
    with (
        opened(context, output, team, by_system) as rows,
        context.progress(None, f"{context.stage}: lists and answers") as bar,
    ):
        count = PromptCount(stage.prompts, stage.windows)
        for system in systems:
            count.add_systems(questions, [system], rows.done, lists=system not in fixed)
        bar.start_at(0, count.most)
        context.log(
            f"{len(questions)} questions, {len(systems)} systems, {count}"
            + (f"; {len(rows.done)} predictions stand" if rows.done else "")
        )
        reasons = {reject.id: reject.reason for reject in aside}
        for question in (q for q in everyone if q.id in reasons and context.primary):
            for system in systems:
                if f"{system}/{question.id}" not in rows.done:
                    rows.append(unlisted(question, reasons[question.id], system, scored))
        shown_before = agree((directory / "examples.jsonl").exists())
        for place, (name, path) in enumerate(models.items()):
            last = place == len(models) - 1
            own = [name + how for how in seen]
            work = [*own, *(fixed if last else ())]
            shown = place > 0 or shown_before
            if shown and all(f"{s}/{q.id}" in rows.done for s in work for q in questions):
                continue
            policy = load_policy(path, context.mesh, stage.prompts, stage.dtype)
            policy = calibrated(context, policy, path)
            sampler = PolicySampler(
                policy, stage.prompts, stage.batch, context.run.seed, stage.engine
            )
            for system in work:
                todo = [i for i, q in enumerate(questions) if f"{system}/{q.id}" not in rows.done]
                if not todo:
                    continue
                count = PromptCount(stage.prompts, stage.windows)
                count.add([questions[i] for i in todo], lists=system in own, answers=True)
                todo = team.mine(todo)
                asked = [questions[i] for i in todo]
                with (
                    counted(sampler, bar, count.most),
                    generator_of(context, stage.generator, sampler) as generator,
                ):
                    if system in own:
                        some = [question for question in asked if question.passages]
                        made = iter(choose(sampler, system, stage, some, context.run.seed))
                        none = Reranked((), 0, 0)
                        chosen = [next(made) if question.passages else none for question in asked]
                    else:
                        chosen = [Reranked(fixed[system][i], 0, 0) for i in todo]
                    listed, lists = [], []
                    for question, one in zip(asked, chosen, strict=True):
                        if isinstance(one, InputError):
                            rows.append(unlisted(question, str(one), system, scored))
                        else:
                            listed.append(question)
                            lists.append(one)
                    found = answer(sampler, listed, [one.list for one in lists], generator)
                    for (question, answered), one in zip(found, lists, strict=True):
                        line = scored_line(answered, question, system, scored)
                        rows.append(line | thoughts_to_json(one.thoughts))
            if place == 0 and stage.examples:
                write_examples(context, stage, sampler, [q for q in questions if q.passages])
        rows.finish(f"{system}/{q.id}" for system in systems for q in everyone)
    once(lambda: conclude(context, stage, systems))
    scores = None
    if all(p.score is not None for q in questions for p in q.passages):
        scores = {q.id: retriever_scores([q], len(q.passages))[0] for q in questions}
    draw_curves(context, stage, models, questions, scores, scored)


def conclude(context: Context, stage: Evaluate, systems: Sequence[str]) -> None:
    """Write the scores of what was predicted."""
    directory = context.stage_directory
    scored_rows = [row_of_line(line) for _, line in read_jsonl(directory / "predictions.jsonl")]
    ordered = [row for system in systems for row in scored_rows if row.system == system]
    summaries = summarize(ordered, context.run.seed, one_by_one=True)
    write_json(directory / "scores.json", scores_by_system(summaries))
    context.log(side_by_side(summaries))
    if foot := stage.metrics.note():
        context.log(foot)


def unlisted(question: Question, reason: str, system: str, scored: Answerer) -> dict[str, Any]:
    """The line of a question that no list was written for: it counts 0, also its list."""
    prediction = Prediction(question.id, answer="", list=(), tokens=0, failed=reason)
    line = scored_line(prediction, question, system, scored)
    return line | {"set_f1": None if line["set_f1"] is None else 0.0}


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
    shown = examples(questions, stage.examples)
    with opened(context, context.stage_directory / "examples.jsonl", sampler.team) as rows:
        todo = sampler.team.mine([q for q in shown if q.id not in rows.done])
        source = policy_lists(sampler, todo, stage.examples_sampling, stage.samples)
        with generator_of(context, stage.generator, sampler) as generator:
            for one in roll_out(
                sampler, sampler, source, stage.samples, stage.reward, generator=generator
            ):
                if isinstance(one, Rollout):
                    rows.append(rollout_to_json(one))
        rows.finish(q.id for q in shown)
    found = keys_of([rows.path])
    if lost := [question.id for question in shown if question.id not in found]:
        context.log(f"{len(lost)} of the examples cannot be sampled and are left out: '{lost[0]}'")
