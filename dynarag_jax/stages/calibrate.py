"""Choose how readily a policy stops, on questions of its own: for a length, a budget, a quality.

    dynarag calibrate configs/encoder.py --target.mean_k 2
    dynarag calibrate configs/quickstart.py --questions dev.jsonl --target.quality answer

Writes model/, the same weights with calibration.json beside them: what is added to the scores of
stopping and of the empty list. ``rerank``, ``evaluate``, ``bench``, ``serve`` and ``Reranker`` read
it there, and ``export`` keeps it. Where every list would stop is written to paths.jsonl as it is
found, so that a killed run continues; curve.json holds all that was to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynarag_jax.config import INHERITED, SameResult
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.curves import (
    Figure,
    Moved,
    QualityCurve,
    bias_of,
    curve_to_json,
    highest,
    nearest,
    policy_curve,
    within,
)
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.evaluation.scoring import by_benchmark
from dynarag_jax.exchange.calibration import Calibration, ListBias, save_calibrated
from dynarag_jax.files import read_jsonl, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.processes import once, wait
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.sampling.choice import GREEDY
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.stages.common.curves import (
    figures_of,
    lister_and_reader,
    paths_of,
    within_one_prompt,
)
from dynarag_jax.stages.common.files import opened

NONE = ListBias()


@dataclass(frozen=True)
class CalibrationTarget:
    """What a policy is calibrated for; exactly one of them."""

    mean_k: float | None = None
    """passages of a list, on average"""
    tokens: float | None = None
    """the generator's tokens of a list's passages, on average, at most"""
    quality: Literal["", "set_f1", "answer"] = ""
    """the highest: set_f1 against the needed passages; answer, the headline metric of answers"""

    def __post_init__(self) -> None:
        given = [n for n in ("mean_k", "tokens") if getattr(self, n) is not None]
        given += ["quality"] if self.quality else []
        if len(given) > 1:
            raise InputError(f"target: {' and '.join(given)} are set; a policy has one target")
        for name in ("mean_k", "tokens"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"target: {name} = {getattr(self, name)} must not be negative")

    @property
    def name(self) -> str:
        """Which one is set; empty where none is."""
        if self.quality:
            return "quality"
        return next((n for n in ("mean_k", "tokens") if getattr(self, n) is not None), "")


@dataclass(frozen=True)
class Calibrate:
    """Choose how readily a policy stops, on questions of its own."""

    model: str = "{run}/feedback/model"
    questions: str = "{run}/label/development.jsonl"
    """none of those that are trained or evaluated on"""
    limit: int = 0
    """questions to take, the first; 0 takes all"""
    target: CalibrationTarget = CalibrationTarget()
    moved: Moved = "both"
    """what a bias is added to: stopping behind a passage (stop), reading nothing (empty), or both
    alike"""
    prompts: PromptConfig = INHERITED
    reader: str = ""
    """of encoder policies: the language model that answers, and whose tokens are counted"""
    generator: GeneratorConfig = GeneratorConfig()
    """a server that answers in place of the model"""
    metrics: MetricsConfig = MetricsConfig()
    dtype: Literal["float32", "bfloat16"] = INHERITED
    batch: SameResult[int] = 64
    """questions at once"""
    engine: SameResult[EngineConfig] = EngineConfig()

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise InputError(f"calibrate: limit = {self.limit} must not be negative")


def run(context: Context, stage: Calibrate) -> None:
    """Choose a bias, write the model with it, and say what its lists then are."""
    if not stage.target.name:
        raise InputError(
            "calibrate: no target; set one of target.mean_k, target.tokens and target.quality"
        )
    model, path = context.model(stage.model), context.path(stage.questions)
    beside = {"reader": context.model(stage.reader)} if stage.reader else {}
    context.manifest(inputs={"model": model, "questions": path} | beside)
    questions = read_questions(path, context.log)
    questions = questions[: stage.limit] if stage.limit else questions
    questions = within_one_prompt(context, questions, model, stage.prompts.ids)
    if not questions:
        raise InputError(f"{path}: no question has candidates")
    scored = by_benchmark(metrics=stage.metrics)
    with lister_and_reader(context, stage, model, bias=False) as (sampler, reader):
        if stage.target.tokens is not None and reader is None:
            raise InputError(
                "target.tokens counts a generator's tokens; name a language model as 'reader'"
            )
        directory = context.begin()
        paths = paths_of(context, sampler, questions, directory / "paths.jsonl", "lists")
        figures = figures_of(
            context, questions, lambda: ((i, one) for i, p in enumerate(paths) for one in p.lists),
            stage.target.quality, reader, scored, stage, directory / "answers.jsonl",
        )  # fmt: skip
        curve = policy_curve(stage.model, paths, stage.moved, figures)
        place = chosen(curve, stage.target)
        bias = bias_of(float(curve.values[place]), stage.moved)
        expected = [path.at(bias) for path in paths]
        found = lists_of(context, stage, sampler, questions, bias)
    if differ := sum(a != b for a, b in zip(expected, found, strict=True)):
        context.log(f"{differ} of {len(found)} lists are others than expected, by rounding")
    lists = {name: expected if name == "answer" else found for name in figures}
    reached = {name: mean(figure, lists[name]) for name, figure in figures.items()}
    before = {name: mean(f, [p.at(NONE) for p in paths]) for name, f in figures.items()}
    y = stage.target.quality or ("set_f1" if "set_f1" in figures else "mean_k")
    x = "tokens" if stage.target.tokens is not None else "mean_k"
    once(lambda: write_json(directory / "curve.json", curve_to_json(curve, x, y)))
    name = stage.target.quality or stage.target.name
    target = {name: getattr(stage.target, name, None)}
    calibration = Calibration(bias, target, reached, len(questions), path.name)
    save_calibrated(model, directory / "model", calibration)
    context.log("without: " + ", ".join(f"{n} {value:.3f}" for n, value in before.items()))
    context.log(f"{directory / 'model'}: {calibration}")


def lists_of(
    context: Context,
    stage: Calibrate,
    sampler: PolicySampler | EncoderSampler,
    questions: Sequence[Question],
    bias: ListBias,
) -> list[Chosen]:
    """The lists that the policy gives with a bias, drawn as they will be.

    Several processes share the questions, and each gets all lists.
    """
    if isinstance(sampler, EncoderSampler):
        own = sampler.with_bias(bias)
    else:
        policy = sampler.policy.with_bias(bias)
        own = PolicySampler(policy, stage.prompts, stage.batch, context.seed, stage.engine)
    mine = own.team.mine(questions)
    output = context.stage_directory / "lists.jsonl"
    with (
        opened(context, output, own.team, afresh=True) as rows,
        context.progress(len(questions), "its lists") as bar,
    ):
        own.heard = lambda: bar.update(own.team.count)
        for question, one in zip(mine, own.lists(mine, GREEDY), strict=True):
            rows.append({"id": question.id, "list": one.lists[0]})
        rows.finish(question.id for question in questions)
    found = {line["id"]: tuple(line["list"]) for _, line in read_jsonl(output)}
    wait("all have read the lists")
    once(output.unlink)
    return [found[question.id] for question in questions]


def chosen(curve: QualityCurve, target: CalibrationTarget) -> int:
    """The place on the curve that a target asks for."""
    if target.quality:
        return highest(curve, target.quality)
    if target.tokens is not None:
        return within(curve, "tokens", target.tokens)
    assert target.mean_k is not None
    return nearest(curve, "mean_k", target.mean_k)


def mean(figure: Figure, lists: Sequence[Chosen]) -> float:
    """The mean of a figure over the questions' lists."""
    return float(np.mean([figure(i, one) for i, one in enumerate(lists)]))
