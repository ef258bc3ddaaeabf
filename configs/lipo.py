"""The quickstart's world with LiPO-lambda on all sampled lists, and preferred answers beside it.

    python -m train.pipeline configs/lipo.py

The rollouts also score each question's answers from the best list's passages, so that the
generator learns by DPO which of them is better. All other stages are the quickstart's.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import Dpo, LipoLambda, Objectives, TokenNll
from dynarag_jax.stages import Stream

quickstart = base_config(__file__, "quickstart.py")

run = replace(quickstart.run, directory="runs/lipo")

feedback = quickstart.stages["feedback"]
none = TokenNll(weight=0.0)
objectives = Objectives(nll=none, lipo=LipoLambda(weight=1.0, beta=1.0))

stages = quickstart.stages | {
    "rollout": replace(quickstart.stages["rollout"], answers=True),
    "feedback": replace(
        feedback,
        reranker=replace(feedback.reranker, objectives=objectives),
        answers=Stream(
            batch=8, objectives=Objectives(nll=none, dpo=Dpo(weight=0.5, beta=0.5, chosen_nll=0.5))
        ),
    ),
    "report": replace(quickstart.stages["report"], title="The quickstart with LiPO-lambda"),
}
