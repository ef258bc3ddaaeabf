"""The objectives side by side on the quickstart's world: one policy, the same rollouts, each once.

    dynarag run configs/objectives.py
    python -m benchmarks.objectives --seeds 0 1 2

Behavior cloning is the quickstart's. From there each stage below ``rollout`` learns from the same
4,096 questions, with one objective, the same optimizer and as many examples; nothing is tuned for
any of them. Three need something else to learn from: DRO lists rewarded by how likely they make the
reference answer (``likely``), GRPO by step what each passage earned (``by_step``), DDRO needed
passages against hard negatives (``contrast``), which takes gold.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import (
    Dpo,
    Dro,
    Grpo,
    LipoLambda,
    Objectives,
    PlackettLuce,
    Rloo,
    TokenNll,
)
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.stages import Contrast, Reference

quickstart = base_config(__file__, "quickstart.py")

run = replace(quickstart.run, directory="runs/objectives")

before = quickstart.stages
shared = ("facts", "retrieve", "clean", "pretrain", "lists", "reading", "label", "sft", "rollout")
likely = RewardWeights(em=0.0, passages=0.0, likelihood=1.0)
none = TokenNll(weight=0.0)
learners = {
    "dpo": (Objectives(nll=none, dpo=Dpo(weight=1.0, beta=1.0, chosen_nll=0.5)), "rollout"),
    "plackett_luce": (Objectives(nll=none, plackett_luce=PlackettLuce(weight=1.0)), "rollout"),
    "lipo": (Objectives(nll=none, lipo=LipoLambda(weight=1.0, beta=1.0)), "rollout"),
    "rloo": (Objectives(nll=none, rloo=Rloo(weight=1.0, kl=0.05)), "rollout"),
    "grpo": (Objectives(nll=none, grpo=Grpo(weight=1.0, kl=0.05)), "rollout"),
    # Groups without signal are left out by ``feedback`` whatever the objective.
    "dapo": (
        Objectives(nll=none, grpo=Grpo(weight=1.0, clip_high=0.28, normalize="tokens")), "rollout",
    ),
    "dr_grpo": (
        Objectives(nll=none, grpo=Grpo(weight=1.0, scale=False, normalize="none")), "rollout",
    ),
    "grpo_by_step": (Objectives(nll=none, grpo=Grpo(weight=1.0, kl=0.05, credit=0.5)), "by_step"),
    "dro": (Objectives(nll=none, dro=Dro(weight=1.0)), "likely"),
    "ddro": (Objectives(nll=none, dpo=Dpo(weight=1.0)), "contrasted"),
}  # fmt: skip


def learns(objectives: Objectives, source: str):
    """A feedback stage with this objective on the rollouts of that stage."""
    feedback = before["feedback"]
    return replace(
        feedback,
        rollouts=f"{{run}}/{source}/rollouts.jsonl",
        reranker=replace(feedback.reranker, objectives=objectives),
        # All 8,000 questions have gold; the others learn from 4,096, three times.
        epochs=3.0 * 4096 / 8000 if source == "contrasted" else 3.0,
    )


stages = {
    **{name: before[name] for name in shared},
    "by_step": replace(before["rollout"], credit="gains"),
    "likely": replace(before["rollout"], reward=likely),
    "contrast": Contrast(questions="{run}/clean/train.jsonl"),
    "contrasted": Reference(
        rollouts="{run}/contrast/rollouts.jsonl",
        questions="{run}/clean/train.jsonl",
        not_shown="leave_out",
    ),
    **{name: learns(*given) for name, given in learners.items()},
    "evaluate": replace(
        before["evaluate"],
        models={"behavior cloning": "{run}/sft/model"}
        | {name.replace("_", " "): f"{{run}}/{name}/model" for name in learners},
    ),
}
