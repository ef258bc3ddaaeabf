"""A small policy without gold: a cross-encoder's lists, then what a reader finds in the passages.

    dynarag run configs/encoder_without_gold.py         # where ../shared/data is there

The setting of the paper, with the policy of configs/encoder.py: nothing says which passages a
question needs. The policy imitates the lists of its cross-encoder (which must stand in
runs/reranker): what it scores above one half, best first. Then it draws lists of its own; the
reader of configs/real.py, in runs/real, says how likely the reference answer is given each, less a
price for every passage; and the policy learns from that with its last six layers. Development
questions have gold for the rules, which are tuned by it. All are measured on the same held-out
questions, 100 of each set. What the feedback brings is not measured: docs/benchmarks.md.
"""

from dataclasses import replace

from dynarag_jax.evaluation.tuning import RULES, RulesConfig
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.models.encoder_layout import TrainedEncoder
from dynarag_jax.objectives.terms import Objectives, TokenNll
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import Label

encoder_run = base_config(__file__, "encoder.py")
before = encoder_run.stages
reader_run = base_config(__file__, "real.py")

READER = "runs/real/reader/model"
prompts = replace(
    encoder_run.run.prompts,
    answer_prompt_tokens=reader_run.run.prompts.answer_prompt_tokens,
    answer_tokens=reader_run.run.prompts.answer_tokens,
)
run = replace(encoder_run.run, directory="runs/encoder_without_gold", prompts=prompts)

cloning = before["sft"]

stages = {
    "gather": before["gather"],
    "retrieve": before["retrieve"],
    "mix": replace(
        before["mix"],
        limits=dict.fromkeys(before["mix"].train, 150),
        held_out_limit=100,
        seed=0,
    ),
    "label": Label(
        questions=("{run}/mix/train.jsonl",),
        source="scores",
        scorer=cloning.init,
        threshold=0.5,
        limit=run.prompts.max_list,
    ),
    # The needed passages of the development questions, for the rules alone.
    "known": replace(before["label"], questions=("{run}/mix/development.jsonl",)),
    # A frozen encoder holds its own scores: its vectors are computed once.
    "sft": replace(
        cloning,
        encoder=replace(cloning.encoder, trained=TrainedEncoder(part="frozen"), rate=1.0),
        reranker=replace(cloning.reranker, objectives=Objectives(nll=TokenNll(weight=1.0))),
        accumulate=1,
        epochs=8.0,
    ),
    "rollout": replace(
        before["rollout"],
        sampling=Sampling(method="distinct"),
        reward=RewardWeights(em=0.0, passages=0.0, likelihood=1.0, price=0.02),
        reader=READER,
        reader_dtype="bfloat16",
    ),
    "feedback": before["feedback"],
    "evaluate": replace(
        before["evaluate"],
        models={
            "cross-encoder's lists": "{run}/sft/model",
            "after feedback": "{run}/feedback/model",
        },
        rules=RulesConfig(names=RULES, tuning="{run}/known/development.jsonl"),
    ),
}
