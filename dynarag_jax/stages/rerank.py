"""Write a model's list for every question; candidates beyond one prompt by windows.

    dynarag rerank configs/llama3_8b.py --questions questions.jsonl --model MODEL
    dynarag rerank configs/llama3_8b.py --sampling.method beam --windows.stride 20

Each question is written as it came, with ``list`` (1-based positions in its ``ctxs``, best first),
``chosen`` (the ids of these passages), ``shown`` (candidates the reranker saw) and ``calls``
(prompts it read); of a policy that thinks also ``thought``, ``thought_tokens`` and
``thoughts_cut``. Lines are appended as they are made, so that a killed run continues. A question
that cannot be reranked (no passages; a passage longer than a prompt) stops nothing: it goes to
``rejects-NAME`` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynarag_jax.config import INHERITED, MorePassages, SameResult
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import thoughts_to_json
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.files import read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question, question_to_json
from dynarag_jax.sampling.compiled import SamplingNeeds
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.reranking import Reranked, expected_prompts, try_rerank
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.stages.common.calibrated import calibrated
from dynarag_jax.stages.common.candidates import OPEN, check_windows, to_rerank, too_many
from dynarag_jax.stages.common.encoder_samplers import encoder_sampler
from dynarag_jax.stages.common.encoder_training import within
from dynarag_jax.stages.common.files import opened, questions_by_output
from dynarag_jax.stages.common.predicting import PromptCount, counted


@dataclass(frozen=True)
class Rerank:
    """Write a model's list for every question; candidates beyond one prompt by windows."""

    model: str = "{run}/feedback/model"
    questions: tuple[str, ...] = ("{run}/retrieve/evaluation.jsonl",)
    """question files; each is written under its own name, with the lists"""
    prompts: PromptConfig = INHERITED
    sampling: Sampling = Sampling(temperature=0.0)
    """how lists are written; method 'beam' takes the most probable list it finds"""
    more_passages: MorePassages = INHERITED
    windows: Windows = OPEN
    """for questions with more candidates than ``prompts.ids``"""
    dtype: Literal["float32", "bfloat16"] = INHERITED
    batch: SameResult[int] = 64
    """prompts at once"""
    engine: SameResult[EngineConfig] = EngineConfig()

    def __post_init__(self) -> None:
        check_windows(self.windows, self.prompts, self.more_passages)


def to_plan(stage: Rerank) -> list[SamplingNeeds]:
    """What the stage samples."""
    return [
        SamplingNeeds(
            stage.model, 1, False, stage.prompts, stage.sampling, stage.batch, stage.engine,
            stage.dtype,
        )
    ]  # fmt: skip


def record(question: Question, found: Reranked) -> dict[str, Any]:
    """The question's line of the output."""
    return question_to_json(question) | {
        "list": list(found.list),
        "chosen": [question.passages[i - 1].id for i in found.list],
        "shown": found.shown,
        "calls": found.calls,
        **thoughts_to_json(found.thoughts),
    }


def thoughts_said(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the log says of thoughts before lists; nothing where there are none."""
    thought = [line for line in lines if "thought_tokens" in line]
    if not thought:
        return ""
    cut = sum(line["thoughts_cut"] for line in thought)
    mean = np.mean([line["thought_tokens"] for line in thought])
    return f", thoughts of {mean:.1f} tokens, {cut} of them cut at the limit"


def run(context: Context, stage: Rerank) -> None:
    """Write every question file under its own name, with the lists."""
    paths = questions_by_output(context, stage.questions)
    model = context.model(stage.model)
    context.manifest(inputs=paths | {"model": model})
    if is_encoder_policy(model):
        rerank_by_encoder(context, stage, model, paths)
        return
    policy = load_policy(model, context.mesh, stage.prompts, stage.dtype)
    policy = calibrated(context, policy, model)
    sampler = PolicySampler(policy, stage.prompts, stage.batch, context.run.seed, stage.engine)
    directory = context.begin()
    for name, path in paths.items():
        questions = read_questions(path, context.log)
        kept, aside = to_rerank(
            questions, stage.prompts.ids, stage.more_passages, name, context.log
        )
        given = {question.id: question for question in questions}
        team = sampler.team
        with (
            opened(context, directory / name, team) as rows,
            opened(context, directory / f"rejects-{name}", team) as rejects,
            context.progress(None, f"{name}: prompts") as bar,
        ):
            done = rows.done | rejects.done
            if context.primary:
                for reject in aside:
                    if reject.id not in done:
                        rejects.append({"id": reject.id, "reason": reject.reason})
            todo = [q for q in kept if q.id not in done]
            count = PromptCount(stage.prompts, stage.windows).add(todo, lists=True, answers=False)
            bar.start_at(0, count.most)
            context.log(
                f"{name}: {len(todo)} questions to rerank, {count}"
                + (f"; {len(done)} stand" if done else "")
            )
            # Some batches at once, so that the windows of many questions meet.
            for group, mine in team.groups(todo, sampler.together):
                expected = expected_prompts(group, stage.prompts, stage.windows)[1]
                with counted(sampler, bar, expected):
                    found = try_rerank(sampler, mine, stage.sampling, stage.windows)
                for question, one in zip(mine, found, strict=True):
                    if isinstance(one, InputError):
                        rejects.append({"id": question.id, "reason": str(one)})
                    else:
                        rows.append(record(given[question.id], one))
            for part in (rows, rejects):
                part.finish(q.id for q in questions)
        say_written(context, name, path, len(questions))


def say_written(context: Context, name: str, path: Path, asked: int) -> None:
    """Log how many lists stand, their mean length and prompts.

    Raises:
      InputError: there is none.
    """
    directory = context.stage_directory
    lines = [line for _, line in read_jsonl(directory / name)]
    rejected = asked - len(lines)
    if asked and not lines:
        _, first = next(read_jsonl(directory / f"rejects-{name}"))
        raise InputError(f"{path}: no question can be reranked ({first['reason']})")
    sizes = [len(line["list"]) for line in lines] or [0]
    calls = [line["calls"] for line in lines] or [0]
    context.log(
        f"{name}: {len(lines)} lists of {np.mean(sizes):.2f} passages, "
        f"{np.mean(calls):.2f} prompts a question"
        + thoughts_said(lines)
        + (f"; {rejected} rejected, see rejects-{name}" if rejected else "")
    )


def rerank_by_encoder(
    context: Context, stage: Rerank, model: Path, paths: Mapping[str, Path]
) -> None:
    """The same by an encoder policy, which reads all candidates at once: no windows."""
    most = min(stage.prompts.max_list, stage.prompts.ids)
    policy = load_encoder_policy(model, context.own_mesh, max_list=most, dtype=stage.dtype)
    policy = calibrated(context, policy, model)
    sampler = encoder_sampler(context, stage, policy)
    directory = context.begin()
    for name, path in paths.items():
        questions = read_questions(path, context.log)
        ids, rule = stage.prompts.ids, stage.more_passages
        kept = within(questions, ids, rule, name, context.log)
        given = {question.id: question for question in questions}
        left_out = set(given) - {question.id for question in kept}
        team = sampler.team
        with (
            opened(context, directory / name, team) as rows,
            opened(context, directory / f"rejects-{name}", team) as rejects,
            context.progress(len(questions), name) as bar,
        ):
            done = rows.done | rejects.done
            if context.primary:
                for own in (own for own in given if own in left_out - done):
                    rejects.append({"id": own, "reason": too_many(given[own], ids)})
            todo = [q for q in kept if q.id not in done]
            bar.start_at(len(questions) - len(todo), len(questions))
            for group, mine in team.groups(todo, sampler.together):
                found = sampler.try_lists(mine, stage.sampling)
                for question, one in zip(mine, found, strict=True):
                    if isinstance(one, InputError):
                        rejects.append({"id": question.id, "reason": str(one)})
                    else:
                        calls, _ = sampler.reading(question, one.lists[0])
                        reranked = Reranked(one.lists[0], calls, one.shown)
                        rows.append(record(given[question.id], reranked))
                bar.update(len(group))
            for part in (rows, rejects):
                part.finish(q.id for q in questions)
        say_written(context, name, path, len(questions))
