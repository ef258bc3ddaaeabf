"""DPO on the best and the worst sampled list of each question, generator SFT beside it.

python -m train.dpo configs/quickstart.py
python -m train.dpo configs/quickstart.py --reranker.objectives.dpo.beta 0.5
"""

from __future__ import annotations

from dynarag_jax.errors import InputError
from dynarag_jax.records import read_questions, read_rollouts
from dynarag_jax.stages import Dpo
from dynarag_jax.training.batches import Example
from dynarag_jax.training.examples import best_and_worst
from dynarag_jax.training.run import example_maker, generator_source, reranker_source
from train.program import Context, main
from train.training import inputs, start_stage, train_stage


def run(context: Context, stage: Dpo) -> None:
    """Train on preference pairs."""
    rollouts_path = context.path(stage.rollouts)
    context.manifest(inputs=inputs(context, stage) | {"rollouts": rollouts_path})
    questions = read_questions(context.path(stage.questions))
    by_id = {question.id: question for question in questions}
    rollouts = read_rollouts(rollouts_path)
    for rollout in rollouts:
        if rollout.id not in by_id:
            raise InputError(
                f"{rollouts_path}: question '{rollout.id}' is not in {stage.questions}; "
                f"give the question file that was sampled from"
            )
    pairs, counts = best_and_worst(rollouts, stage.min_gap)
    context.log(
        f"{counts.pairs} pairs from {len(rollouts)} questions; left out: {counts.ties} rewarded "
        f"alike, {counts.single} with one distinct list"
    )
    if not pairs:
        raise InputError(f"{rollouts_path}: no question has two lists of different reward")
    start = start_stage(context, stage)
    maker = example_maker(stage, start, context.token_cache)

    def pair(_: int, index: int) -> Example:
        qid, best, worst = pairs[index]
        return maker.pair(by_id[qid], best, worst)

    sources = [
        reranker_source(stage, start, len(pairs), 2, pair),
        generator_source(stage, questions, maker, context.run.seed),
    ]
    train_stage(context, stage, start, sources, maker)


if __name__ == "__main__":
    main("dpo", Dpo, run)
