"""Rollouts of an encoder policy: lists, answers of a generator where there is one, rewards."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.data.reading import read_valid_questions
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.scorer import Scorer
from dynarag_jax.rollout_records import Rollout, rollout_to_json, signal_figures
from dynarag_jax.sampling.answer_scoring import gold_likelihood
from dynarag_jax.sampling.answer_server import ServerAnswers
from dynarag_jax.sampling.credit import SharedLikelihood
from dynarag_jax.sampling.encoder_rollouts import roll_out_lists
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.list_sources import Reject
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.stages.common.encoder_samplers import encoder_sampler, reader_of
from dynarag_jax.stages.common.encoder_training import within
from dynarag_jax.stages.common.files import opened
from dynarag_jax.stages.common.servers import generator_of, say_asked

ROLLOUTS, REJECTS = "rollouts.jsonl", "rejects.jsonl"


def sample_lists(
    context: Context,
    stage: Any,
    paths: Mapping[str, Path],
    scorer_of: Callable[[Context, Any, ProcessTeam], Scorer],
) -> None:
    """Sample until every question has its rollout; killed and started again, it continues.

    Args:
      stage: of ``stages.rollout``; paths: its inputs by name.

    Raises:
      InputError: no question can be used, or the reward needs what is not here.
    """
    if not stage.reader and (needy := stage.reward.answered()):
        raise InputError(
            f"reward: '{needy[0]}' judges an answer, and an encoder policy writes none: name a "
            f"language model as 'reader', or weigh set_f1 alone"
        )
    if stage.generator.url and not stage.reader:
        raise InputError(
            "generator.url answers from prompts, whose limits and tokenizer are a language "
            "model's: name one as 'reader'; it answers nothing then"
        )
    if stage.server.url or stage.answers:
        what = "server.url" if stage.server.url else "answers"
        raise InputError(f"{what} is set, and an encoder policy's rollouts have no use for it")
    usable, rejects = usable_questions(context, stage, paths["questions"])
    most = min(stage.prompts.max_list, stage.prompts.ids)

    def load(path: Path) -> EncoderSampler:
        policy = load_encoder_policy(path, context.own_mesh, max_list=most, dtype=stage.dtype)
        return encoder_sampler(context, stage, policy)

    sampler = reference = load(paths["model"])
    if "reference" in paths:
        reference = load(paths["reference"])
    reader = reader_of(context, stage, paths["reader"]) if stage.reader else None
    # Who reads in common answers in common; an encoder policy is every process's own.
    team = sampler.team if reader is None else reader.team
    scorer = scorer_of(context, stage, team)
    if reader is not None:
        say_unjudged(context, stage.reward)
    if scorer.weights.likelihood and reader is not None:
        found = SharedLikelihood if stage.credit else gold_likelihood
        scorer.likelihood = found(reader)
    directory = context.begin()
    with contextlib.ExitStack() as stack:
        if scorer.judge is not None:
            stack.callback(scorer.judge.close)
        rows, left = (
            stack.enter_context(opened(context, directory / name, team))
            for name in (ROLLOUTS, REJECTS)
        )
        done = rows.done | left.done
        if context.primary:
            for reject in rejects:
                if reject.id not in done:
                    left.append({"id": reject.id, "reason": reject.reason})
        todo = [q for q in usable if q.id not in done]
        generator = stack.enter_context(answering(context, stage, reader))
        every = len(usable) + len(rejects)
        bar = stack.enter_context(context.progress(every, context.stage))
        bar.start_at(every - len(todo), every)
        context.truncate_metrics(len(rows.done))
        count = len(rows.done)
        # Each question is several lists to a reader: fewer at a time are on record sooner.
        size = 4 * stage.batch if reader is None else -(-stage.batch // 2)
        for group, mine in team.groups(todo, size):
            began = time.monotonic()
            made: list[Rollout] = []
            for one in roll_out_lists(
                sampler, reference, generator, mine, stage.sampling, stage.samples, scorer,
                stage.credit,
            ):  # fmt: skip
                if isinstance(one, Reject):
                    left.append({"id": one.id, "reason": one.reason})
                else:
                    rows.append(rollout_to_json(one))
                    made.append(one)
            bar.update(len(group))
            count += len(made) * team.count
            if made:
                _report(context, count, made, (time.monotonic() - began) / team.count)
    if scorer.judge is not None:
        say_asked(context, "the judge's grades", scorer.judge.counts, scorer.judge.reasons)
    rows.finish(q.id for q in usable)
    if left.finish([*(r.id for r in rejects), *(q.id for q in usable)], always=False):
        context.log(f"some questions are set aside: see {left.path}")


def say_unjudged(context: Context, reward: RewardWeights) -> None:
    """Say that a rollout's answers stay empty, where the reward judges none."""
    if not reward.judged():
        context.log("no term of the reward judges an answer: none is asked for")


@contextlib.contextmanager
def answering(
    context: Context, stage: Any, reader: PolicySampler | None
) -> Iterator[PolicySampler | ServerAnswers | None]:
    """Who answers: a server, the reader, or nobody."""
    if reader is None:
        yield None
        return
    with generator_of(context, stage.generator, reader) as server:
        yield server or reader


def usable_questions(
    context: Context, stage: Any, path: Path
) -> tuple[list[Question], list[Reject]]:
    """The questions to sample, and those that cannot be used.

    Raises:
      InputError: none can be used.
    """
    questions, wrong = read_valid_questions(path)
    rejects = [Reject(name, reason) for name, reason in wrong]
    usable = []
    for question in questions:
        if not question.passages:
            reason = "has no passages; retrieve some first"
        elif stage.reader and not question.answers:
            reason = "has no answers, and the reward needs one"
        elif stage.reward.set_f1 and question.gold is None:
            reason = "does not say which passages are needed (field 'gold'), and the reward does"
        else:
            usable.append(question)
            continue
        rejects.append(Reject(question.id, f"question '{question.id}' {reason}"))
    if not usable:
        reason = f" ({rejects[0].reason})" if rejects else ""
        raise InputError(f"{path}: no question can be used{reason}")
    usable = within(usable, stage.prompts.ids, stage.more_passages, path.name, context.log)
    if stage.limit:
        random.Random(f"{context.run.seed}/rollout").shuffle(usable)
        usable = usable[: stage.limit]
    return usable, rejects


def _report(context: Context, done: int, recent: list[Rollout], seconds: float) -> None:
    """Write figures of what was sampled since the last report as metrics and to the log."""
    every = [t for r in recent for t in r.trajectories for _ in range(t.count)]
    figures = {
        "reward": float(np.mean([t.reward for t in every])),
        "mean_k": float(np.mean([len(t.list) for t in every])),
        "distinct": float(np.mean([len(r.trajectories) for r in recent])),
        "questions_per_second": len(recent) / max(seconds, 1e-9),
        **signal_figures(recent),
    }
    terms = {
        f"term/{name}": float(np.mean([t.terms[name] for t in every if name in t.terms]))
        for name in dict.fromkeys(name for t in every for name in t.terms)
    }
    if lacking := sum(bool(t.missing) for r in recent for t in r.trajectories):
        figures["missing_rewards"] = float(lacking)
    context.metrics(done, **figures, **terms)
    context.log(
        f"{figures['questions_per_second']:.1f} questions/s; {figures['distinct']:.2f} distinct "
        f"lists a question, mean k {figures['mean_k']:.2f}, reward {figures['reward']:.3f}"
        + (f", {lacking} lists without a whole reward" if lacking else "")
    )
