"""On-policy rounds: rollout and feedback again and again, each from the policy of the one before.

    dynarag rounds configs/rounds.py
    dynarag rounds configs/rounds.py --rounds 5 --patience 2

Round 1 is the stages of ``repeat`` as they stand in the configuration. Round 2 runs them anew in
directories of their own, ``rollout_2`` and ``feedback_2``: where they began with ``begin`` they
begin with what round 1 made, where they read each other they read each other's second result, and
their seed is one higher. After every round the policy is evaluated on development questions
(``rounds_1``, ``rounds_2`` and so on; ``rounds_0`` is what everything began with). The best by
``figure`` becomes RUN/rounds/model. Every part is a stage: what stands is not made again, and a
killed run continues where it was.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.config import INHERITED, MorePassages, SameResult
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.exchange.output import share_files, shared_directory
from dynarag_jax.files import read_json, write_json
from dynarag_jax.launch import signals
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.stages.evaluate import Evaluate


@dataclass(frozen=True)
class Rounds:
    """On-policy rounds: rollout and feedback again and again, the best one kept."""

    rounds: int = 3
    """at most"""
    repeat: tuple[str, ...] = ("rollout", "feedback")
    """stages of this configuration, in order; the last one trains the policy"""
    begin: str = "{run}/sft/model"
    """the policy that round 1 begins with, as the stages name it"""
    references: Literal["fresh", "first"] = "fresh"
    """the policy that each round begins with, or that of round 1 in all of them"""
    questions: str = "{run}/label/development.jsonl"
    """development questions, none of those that are trained or evaluated on"""
    figure: str = "em"
    """what is to rise: a figure of ``evaluate``'s scores.json, such as em, f1, set_f1"""
    gain: float = 0.0
    """a round is better where the figure exceeds the best before by more than this"""
    patience: int = 1
    """rounds in a row that are not better, after which no more are run"""
    reader: str = ""
    """of encoder policies: the language model that answers the development questions"""
    generator: GeneratorConfig = GeneratorConfig()
    """a server that answers them"""
    metrics: MetricsConfig = MetricsConfig()
    prompts: PromptConfig = INHERITED
    dtype: Literal["float32", "bfloat16"] = INHERITED
    more_passages: MorePassages = INHERITED
    batch: SameResult[int] = 64

    def __post_init__(self) -> None:
        for name in ("rounds", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"rounds: {name} = {getattr(self, name)} must be positive")
        if not self.repeat or not self.begin:
            raise InputError("rounds: 'repeat' names no stage, or 'begin' no policy")


@dataclass(frozen=True)
class Measured:
    """A round's policy on the development questions."""

    round: int
    figure: float
    model: str
    figures: dict[str, float]
    """all of the evaluation's: whether lists or answers grow while the one that counts does not"""


def run(context: Context, stage: Rounds) -> None:
    """Run rounds until nothing is gained; the best policy is RUN/rounds/model."""
    unknown = [name for name in stage.repeat if name not in context.stages]
    if unknown:
        raise InputError(
            f"rounds: repeat names '{unknown[0]}', and this configuration has no such stage"
            f"{nearest(unknown[0], context.stages)}"
        )
    result = f"{{run}}/{stage.repeat[-1]}/model"
    context.manifest(
        inputs={
            "begin": context.model(stage.begin),
            "first": context.path(result),
            "questions": context.path(stage.questions),
        }
    )
    directory = context.begin()
    context.truncate_metrics(0)  # every round is looked at again
    parts: dict[str, Any] = {}
    measured = [measure(context, stage, parts, 0, stage.begin)]
    while len(measured) <= stage.rounds and not settled(measured, stage):
        number = len(measured)
        if number > 1:
            for name, one in of_round(context.stages, stage, number).items():
                nested(context, parts, name, one, context.seed + number - 1)
        model = named(result, stage.repeat, number)
        measured.append(measure(context, stage, parts, number, model))
        best = best_of(measured, stage.gain)
        if context.primary:
            rows = [dataclasses.asdict(one) for one in measured]
            write_json(
                directory / "rounds.json",
                {"figure": stage.figure, "best": best.round, "rounds": rows},
            )
        context.metrics(number, **measured[-1].figures, best=best.figure)
    best = best_of(measured, stage.gain)
    ran = ", ".join(f"{one.round}: {one.figure:.4f}" for one in measured)
    context.log(f"{stage.figure} by round: {ran}; the best is round {best.round}")
    if not best.round:
        context.log("nothing was gained: the model is the one that round 1 began with")
    with shared_directory(directory / "model", overwrite=True) as temporary:
        if context.primary:
            share_files(context.model(best.model), temporary)


def settled(measured: list[Measured], stage: Rounds) -> bool:
    """Whether the last rounds have gained nothing."""
    return measured[-1].round - best_of(measured, stage.gain).round >= stage.patience


def best_of(measured: list[Measured], gain: float) -> Measured:
    """The best round: each later one must exceed the best before it by more than ``gain``."""
    best = measured[0]
    for one in measured[1:]:
        if one.figure > best.figure + gain:
            best = one
    return best


# ---------------------------------------------------------------------------- the stages of a round


def named(text: str, repeat: tuple[str, ...], number: int) -> str:
    """A path of the configuration, in round ``number``: of the stages that are repeated its own."""
    parts = text.split("/")
    if number > 1 and parts[0] == "{run}" and len(parts) > 1 and parts[1] in repeat:
        parts[1] = f"{parts[1]}_{number}"
    return "/".join(parts)


def of_round(stages: Mapping[str, Any], stage: Rounds, number: int) -> dict[str, Any]:
    """The repeated stages as they are in a round behind the first, by name.

    Raises:
      InputError: one of these names is taken, or no stage begins with ``begin``.
    """
    before = named(f"{{run}}/{stage.repeat[-1]}/model", stage.repeat, number - 1)
    found, begun = {}, False
    for name in stage.repeat:
        if (own := f"{name}_{number}") in stages:
            raise InputError(f"rounds: round {number} needs the name '{own}', which a stage has")
        one = stages[name]
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            if not isinstance(value, str):
                continue
            reference = field.name == "reference"
            if reference and stage.references == "first":
                # Empty means what is begun with, and that is another policy now.
                changed[field.name] = value or stage.begin
            elif value == stage.begin:
                changed[field.name], begun = before, True
            elif (path := named(value, stage.repeat, number)) != value:
                changed[field.name] = path
        found[own] = replace(one, **changed)
    if not begun:
        raise InputError(
            f"rounds: none of {', '.join(stage.repeat)} begins with begin = '{stage.begin}', so "
            f"that every round would be the first again; name the policy as they do"
        )
    return found


def nested(context: Context, parts: dict[str, Any], name: str, one: Any, seed: int) -> Path:
    """Run a stage of a round, in a directory of its own beside the others.

    Args:
      parts: those that ran before it, to which it is added.
    """
    own = list(context.stages)
    known = {n: context.stages[n] for n in own[: own.index(context.stage)]}
    parts[name] = one
    inner = Context(replace(context.run, seed=seed), known | parts, name, context.consent)
    try:
        run_stage(inner, program_of(name, one).run)
    finally:
        signals.on_leaving(context.abandon)
    # A stage's weights and compiled programs are not held while the next one runs.
    gc.collect()
    return inner.stage_directory


def measure(
    context: Context, stage: Rounds, parts: dict[str, Any], number: int, model: str
) -> Measured:
    """Evaluate a round's policy on the development questions.

    Raises:
      InputError: the evaluation has no such figure.
    """
    name = f"round {number}"
    evaluate = Evaluate(
        models={name: model}, questions=stage.questions, prompts=stage.prompts, dtype=stage.dtype,
        more_passages=stage.more_passages, baselines=False, reader=stage.reader,
        generator=stage.generator, metrics=stage.metrics, batch=stage.batch, examples=0,
    )  # fmt: skip
    place = nested(context, parts, f"{context.stage}_{number}", evaluate, context.seed)
    scores = read_json(place / "scores.json")[name]
    figures = {n: x["mean"] for n, x in scores.items() if isinstance(x, dict) and "mean" in x}
    if stage.figure not in figures:
        raise InputError(
            f"rounds: figure = '{stage.figure}' is none of {', '.join(figures)}"
            f"{nearest(stage.figure, figures)}"
        )
    return Measured(number, float(figures[stage.figure]), model, figures)
