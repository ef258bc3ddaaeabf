"""Compute the log-probabilities of rollouts anew: another reference, or rollouts from elsewhere.

    python -m train.reference configs/quickstart.py --model runs/quickstart/pretrain/model
    python -m train.feedback configs/quickstart.py \
        --rollouts runs/quickstart/reference/rollouts.jsonl \
        --reference runs/quickstart/pretrain/model

Writes rollouts.jsonl, appended as it goes; killed and started again, it continues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from dynarag_jax.config import INHERITED, SameResult
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.policy.model import load_policy
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rollout_records import Rollout, read_rollouts, rollout_to_json
from dynarag_jax.sampling.answer_scoring import with_answers
from dynarag_jax.sampling.encoder_rollouts import with_list_logps
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.rescoring import with_logps
from dynarag_jax.stages.common.encoder_samplers import encoder_sampler
from dynarag_jax.stages.common.files import opened


@dataclass(frozen=True)
class Reference:
    """Compute the log-probabilities of rollouts anew: under another reference, or from elsewhere.

    Reads lists, answers and rewards, and writes them with log-probabilities by token and the
    fingerprints of the weights, the tokenizer and the prompts behind them.
    """

    model: str = "{run}/sft/model"
    """the reference"""
    policy: str = ""
    """the model that sampled the lists, where its log-probabilities are wanted, too"""
    rollouts: str = "{run}/rollout/rollouts.jsonl"
    questions: str = "{run}/label/train.jsonl"
    """the questions that were sampled from"""
    not_shown: Literal["refuse", "leave_out"] = "refuse"
    """lists with a passage that the prompt has no room for: refuse, or leave_out the questions that
    have one, which is counted; for lists that no policy sampled (``contrast``)"""
    answers: bool = False
    """also score the distinct answers, all from the best list's passages"""
    reward: RewardWeights = RewardWeights()
    """with ``answers``: what ranks them, from the terms on record"""
    prompts: PromptConfig = INHERITED
    dtype: Literal["float32", "bfloat16"] = INHERITED
    batch: SameResult[int] = 64
    """prompts scored at once"""


def asked(
    rollouts: list[Rollout], questions: list[Question], where: str, source: str
) -> list[Question]:
    """The question of each rollout, in the rollouts' order.

    Raises:
      InputError: a rollout's question is not among ``questions``.
    """
    by_id = {question.id: question for question in questions}
    for rollout in rollouts:
        if rollout.id not in by_id:
            raise InputError(
                f"{where}: question '{rollout.id}' is not in {source}; "
                f"give the question file that was sampled from"
            )
    return [by_id[rollout.id] for rollout in rollouts]


def run(context: Context, stage: Reference) -> None:
    """Score every rollout."""
    paths = {
        "rollouts": context.path(stage.rollouts),
        "questions": context.path(stage.questions),
        "model": context.model(stage.model),
    }
    if stage.policy:
        paths["policy"] = context.model(stage.policy)
    context.manifest(inputs=paths)
    rollouts = read_rollouts(paths["rollouts"])
    questions = asked(
        rollouts,
        read_questions(paths["questions"], context.log),
        str(paths["rollouts"]),
        stage.questions,
    )
    branches = max((len(r.trajectories) for r in rollouts), default=0)
    if not branches:
        raise InputError(f"{paths['rollouts']}: no lists to score")
    scorer, team, batch, shown = scorer_of(context, stage, paths, branches)
    given = list(zip(questions, rollouts, strict=True))
    if stage.not_shown == "leave_out":
        kept = [(q, r) for q, r in given if not beyond(r, shown(q))]
        if not kept:
            raise InputError(f"{paths['rollouts']}: prompts show the passages of no question")
        if len(kept) < len(given):
            context.log(
                f"{len(given) - len(kept)} of {len(given)} questions are left out: a list has a "
                f"passage that the prompt has no room for"
            )
        given = kept
    output = context.begin() / "rollouts.jsonl"
    with (
        opened(context, output, team) as rows,
        context.progress(len(given), context.stage) as bar,
    ):
        bar.start_at(len(rows.done), len(given))
        todo = [(q, r) for q, r in given if r.id not in rows.done]
        for group, mine in team.groups(todo, 4 * batch):
            for rollout in scorer([q for q, _ in mine], [r for _, r in mine]):
                rows.append(rollout_to_json(rollout))
            bar.update(len(group))
        rows.finish(r.id for _, r in given)


def beyond(rollout: Rollout, shown: int) -> bool:
    """Whether a list of the rollout holds a passage beyond the ``shown`` first."""
    return any(i > shown for t in rollout.trajectories for i in t.list)


class _Scorer(NamedTuple):
    """What scores rollouts, with whom it shares the work, in which batches, and what it shows."""

    score: Callable[[list[Question], list[Rollout]], list[Rollout]]
    team: ProcessTeam
    batch: int
    shown: Callable[[Question], int]


def scorer_of(context: Context, stage: Reference, paths: dict[str, Path], branches: int) -> _Scorer:
    """What gives rollouts their log-probabilities.

    Args:
      branches: the most distinct lists of one rollout.

    Raises:
      InputError: the two models are of different kinds, or answers are asked of an encoder policy.
    """
    behind = paths.get("policy", paths["model"])
    kinds = {is_encoder_policy(paths["model"]), is_encoder_policy(behind)}
    if len(kinds) > 1:
        raise InputError(
            f"model {paths['model']} and policy {behind}: one is an encoder policy, and the other "
            f"a language model; lists have log-probabilities of one kind"
        )
    if kinds == {True}:
        if stage.answers:
            raise InputError("answers is set, and an encoder policy writes none to be scored")
        most = min(stage.prompts.max_list, stage.prompts.ids)

        def drawn(path: Path) -> EncoderSampler:
            policy = load_encoder_policy(path, context.own_mesh, max_list=most, dtype=stage.dtype)
            return encoder_sampler(context, stage, policy)

        reference = drawn(paths["model"])
        sampler = reference if behind == paths["model"] else drawn(behind)

        def by_encoder(questions: list[Question], rollouts: list[Rollout]) -> list[Rollout]:
            scored = with_list_logps(reference, questions, rollouts, "reference")
            if stage.policy:
                scored = with_list_logps(sampler, questions, scored, "behavior")
            return scored

        shown = lambda question: reference.maker.pairs(question).count  # noqa: E731
        return _Scorer(by_encoder, reference.team, reference.batch, shown)

    def written(path: Path) -> PolicySampler:
        policy = load_policy(path, context.mesh, stage.prompts, stage.dtype)
        return PolicySampler(policy, stage.prompts, stage.batch, context.run.seed)

    reader = written(paths["model"])
    writer = reader if behind == paths["model"] else written(behind)

    def by_language_model(questions: list[Question], rollouts: list[Rollout]) -> list[Rollout]:
        scored = with_logps(reader, questions, rollouts, branches, "reference")
        if stage.policy:
            scored = with_logps(writer, questions, scored, branches, "behavior")
        if stage.answers:
            scored = with_answers(reader, questions, scored, branches, stage.reward)
        return scored

    shown = lambda question: reader.maker.rerank_prompt(question).shown  # noqa: E731
    return _Scorer(by_language_model, reader.team, reader.batch, shown)
