"""The quickstart's world with FIRST's joint loss: behavior cloning also ranks the first id.

    python -m train.pipeline configs/first_joint.py
    python -m train.pipeline configs/first_joint.py --sft.reranker.objectives.rank_net.weight 0 \
        --sft.reranker.objectives.lambda_loss.weight 1

To the likelihood of the expert's list it adds RankNet over the ids at the first place, pairs
weighted by their ranks (arXiv 2406.15657). All other stages are the quickstart's.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import RankNet

quickstart = base_config(__file__, "quickstart.py")

run = replace(quickstart.run, directory="runs/first_joint")

cloning = quickstart.stages["sft"]
objectives = replace(cloning.reranker.objectives, rank_net=RankNet(weight=1.0))

stages = quickstart.stages | {
    "sft": replace(cloning, reranker=replace(cloning.reranker, objectives=objectives)),
    "report": replace(quickstart.stages["report"], title="The quickstart with FIRST's joint loss"),
}
