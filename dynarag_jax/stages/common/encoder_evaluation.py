"""Encoder policies evaluated beside every rule on the same scores, and with answers if asked."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynarag_jax.atomic import atomic_write
from dynarag_jax.data.reading import read_questions, with_candidates
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation import lists
from dynarag_jax.evaluation.answering import answer
from dynarag_jax.evaluation.list_tables import ListScores, list_page, lists_to_json, score_lists
from dynarag_jax.evaluation.lists import SHUFFLED, Chosen
from dynarag_jax.evaluation.predictions import Prediction, prediction_to_json
from dynarag_jax.evaluation.scoring import by_benchmark
from dynarag_jax.evaluation.tuning import read_tuning, retriever_scores, rule_systems
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.files import read_jsonl, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.parts import SharedRows, by_system, parts
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.processes import ProcessTeam, once
from dynarag_jax.records import Question
from dynarag_jax.retrieval.relevance import PairScorer, load_scorer
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.stages.common.calibrated import calibrated
from dynarag_jax.stages.common.curves import draw_curves
from dynarag_jax.stages.common.encoder_samplers import encoder_sampler, reader_of
from dynarag_jax.stages.common.encoder_training import within
from dynarag_jax.stages.common.files import opened
from dynarag_jax.stages.common.scores import score_once
from dynarag_jax.stages.common.servers import generator_of

KNOWN_K = "the scores' order, k known"
"""As many as are needed, in the order of the scores: what knowing how many alone would give."""

Written = Mapping[str, Chosen | InputError]
"""A system's lists by question id, or why there is none."""


def evaluate_encoders(
    context: Context,
    stage: Any,
    models: Mapping[str, Path],
    questions_path: Path,
    tuning: Path | None,
) -> None:
    """Write predictions.jsonl, scores.json and scores.md.

    Args:
      stage: of ``stages.evaluate``; tuning: the questions that rules are tuned on.

    Raises:
      InputError: some models are language models, or a question or the configuration is wrong.
    """
    if others := [name for name, path in models.items() if not is_encoder_policy(path)]:
        raise InputError(
            f"evaluate: '{others[0]}' is a language model, and others are encoder policies; "
            f"evaluate them apart, with 'reader' answering for the encoder policies"
        )
    ids, rule = stage.prompts.ids, stage.more_passages
    questions = read_questions(questions_path, context.log)
    questions = with_candidates(questions, questions_path, context.log)
    questions = within(questions, ids, rule, questions_path.name, context.log)
    if not questions:
        raise InputError(f"{questions_path}: no question has candidates")
    directory = context.begin()
    scorer = None
    if stage.scorer:
        scorer = load_scorer(context.model(stage.scorer), stage.dtype)
    if stage.baselines or stage.rules.names or stage.curve.points:
        scores = scores_of(context, scorer, questions, "scores")
    else:
        scores = [[0.0] * len(question.passages) for question in questions]  # nobody asks
    given = {q.id: own for q, own in zip(questions, scores, strict=True)}
    fixed: dict[str, Sequence[Chosen]] = {}
    widest = max(len(q.passages) for q in questions)
    cuts = [k for k in stage.top_k if k <= widest and stage.baselines]
    fixed |= (
        lists.static_systems(questions, given, cuts)
        if scorer
        else {lists.top_k_name(k): [lists.top_k(q, k) for q in questions] for k in cuts}
    )
    if stage.rules.names and tuning is not None:
        asked = read_tuning(tuning, stage.rules)
        asked = within(asked, ids, rule, tuning.name, context.log)
        both = ((asked, scores_of(context, scorer, asked, "tuning-scores")), (questions, scores))
        found, tuned = rule_systems(stage.rules, *both)
        if context.primary:
            write_json(directory / "rules.json", tuned)
        fixed |= found
    if stage.baselines:
        fixed[KNOWN_K] = [
            lists.by_scores(q, own, len(q.gold_list() or ()))
            for q, own in zip(questions, scores, strict=True)
        ]
        fixed[lists.ORACLE] = [lists.oracle(q) for q in questions]
    seen = ("", SHUFFLED) if stage.shuffled else ("",)
    own_systems = [name + how for name in models for how in seen]
    systems = [*own_systems, *fixed]
    # Who reads in common answers in common; an encoder policy is every process's own.
    team = ProcessTeam(context.mesh if stage.reader else None)
    with (
        opened(context, directory / "lists.jsonl", team, by_system) as drawn,
        opened(context, directory / "predictions.jsonl", team, by_system) as rows,
    ):
        mine = {
            system: team.mine([q for q in questions if f"{system}/{q.id}" not in rows.done])
            for system in systems
        }
        chosen: dict[str, Written] = {
            system: dict(zip((q.id for q in questions), own, strict=True))
            for system, own in fixed.items()
        }
        for name, path in models.items():
            most = min(stage.prompts.max_list, ids)
            if not any(mine[name + how] for how in seen):
                continue
            policy = load_encoder_policy(path, context.own_mesh, max_list=most, dtype=stage.dtype)
            policy = calibrated(context, policy, path)
            sampler = encoder_sampler(context, stage, policy)
            for how in seen:
                some = mine[name + how]
                own = written(context, sampler, stage, some, name + how, bool(how), drawn)
                chosen[name + how] = dict(zip((q.id for q in some), own, strict=True))
        predict(context, stage, rows, mine, chosen)
        rows.finish(f"{system}/{q.id}" for system in systems for q in questions)
    # The predictions hold the lists.
    once(lambda: [path.unlink() for path in parts(directory, "lists")])
    once(lambda: conclude(context, stage, questions, systems, own_systems))
    draw_curves(context, stage, models, questions, given, by_benchmark(metrics=stage.metrics))


def conclude(
    context: Context,
    stage: Any,
    questions: Sequence[Question],
    systems: Sequence[str],
    own_systems: Sequence[str],
) -> None:
    """Score what was predicted, and write the tables.

    Args:
      own_systems: those of the policies.
    """
    directory = context.stage_directory
    lines = {by_system(line): line for _, line in read_jsonl(directory / "predictions.jsonl")}
    scored = by_benchmark(metrics=stage.metrics)
    table: dict[str, ListScores] = {}
    for system in systems:
        own = [lines[f"{system}/{q.id}"] for q in questions]
        # A list that failed has no answer; an answer that failed is empty.
        written = [
            InputError(line["failed"])
            if line.get("failed") and line["answer"] is None
            else tuple(line["list"])
            for line in own
        ]
        answered = None
        if stage.reader:
            answered = [
                next(iter(scored(q, line["answer"]).values()))
                for q, line in zip(questions, own, strict=True)
            ]
        table[system] = score_lists(questions, written, answered)
    seed = context.run.seed
    named = f"the scores of {stage.scorer}" if stage.scorer else "the retriever's scores"
    page = list_page(questions, table, own_systems, [f"Rules and fixed cuts go by {named}."], seed)
    write_json(directory / "scores.json", lists_to_json(questions, table, seed))
    with atomic_write(directory / "scores.md") as stream:
        stream.write(page)
    context.log(page)


def scores_of(
    context: Context, scorer: PairScorer | None, questions: Sequence[Question], what: str
) -> list[list[float]]:
    """The scores that rules choose by: a scorer's, kept on disk, or the retriever's; or zeros.

    Raises:
      InputError: there is no scorer, and some candidates came without a score.
    """
    if scorer is None:
        longest = max((len(q.passages) for q in questions), default=0)
        return retriever_scores(questions, longest)
    output = context.stage_directory / f"{what}.jsonl"
    found = score_once(context, scorer, output, what, questions)
    return [found[question.id] for question in questions]


def written(
    context: Context,
    sampler: EncoderSampler,
    stage: Any,
    questions: Sequence[Question],
    system: str,
    shuffled: bool,
    drawn: SharedRows,
) -> list[Chosen | InputError]:
    """A policy's lists, in the positions of the questions as they came.

    Args:
      drawn: keeps them as they come; those that stand there are not drawn again.
    """
    standing = {
        line["id"]: line
        for path in parts(drawn.path.parent, drawn.path.stem)
        for _, line in read_jsonl(path)
        if line["system"] == system
    }
    found: dict[str, Chosen | InputError] = {
        q.id: InputError(line["failed"]) if line["failed"] else tuple(line["list"])
        for q in questions
        if (line := standing.get(q.id))
    }
    left = [q for q in questions if q.id not in found]
    with context.progress(len(questions), f"lists of {system}") as bar:
        bar.start_at(len(found), len(questions))
        sampler.heard = lambda: bar.update(1)
        for at in range(0, len(left), sampler.together):
            some = left[at : at + sampler.together]
            orders = [tuple(range(1, len(q.passages) + 1)) for q in some]
            asked = list(some)
            if shuffled:
                seed = context.run.seed
                mixed = [
                    q.shuffled(len(q.passages), random.Random(f"shuffle {seed} {q.id}"))
                    for q in some
                ]
                asked, orders = [q for q, _ in mixed], [order for _, order in mixed]
            lists_of_some = sampler.try_lists(asked, stage.sampling)
            for question, one, order in zip(some, lists_of_some, orders, strict=True):
                failed = str(one) if isinstance(one, InputError) else ""
                own = () if isinstance(one, InputError) else one.lists[0]
                chosen = tuple(order[i - 1] for i in own)
                drawn.append(
                    {"system": system, "id": question.id, "list": chosen, "failed": failed}
                )
                found[question.id] = InputError(failed) if failed else chosen
    return [found[q.id] for q in questions]


def predict(
    context: Context,
    stage: Any,
    rows: SharedRows,
    asked: Mapping[str, Sequence[Question]],
    chosen: Mapping[str, Written],
) -> None:
    """Append each system's lists, with the answers from them where there is a reader.

    Args:
      asked: this process's questions by system.
      chosen: their lists.
    """
    with contextlib.ExitStack() as stack:
        sampler = generator = None
        if stage.reader:
            sampler = reader_of(context, stage, context.model(stage.reader))
            generator = stack.enter_context(generator_of(context, stage.generator, sampler))
        # Systems often choose alike, and a list is read once.
        known: dict[tuple[str, Chosen], Prediction] = {}
        for system, questions in asked.items():
            new: dict[str, tuple[Question, Chosen]] = {}
            for question in questions:
                own = chosen[system][question.id]
                failed = str(own) if isinstance(own, InputError) else ""
                kept = () if isinstance(own, InputError) else own
                one = Prediction(question.id, list=kept, failed=failed)
                if sampler is not None and not failed:
                    if (question.id, kept) not in known:
                        new[question.id] = question, kept
                        continue
                    one = known[question.id, kept]
                rows.append(prediction_to_json(one, question, system))
            if sampler is None:
                continue
            asking = [question for question, _ in new.values()]
            given = [kept for _, kept in new.values()]
            with context.progress(len(asking), f"answers from {system}") as bar:
                for question, one in answer(sampler, asking, given, generator):
                    known[question.id, new[question.id][1]] = one
                    rows.append(prediction_to_json(one, question, system))
                    bar.update(1)
