"""Rec-R1's recipe on the quickstart's world: GRPO against a black box that answers.

    dynarag rollout configs/rec_r1.py --generator.url http://host:8080/v1 --generator.model NAME
    dynarag feedback configs/rec_r1.py

Rec-R1 (arXiv 2503.24289) trains what a fixed system reads by the score that the system then
reaches: 12 samples at temperature 0.6 and top-p 0.95, GRPO with k3's divergence at 0.001. The
reward is the black box's score alone: its 0.1 for a well-formed reply, and -2 for others, are left
out, since lists under the grammar are well-formed. Without ``generator.url`` the policy itself
answers, and is then a box of one's own. Log-probabilities are those at temperature 1, so that at
0.6 the ratios are approximate (docs/objectives.md).
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import Grpo, Objectives, TokenNll
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling

quickstart = base_config(__file__, "quickstart.py")

run = replace(quickstart.run, directory="runs/rec_r1")

before = quickstart.stages
feedback = before["feedback"]
objectives = Objectives(nll=TokenNll(weight=0.0), grpo=Grpo(weight=1.0, kl=0.001))

stages = before | {
    "rollout": replace(
        before["rollout"],
        samples=12,
        sampling=Sampling(temperature=0.6, top_p=0.95),
        reward=RewardWeights(em=1.0, passages=0.0),
    ),
    # Only lists are trained: what answers is not ours.
    "feedback": replace(
        feedback,
        reranker=replace(feedback.reranker, objectives=objectives),
        generator=replace(feedback.generator, batch=0),
    ),
    "report": replace(before["report"], title="The quickstart with Rec-R1's recipe"),
}
