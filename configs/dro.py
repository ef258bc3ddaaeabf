"""The quickstart's world with DRO: lists as latent variables, selection and generator in turn.

    dynarag run configs/dro.py
    dynarag run configs/dro.py --rounds.rounds 4 --lists.reranker.objectives.dro.temperature 2

After DRO (arXiv 2505.03075): sample lists, weigh each by how likely it makes the reference answer,
imitate the lists by their weight, then the answers from them, and again. Each round is a rollout,
``lists``, which trains the selection alone, and ``answers``, which trains the generator alone on
lists drawn by their weight.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import Dro, Objectives, TokenNll
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.stages import Contexts, Mix, Rounds

quickstart = base_config(__file__, "quickstart.py")

run = replace(quickstart.run, directory="runs/dro")

before = quickstart.stages
feedback = before["feedback"]
objectives = Objectives(nll=TokenNll(weight=0.0), dro=Dro(weight=1.0))
learned = "{run}/mix/train.jsonl"

shared = ("facts", "retrieve", "clean", "pretrain", "lists", "reading", "label", "sft")
stages = {
    **{name: before[name] for name in shared},
    "mix": Mix(train={"facts": "{run}/label/train.jsonl"}, development=500 / 8000, shuffled=False),
    "rollout": replace(
        before["rollout"],
        questions=learned,
        limit=1024,
        reward=RewardWeights(em=0.0, passages=0.0, likelihood=1.0),
    ),
    "lists": replace(
        feedback,
        questions=learned,
        reranker=replace(feedback.reranker, objectives=objectives),
        generator=replace(feedback.generator, batch=0),
        epochs=1.0,
    ),
    "answers": replace(
        feedback,
        init="{run}/lists/model",
        questions=learned,
        reranker=replace(feedback.reranker, batch=0),
        contexts=Contexts(sampled=1.0),
        epochs=0.2,
    ),
    "rounds": Rounds(
        rounds=3,
        repeat=("rollout", "lists", "answers"),
        questions="{run}/mix/development.jsonl",
        figure="em",
    ),
    "evaluate": replace(
        before["evaluate"],
        models={"behavior cloning": "{run}/sft/model", "after rounds": "{run}/rounds/model"},
    ),
}
