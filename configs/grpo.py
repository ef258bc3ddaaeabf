"""The quickstart's world with GRPO: every sampled list is judged against its group.

    python -m train.pipeline configs/grpo.py
    python -m train.pipeline configs/grpo.py --dpo.reranker.objectives.grpo.scale False

All stages but the feedback are the quickstart's.
"""

from dataclasses import replace

from configs import quickstart
from dynarag_jax.objectives.terms import Grpo, Objectives, TokenNll

run = replace(quickstart.run, directory="runs/grpo")

feedback = quickstart.stages["dpo"]
objectives = Objectives(nll=TokenNll(weight=0.0), grpo=Grpo(weight=1.0, kl=0.05))

stages = quickstart.stages | {
    "dpo": replace(feedback, reranker=replace(feedback.reranker, objectives=objectives)),
    "report": replace(quickstart.stages["report"], title="The quickstart with GRPO"),
}
