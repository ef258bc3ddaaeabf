"""The quickstart's world with on-policy rounds: each round samples from the policy before it.

    dynarag run configs/rounds.py
    dynarag run configs/rounds.py --rounds.rounds 5 --rounds.patience 2
    dynarag status configs/rounds.py

Rollout and feedback are over fewer questions a round than the quickstart's, with GRPO, whose
samples are to come from the policy that learns from them. 500 questions are kept apart to say which
round is the best; that one is evaluated.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import Grpo, Objectives, TokenNll
from dynarag_jax.stages import Mix, Rounds

quickstart = base_config(__file__, "quickstart.py")

run = replace(quickstart.run, directory="runs/rounds")

before = quickstart.stages
feedback = before["feedback"]
objectives = Objectives(nll=TokenNll(weight=0.0), grpo=Grpo(weight=1.0, kl=0.05))
learned = "{run}/mix/train.jsonl"

shared = ("facts", "retrieve", "clean", "pretrain", "lists", "reading", "label", "sft")
stages = {
    **{name: before[name] for name in shared},
    # What says which round is the best is learned from by none.
    "mix": Mix(train={"facts": "{run}/label/train.jsonl"}, development=500 / 8000, shuffled=False),
    "rollout": replace(before["rollout"], questions=learned, limit=1024),
    "feedback": replace(
        feedback,
        questions=learned,
        reranker=replace(feedback.reranker, objectives=objectives),
        epochs=1.0,
    ),
    "rounds": Rounds(rounds=3, questions="{run}/mix/development.jsonl", figure="em"),
    "evaluate": replace(
        before["evaluate"],
        models={"behavior cloning": "{run}/sft/model", "after rounds": "{run}/rounds/model"},
    ),
}
