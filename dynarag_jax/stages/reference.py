"""Compute the log-probabilities of rollouts anew: another reference, or rollouts from elsewhere.

    python -m train.reference configs/quickstart.py --model runs/quickstart/pretrain/model
    python -m train.feedback configs/quickstart.py \
        --rollouts runs/quickstart/reference/rollouts.jsonl \
        --reference runs/quickstart/pretrain/model

Writes rollouts.jsonl, appended as it goes; killed and started again, it continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynarag_jax.config import INHERITED, SameResult
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rollout_records import Rollout, read_rollouts, rollout_to_json
from dynarag_jax.sampling.answer_scoring import with_answers
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.rescoring import with_logps
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
    mesh, seed = context.mesh, context.run.seed
    policy = load_policy(paths["model"], mesh, stage.prompts, stage.dtype)
    reference = sampler = PolicySampler(policy, stage.prompts, stage.batch, seed)
    if stage.policy and paths["policy"] != paths["model"]:
        other = load_policy(paths["policy"], mesh, stage.prompts, stage.dtype)
        sampler = PolicySampler(other, stage.prompts, stage.batch, seed)
    output = context.begin() / "rollouts.jsonl"
    team = reference.team
    with (
        opened(context, output, team) as rows,
        context.progress(len(rollouts), context.stage) as bar,
    ):
        bar.start_at(len(rows.done), len(rollouts))
        todo = [(q, r) for q, r in zip(questions, rollouts, strict=True) if r.id not in rows.done]
        for group, mine in team.groups(todo, 4 * reference.batch):
            some = [q for q, _ in mine]
            scored = with_logps(reference, some, [r for _, r in mine], branches, "reference")
            if stage.policy:
                scored = with_logps(sampler, some, scored, branches, "behavior")
            if stage.answers:
                scored = with_answers(reference, some, scored, branches, stage.reward)
            for rollout in scored:
                rows.append(rollout_to_json(rollout))
            bar.update(len(group))
        rows.finish(r.id for r in rollouts)
