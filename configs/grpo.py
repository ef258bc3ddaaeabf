"""The quickstart's world with GRPO: every sampled list is judged against its group.

    python -m train.pipeline configs/grpo.py
    python -m train.pipeline configs/grpo.py --feedback.reranker.objectives.grpo.no_scale

All stages but the feedback are the quickstart's.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import Grpo, Objectives, TokenNll

quickstart = base_config(__file__, "quickstart.py")

run = replace(quickstart.run, directory="runs/grpo")

feedback = quickstart.stages["feedback"]
objectives = Objectives(nll=TokenNll(weight=0.0), grpo=Grpo(weight=1.0, kl=0.05))

stages = quickstart.stages | {
    "feedback": replace(feedback, reranker=replace(feedback.reranker, objectives=objectives)),
    "report": replace(quickstart.stages["report"], title="The quickstart with GRPO"),
}
