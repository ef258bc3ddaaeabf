"""Sample lists, answer from each, reward the answers: rollouts.jsonl, appended as they finish.

    python -m train.rollout configs/quickstart.py
    python -m train.rollout configs/quickstart.py --samples 4 --sampling.temperature 0.7

A rollout that was killed continues: what stands in the file is not computed again.
"""

from __future__ import annotations

import random

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import JsonlAppender
from dynarag_jax.policy.model import load_policy
from dynarag_jax.records import read_questions, rollout_to_json
from dynarag_jax.sampling.rollouts import sample_rollouts
from dynarag_jax.sampling.writer import Writer
from dynarag_jax.stages import Rollout as Stage
from train.program import Context, main


def run(context: Context, stage: Stage) -> None:
    """Sample until every question has its rollout."""
    context.require_one_process()
    paths = {"questions": context.path(stage.questions), "model": context.model(stage.model)}
    if stage.reference:
        paths["reference"] = context.model(stage.reference)
    context.manifest(inputs=paths)
    questions = [q for q in read_questions(paths["questions"]) if q.answers and q.passages]
    if not questions:
        raise InputError(f"{paths['questions']}: no question has both passages and answers")
    if stage.limit:
        random.Random(f"{context.run.seed}/rollout").shuffle(questions)
        questions = questions[: stage.limit]
    policy = load_policy(paths["model"], context.mesh, stage.prompts, stage.dtype)
    seed = context.run.seed
    writer = reference = Writer(policy, stage.prompts, stage.batch, seed)
    if stage.reference:
        other = load_policy(paths["reference"], context.mesh, stage.prompts, stage.dtype)
        reference = Writer(other, stage.prompts, stage.batch, seed)
    output = context.stage_directory / "rollouts.jsonl"
    with JsonlAppender(output) as rows, context.progress(len(questions), context.stage) as bar:
        if rows.repaired:
            context.log(f"{output}: removed an unfinished last line of {rows.repaired} bytes")
        context.truncate_metrics(len(rows.done))
        bar.update(len(rows.done))
        todo = [q for q in questions if q.id not in rows.done]
        # A few batches at once, so that equal answers meet and length buckets fill.
        group = 4 * writer.batch
        done = len(rows.done)
        for first in range(0, len(todo), group):
            rollouts = sample_rollouts(
                writer,
                reference,
                todo[first : first + group],
                stage.sampling,
                stage.samples,
                stage.reward,
                stage.answers,
            )
            for rollout in rollouts:
                rows.append(rollout_to_json(rollout))
            done += len(rollouts)
            every = [t for r in rollouts for t in r.trajectories for _ in range(t.count)]
            context.metrics(
                done,
                reward=float(np.mean([t.reward for t in every])),
                mean_k=float(np.mean([len(t.list) for t in every])),
                distinct=float(np.mean([len(r.trajectories) for r in rollouts])),
                **{
                    f"term/{name}": float(np.mean([t.terms[name] for t in every]))
                    for name in every[0].terms
                },
            )
            bar.update(len(rollouts))


if __name__ == "__main__":
    main("rollout", Stage, run)
