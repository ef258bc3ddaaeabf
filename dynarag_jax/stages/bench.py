"""All benchmarks in one run: models and baselines, and the paper's table beside them.

    dynarag bench configs/bench.py --models.DynamicRAG /models/dynamicrag-8b
    dynarag bench configs/bench.py --limit 500 --baselines none top-k

For each dataset, a file of questions with their candidates. Each model reranks and answers; the
last one also answers for the baselines: no retrieval, fixed top-k, a static reranker cut at k, the
needed passages. Predictions are appended as they are made, so that a killed run continues; what
fails stays in the denominator and says why. Writes bench.md (the paper's table first, then what
differs between its set-up and this one), and all that eval.score writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax

from dynarag_jax.atomic import atomic_write
from dynarag_jax.config import INHERITED, MorePassages, SameResult
from dynarag_jax.data.reading import read_questions, with_candidates
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.evaluation import lists
from dynarag_jax.evaluation.outputs import write_scores, write_trec
from dynarag_jax.evaluation.predictions import read_predictions
from dynarag_jax.evaluation.protocols import ScoringProtocol, answerer, check_protocol, note
from dynarag_jax.evaluation.reported import SOURCE, Kind, Setup, beside_the_paper, setup_table
from dynarag_jax.evaluation.runs import score_predictions
from dynarag_jax.evaluation.scoring import CUTOFFS, Row, check_dataset, require_positive
from dynarag_jax.evaluation.tuning import (
    RulesConfig,
    read_tuning,
    retriever_scores,
    rule_systems,
)
from dynarag_jax.files import read_json, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.parts import by_system
from dynarag_jax.policy.model import Policy, load_policy
from dynarag_jax.processes import ProcessTeam, agree, once
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.retrieval.relevance import load_scorer
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.sampling.list_sources import Reject
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.stages.common.calibrated import calibrated
from dynarag_jax.stages.common.candidates import OPEN, check_windows, to_rerank
from dynarag_jax.stages.common.files import opened
from dynarag_jax.stages.common.predicting import PromptCount, Reranking, add_aside, predict, without
from dynarag_jax.stages.common.scores import score_once
from dynarag_jax.stages.common.servers import generator_of

Baseline = Literal["none", "top-k", "static", "oracle"]


@dataclass(frozen=True)
class Bench:
    """All benchmarks in one run: models and baselines, the paper's row beside them."""

    datasets: dict[str, str] = field(default_factory=dict)
    """benchmark (nq, triviaqa, hotpotqa, 2wikimultihopqa, asqa, fever, eli5, popqa, musique, squad)
    -> file of its questions with their candidates"""
    only: tuple[str, ...] = ()
    """those of ``datasets`` to take; empty takes all"""
    models: dict[str, str] = field(default_factory=lambda: {"DynamicRAG": "{run}/feedback/model"})
    """name -> model directory; each reranks and answers, the last one answers for the baselines"""
    baselines: tuple[Baseline, ...] = ("none", "top-k", "static", "oracle")
    """no retrieval; the retriever's first; a static reranker's first, where there is a ``scorer``;
    the needed passages, where the questions say which they are"""
    top_k: tuple[int, ...] = (10,)
    """where the retriever's and the static reranker's orders are cut"""
    scorer: str = ""
    """the static reranker: a MonoT5 or a cross-encoder with one logit"""
    rules: RulesConfig = RulesConfig()
    """systems that choose by the ``scorer``'s scores, or the retriever's where there is none"""
    retriever: str = ""
    """what retrieved the candidates, and from which corpus, for the record"""
    limit: int = 0
    """questions of a dataset, the first of its file; 0 takes all"""
    prompts: PromptConfig = INHERITED
    answer_tokens: dict[str, int] = field(default_factory=lambda: {"asqa": 256, "eli5": 256})
    """dataset -> longest answer, in place of ``prompts.answer_tokens``"""
    sampling: Sampling = Sampling(temperature=0.2)
    """how lists are written; the default is the paper's. Answers are greedy"""
    more_passages: MorePassages = INHERITED
    windows: Windows = OPEN
    """for questions with more candidates than ``prompts.ids``"""
    protocol: ScoringProtocol = "benchmark"
    """as of eval.score"""
    cutoffs: tuple[int, ...] = CUTOFFS
    """of recall, precision, nDCG and answer recall of the lists"""
    metrics: MetricsConfig = MetricsConfig()
    dtype: Literal["float32", "bfloat16"] = INHERITED
    """type of the models' weights and activations"""
    batch: SameResult[int] = 64
    """prompts at once"""
    engine: SameResult[EngineConfig] = EngineConfig()
    generator: GeneratorConfig = GeneratorConfig()
    """a server that answers in place of the model"""

    def chosen(self) -> dict[str, str]:
        """The datasets to run."""
        return {n: path for n, path in self.datasets.items() if not self.only or n in self.only}

    def __post_init__(self) -> None:
        check_windows(self.windows, self.prompts, self.more_passages)
        for name in self.datasets:
            check_dataset(name)
        for name in self.only:
            if name not in self.datasets:
                known = ", ".join(self.datasets) or "none"
                hint = nearest(name, self.datasets)
                raise InputError(f"bench: only = '{name}' is none of the datasets: {known}{hint}")
        for name, tokens in self.answer_tokens.items():
            check_dataset(name)
            require_positive("bench", f"answer_tokens.{name}", (tokens,))
        require_positive("bench", "top_k", self.top_k)
        require_positive("bench", "cutoffs", self.cutoffs)
        check_protocol(self.protocol, self.metrics)
        if self.limit < 0:
            raise InputError(f"bench: limit = {self.limit} must not be negative")


Data = dict[str, list[Question]]
Lists = Mapping[str, Sequence[Chosen]]


def read(context: Context, stage: Bench) -> tuple[Data, dict[str, list[Reject]]]:
    """The questions of every dataset, each saying which it is, and those set aside."""
    data: Data = {}
    aside: dict[str, list[Reject]] = {}
    for name, path in stage.chosen().items():
        questions = read_questions(context.path(path), context.log)
        if stage.limit:
            questions = questions[: stage.limit]
        if not questions:
            raise InputError(f"{path}: no questions")
        with_candidates(questions, path, context.log)
        kept, aside[name] = to_rerank(
            questions, stage.prompts.ids, stage.more_passages, name, context.log
        )
        shown = {q.id: q for q in kept}
        questions = [shown.get(q.id, q) for q in questions]
        data[name] = [replace(q, extra=q.extra | {"dataset": name}) for q in questions]
    return data, aside


def baselines(
    stage: Bench, questions: Sequence[Question], scores: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Sequence[Chosen]], dict[str, Kind]]:
    """The lists of a dataset's baselines, and what each is."""
    found: dict[str, Sequence[Chosen]] = {}
    kinds: dict[str, Kind] = {}
    if "none" in stage.baselines:
        found[lists.NO_RETRIEVAL], kinds[lists.NO_RETRIEVAL] = [()] * len(questions), "none"
    if "top-k" in stage.baselines:
        for k in stage.top_k:
            name = lists.top_k_name(k)
            found[name], kinds[name] = [lists.top_k(q, k) for q in questions], "top-k"
    if "static" in stage.baselines and stage.scorer:
        for name, own in lists.static_systems(questions, scores, stage.top_k).items():
            found[name], kinds[name] = own, "static"
    if "oracle" in stage.baselines and all(q.gold is not None for q in questions):
        found[lists.ORACLE], kinds[lists.ORACLE] = [lists.oracle(q) for q in questions], "oracle"
    return found, kinds


def tuning_files(context: Context, stage: Bench) -> dict[str, Path]:
    """For each dataset the questions that rules are tuned on; none without rules."""
    if not stage.rules.names:
        return {}
    return {
        name: context.path(stage.rules.tuning.replace("{dataset}", name)) for name in stage.chosen()
    }


def with_scores(
    questions: Sequence[Question], scores: Mapping[str, Sequence[float]]
) -> tuple[Sequence[Question], list[Sequence[float]]]:
    """The questions, and the scores of their candidates: a scorer's, else the retriever's."""
    if scores:
        return questions, [scores[question.id] for question in questions]
    longest = max((len(question.passages) for question in questions), default=0)
    return questions, [*retriever_scores(questions, longest)]


def samplers(context: Context, stage: Bench, policy: Policy) -> dict[int, PolicySampler]:
    """A sampler for each longest answer of the datasets."""
    lengths = {answer_tokens(stage, name) for name in stage.chosen()}
    return {
        tokens: PolicySampler(
            policy,
            replace(stage.prompts, answer_tokens=tokens),
            stage.batch,
            context.run.seed,
            stage.engine,
        )
        for tokens in sorted(lengths)
    }


def answer_tokens(stage: Bench, dataset: str) -> int:
    """The longest answer of a dataset."""
    return stage.answer_tokens.get(dataset, stage.prompts.answer_tokens)


def setup(stage: Bench, data: Data, sizes: Mapping[str, int]) -> Setup:
    """This run's words beside the paper's."""
    counts = [len(q.passages) for qs in data.values() for q in qs]
    low, high = min(counts), max(counts)
    lengths = {name: answer_tokens(stage, name) for name in data}
    usual = stage.prompts.answer_tokens
    others = ", ".join(f"{n} on {name}" for name, n in lengths.items() if n != usual)
    return Setup(
        model=", ".join(stage.models),
        parameters=", ".join(f"{n:,}" for n in sizes.values()),
        retriever=stage.retriever,
        candidates=str(high) if low == high else f"{low} to {high}",
        lists=f"temperature {stage.sampling.temperature:g}, at most {stage.prompts.max_list} "
        f"passages",
        answers=f"greedy, {usual} tokens" + (f" ({others})" if others else ""),
        scoring="the benchmarks' own metrics"
        if stage.protocol == "benchmark"
        else "the released scripts'",
    )


def run(context: Context, stage: Bench) -> None:
    """Predict, score, and write the tables."""
    if not stage.datasets:
        raise InputError("bench: name at least one dataset in 'datasets'")
    if not stage.models:
        raise InputError("bench: name at least one model in 'models'")
    models = {name: context.model(path) for name, path in stage.models.items()}
    files = {name: context.path(path) for name, path in stage.chosen().items()}
    scored = "static" in stage.baselines or bool(stage.rules.names)
    scorer = context.optional_model(stage.scorer) if scored else None
    extra = {"scorer": scorer} if scorer else {}
    tuning = tuning_files(context, stage)
    extra |= {f"rules of {name}": path for name, path in tuning.items()}
    context.manifest(inputs=files | {f"model {n}": p for n, p in models.items()} | extra)
    everyone, aside = read(context, stage)
    data = {name: without(questions, aside[name]) for name, questions in everyone.items()}
    if empty := [name for name, questions in data.items() if not questions]:
        raise InputError(f"{empty[0]}: every question is set aside; {aside[empty[0]][0].reason}")
    tuned_on = {name: read_tuning(path, stage.rules) for name, path in tuning.items()}
    for name, questions in tuned_on.items():
        tuned_on[name], _ = to_rerank(
            questions, stage.prompts.ids, stage.more_passages, str(tuning[name]), context.log
        )
    directory = context.begin()
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in data}
    tuning_scores: dict[str, dict[str, list[float]]] = {name: {} for name in tuned_on}
    if scorer:
        loaded = load_scorer(scorer, stage.dtype)
        for found, what, asked in ((scores, "", data), (tuning_scores, "tuning-", tuned_on)):
            for name, questions in asked.items():
                output = directory / f"scores-{what}{name}.jsonl"
                said = f"scores of {what}{name}"
                found[name] = score_once(context, loaded, output, said, questions)
        del loaded
    fixed = {name: baselines(stage, questions, scores[name]) for name, questions in data.items()}
    rules: dict[str, Any] = {}
    for name, questions in tuned_on.items():
        both = ((questions, tuning_scores[name]), (data[name], scores[name]))
        own, rules[name] = rule_systems(stage.rules, *(with_scores(*one) for one in both))
        for system, chosen in own.items():
            fixed[name][0][system], fixed[name][1][system] = chosen, "other"
    if rules and context.primary:
        write_json(directory / "rules.json", rules)
    kinds: dict[str, Kind] = dict.fromkeys(models, "model")
    for _, own in fixed.values():
        kinds |= own
    if clash := [name for name in models if name in lists_of(fixed)]:
        raise InputError(f"bench: '{clash[0]}' is a baseline's name; call the model otherwise")
    # Parameters of each model, so that one whose work is done need not be loaded to say so.
    counted = directory / "parameters.json"
    sizes: dict[str, int] = once(lambda: read_json(counted) if counted.exists() else {}) or {}
    sizes = agree(sizes)
    team = ProcessTeam(context.mesh)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(context.progress(None, f"{context.stage}: lists and answers"))
        outputs = {
            name: stack.enter_context(
                opened(context, directory / f"predictions-{name}.jsonl", team, by_system)
            )
            for name in data
        }
        count = PromptCount(stage.prompts, stage.windows)
        for name, questions in data.items():
            if context.primary:
                add_aside(outputs[name], everyone[name], aside[name], [*models, *fixed[name][0]])
            for systems in (models, fixed[name][0]):
                count.add_systems(questions, systems, outputs[name].done, lists=systems is models)
        bar.start_at(0, count.most)
        context.log(f"{sum(map(len, data.values()))} questions, {count}")
        for number, (model, path) in enumerate(models.items()):
            last = number == len(models) - 1
            work: dict[str, dict[str, Sequence[Chosen] | None]] = {
                name: {model: None} | (fixed[name][0] if last else {}) for name in data
            }
            stands = all(
                f"{system}/{q.id}" in outputs[name].done
                for name, questions in data.items()
                for system in work[name]
                for q in questions
            )
            if stands and model in sizes:
                continue
            policy = load_policy(path, context.mesh, stage.prompts, stage.dtype)
            policy = calibrated(context, policy, path)
            sizes[model] = sum(x.size for x in jax.tree.leaves(policy.params))
            if context.primary:
                write_json(counted, sizes)
            by_length = samplers(context, stage, policy)
            for name, questions in data.items():
                sampler = by_length[answer_tokens(stage, name)]
                with generator_of(context, stage.generator, sampler) as generator:
                    for system, chosen in work[name].items():
                        how = Reranking(stage.sampling, stage.windows) if chosen is None else chosen
                        rows = outputs[name]
                        predict(sampler, how, rows, system, questions, bar, generator)
            del policy, by_length
        for name, rows in outputs.items():
            systems = [*models, *fixed[name][0]]
            rows.finish(f"{system}/{q.id}" for system in systems for q in everyone[name])
    once(lambda: finish(context, stage, everyone, kinds, sizes))


def lists_of(fixed: Mapping[str, tuple[Lists, Any]]) -> set[str]:
    """The names of all baselines."""
    return {system for found, _ in fixed.values() for system in found}


def finish(
    context: Context, stage: Bench, data: Data, kinds: dict[str, Kind], sizes: dict[str, int]
) -> None:
    """Score what was predicted and write the tables."""
    directory = context.stage_directory
    rows: list[Row] = []
    notes = note(stage.protocol)
    for name, questions in data.items():
        predictions = read_predictions([("", directory / f"predictions-{name}.jsonl")])
        scored = score_predictions(
            questions,
            {system: predictions[system] for system in kinds if system in predictions},
            cutoffs=stage.cutoffs,
            answerer=answerer(stage.protocol, metrics=stage.metrics),
        )
        rows += scored.flat()
        notes += scored.notes()
        write_trec(directory / "trec" / name, scored)
    summaries, page = write_scores(
        directory, rows, stage.protocol, notes, foot=stage.metrics.note(), seed=context.seed
    )
    counts = {name: len(questions) for name, questions in data.items()}
    parts = [
        *notes,
        f"# Beside the paper ({SOURCE})",
        beside_the_paper(summaries, kinds),
        "The paper's numbers are not of this run, and not of its set-up. What stands between them:",
        setup_table(setup(stage, data, sizes), counts),
        "# Every figure",
        page,
    ]
    text = "\n\n".join(parts)
    with atomic_write(directory / "bench.md") as stream:
        stream.write(text)
    context.print(text)
