"""Curves of how good lists are against how much they read: what evaluate and calibrate share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.answering import answer
from dynarag_jax.evaluation.curves import (
    Figure,
    QualityCurve,
    curve_page,
    curve_to_json,
    list_f1,
    policy_curve,
    rule_curves,
)
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.evaluation.rules import fixed_k
from dynarag_jax.evaluation.scoring import Answerer
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.files import read_jsonl, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.policy.model import load_policy
from dynarag_jax.processes import once
from dynarag_jax.prompts import format_passage
from dynarag_jax.records import Question
from dynarag_jax.sampling.answer_server import ServerAnswers
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.stopping import StopPath, stop_paths
from dynarag_jax.stages.common.calibrated import calibrated
from dynarag_jax.stages.common.candidates import first_passages
from dynarag_jax.stages.common.encoder_samplers import encoder_sampler
from dynarag_jax.stages.common.files import opened
from dynarag_jax.stages.common.servers import generator_of

Quality = Literal["set_f1", "answer"]


@dataclass(frozen=True)
class CurveConfig:
    """The curve of quality against what lists read, of every model and of the rules."""

    points: int = 0
    """places of it that are printed; 0 draws none"""
    quality: Quality = "set_f1"
    """set_f1 against the needed passages; answer, the headline metric of the answers from every
    list on the way, which are as many as candidates"""
    against: Literal["mean_k", "tokens"] = "mean_k"
    """passages, or the generator's tokens of them"""

    def __post_init__(self) -> None:
        if self.points < 0 or self.points == 1:
            raise InputError(f"curve: points = {self.points} must be 0, or 2 and more")


@contextlib.contextmanager
def lister_and_reader(
    context: Context, stage: Any, model: Path, bias: bool = True
) -> Iterator[tuple[PolicySampler | EncoderSampler, PolicySampler | None]]:
    """Who writes a model's lists, and who answers from them: the model itself, or ``reader``.

    Args:
      stage: of its fields are read prompts, dtype, batch, engine, and reader.
      bias: whether its calibration is applied.
    """
    seed, mesh = context.run.seed, context.mesh
    if not is_encoder_policy(model):
        policy = load_policy(model, mesh, stage.prompts, stage.dtype)
        policy = calibrated(context, policy, model) if bias else policy
        sampler = PolicySampler(policy, stage.prompts, stage.batch, seed, stage.engine)
        yield sampler, sampler
        return
    most = min(stage.prompts.max_list, stage.prompts.ids)
    drawn = load_encoder_policy(model, context.own_mesh, max_list=most, dtype=stage.dtype)
    drawn = calibrated(context, drawn, model) if bias else drawn
    reader = None
    if stage.reader:
        loaded = load_policy(context.model(stage.reader), mesh, stage.prompts, stage.dtype)
        reader = PolicySampler(loaded, stage.prompts, stage.batch, seed, stage.engine)
    yield encoder_sampler(context, stage, drawn), reader


def within_one_prompt(
    context: Context, questions: Sequence[Question], model: Path, ids: int
) -> list[Question]:
    """Questions with the candidates that one look shows; whose others are left out is said."""
    questions = [question for question in questions if question.passages]
    if is_encoder_policy(model):
        return questions
    if many := sum(len(q.passages) > ids for q in questions):
        context.log(
            f"{many} of {len(questions)} questions have more passages than prompts.ids = {ids}: "
            f"where their lists stop is looked at over the first {ids}"
        )
    return [first_passages(question, ids) for question in questions]


def paths_of(
    context: Context,
    sampler: PolicySampler | EncoderSampler,
    questions: Sequence[Question],
    file: Path,
    what: str,
) -> list[StopPath]:
    """The paths of all questions; ``file`` keeps them, so that a killed run continues.

    Several processes share the questions.
    """
    with (
        opened(context, file, sampler.team) as rows,
        context.progress(len(questions), f"{what}: where lists stop") as bar,
    ):
        todo = [q for q in questions if q.id not in rows.done]
        bar.start_at(len(questions) - len(todo), len(questions))
        for group, mine in sampler.team.groups(todo, sampler.together):
            for question, path in zip(mine, stop_paths(sampler, mine), strict=True):
                # Of the last list, which has no alternative, no number is written.
                rows.append({"id": question.id, "lists": path.lists, "needs": path.needs[:-1]})
            bar.update(len(group))
        rows.finish(q.id for q in questions)
    found = {line["id"]: line for _, line in read_jsonl(file)}
    return [
        StopPath(
            tuple(map(tuple, found[q.id]["lists"])),
            (*map(float, found[q.id]["needs"]), float("-inf")),
        )
        for q in questions
    ]


def token_figure(questions: Sequence[Question], tokenizer: Any) -> Figure:
    """The generator's tokens of a list's passages, each with its number and title."""
    known: dict[tuple[int, int, int], int] = {}

    def figure(place: int, chosen: Chosen) -> float:
        total = 0
        for number, i in enumerate(chosen, 1):
            if (key := (place, number, i)) not in known:
                line = format_passage(number, questions[place].passages[i - 1])
                known[key] = len(tokenizer(line, add_special_tokens=False)["input_ids"])
            total += known[key]
        return float(total)

    return figure


def answer_figure(
    context: Context,
    reader: PolicySampler,
    questions: Sequence[Question],
    lists: Iterable[tuple[int, Chosen]],
    scored: Answerer,
    generator: ServerAnswers | None,
    file: Path,
) -> Figure:
    """The headline metric of the answers from given lists, kept in ``file``; others have none."""
    wanted = sorted(set(lists))
    with (
        opened(context, file, reader.team, _key) as rows,
        context.progress(len(wanted), "answers of the curve") as bar,
    ):
        todo = [(i, one) for i, one in wanted if _name(questions[i], one) not in rows.done]
        bar.start_at(len(wanted) - len(todo), len(wanted))
        for group, mine in reader.team.groups(todo, 4 * reader.batch):
            made = answer(reader, [questions[i] for i, _ in mine], [c for _, c in mine], generator)
            for question, one in made:
                value = next(iter(scored(question, one.answer).values()), 0.0)
                rows.append({"id": question.id, "list": one.list, "value": value})
            bar.update(len(group))
        rows.finish(_name(questions[i], one) for i, one in wanted)
    known = {_key(line): float(line["value"]) for _, line in read_jsonl(file)}
    return lambda place, chosen: known[_name(questions[place], chosen)]


def _name(question: Question, chosen: Chosen) -> str:
    return f"{question.id}/{list(chosen)}"


def _key(line: Mapping[str, Any]) -> str:
    return f"{line['id']}/{list(line['list'])}"


def figures_of(
    context: Context,
    questions: Sequence[Question],
    lists: Callable[[], Iterable[tuple[int, Chosen]]],
    quality: str,
    reader: PolicySampler | None,
    scored: Answerer,
    stage: Any,
    file: Path,
) -> dict[str, Figure]:
    """Every figure that can be had of lists: passages, tokens, set F1, and answers if asked for.

    Args:
      lists: the lists whose answers are needed, each with the place of its question.
      quality: answer asks for answers; set_f1 requires the needed passages.

    Raises:
      InputError: the quality cannot be had.
    """
    figures: dict[str, Figure] = {"mean_k": lambda _, chosen: float(len(chosen))}
    if reader is not None:
        figures["tokens"] = token_figure(questions, reader.policy.tokenizer)
    if quality == "set_f1" or all(q.gold is not None for q in questions):
        figures["set_f1"] = list_f1(questions)
    if quality == "answer":
        if reader is None:
            raise InputError(
                "quality = answer: an encoder policy answers nothing; name a language model as "
                "'reader'"
            )
        with generator_of(context, stage.generator, reader) as generator:
            figures["answer"] = answer_figure(
                context, reader, questions, lists(), scored, generator, file
            )
    return figures


def draw_curves(
    context: Context,
    stage: Any,
    models: Mapping[str, Path],
    questions: Sequence[Question],
    scores: Mapping[str, Sequence[float]] | None,
    scored: Answerer,
) -> None:
    """Print every model's curve and its area, beside the rules' on the same scores: curves.json.

    Args:
      stage: of ``stages.evaluate``.
      scores: of the candidates, by question id; None where some have none.
    """
    how = stage.curve
    if not how.points:
        return
    curves: list[QualityCurve] = []
    for number, (name, path) in enumerate(models.items()):
        asked = within_one_prompt(context, questions, path, stage.prompts.ids)
        with lister_and_reader(context, stage, path) as (sampler, reader):
            if how.against == "tokens" and reader is None:
                raise InputError(
                    "curve.against = tokens counts a generator's tokens; name a language model as "
                    "'reader', or take mean_k"
                )
            file = context.stage_directory / f"paths-{number}.jsonl"
            paths = paths_of(context, sampler, asked, file, name)
            last = number == len(models) - 1
            own = [scores[q.id][: len(q.passages)] for q in asked] if scores and last else None

            def lists(paths=paths, own=own) -> Iterator[tuple[int, Chosen]]:
                yield from ((i, one) for i, path in enumerate(paths) for one in path.lists)
                for i, values in enumerate(own or ()):
                    yield from ((i, fixed_k(values, k)) for k in range(len(values) + 1))

            file = context.stage_directory / f"curve-answers-{number}.jsonl"
            figures = figures_of(
                context, asked, lists, how.quality, reader, scored, stage, file
            )  # fmt: skip
        curves.append(policy_curve(name, paths, "both", figures))
        if own is not None:
            curves += rule_curves(asked, own, figures)
    policies = curves[: len(models)]
    rows = [curve_to_json(curve, how.against, how.quality, policies) for curve in curves]
    once(lambda: write_json(context.stage_directory / "curves.json", rows))
    note = "" if scores else "Candidates have no scores, so that there are no rules beside."
    context.log(curve_page(curves, len(models), how.against, how.quality, how.points, note))
