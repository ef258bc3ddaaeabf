"""Your corpus, your questions, your checkpoint on one accelerator, as in docs/tutorial.md.

    dynarag run configs/tutorial.py --retrieve.corpus.files corpus.jsonl \
        --retrieve.questions train.jsonl evaluation.jsonl --sft.init Qwen/Qwen2.5-0.5B-Instruct

Copy it, or change it by options. Sized for a checkpoint of about a billion parameters on a card of
24 GB or more, on which we have not run it; docs/running-on-pods.md is about larger ones.
"""

from dynarag_jax.config import Mesh, Run
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import (
    Answer,
    Contexts,
    Evaluate,
    Export,
    Feedback,
    Label,
    Report,
    Rerank,
    Retrieve,
    SampleRollouts,
    Sft,
    Stream,
)
from dynarag_jax.training.optimizer import OptimizerConfig

run = Run(
    directory="runs/tutorial",
    seed=0,
    mesh=Mesh(data=1, fsdp=-1, tensor=1),
    # Twenty candidates a question in a prompt of 4,096 tokens, at most eight of them chosen.
    prompts=PromptConfig(style="instruct", ids=20, max_list=8, rerank_tokens=4096),
    dtype="bfloat16",
)

# Only the numerics are taken from here; the shape is the checkpoint's.
numerics = DecoderConfig(dtype="bfloat16", param_dtype="float32", remat="full")
# Quality of the answer, less a small price for every passage read.
reward = RewardWeights(em=0.5, f1=0.5, passages=0.02)

stages = {
    "retrieve": Retrieve(
        corpus=CorpusConfig(files=("corpus.jsonl",)),
        questions=("train.jsonl", "evaluation.jsonl"),
        source="hybrid",
        passages=20,
        evaluate=True,
    ),
    "label": Label(questions=("{run}/retrieve/train.jsonl",), source="answer"),
    "sft": Sft(
        init="checkpoint",
        model=numerics,
        reranker=Stream(batch=16),
        generator=Stream(batch=16),
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup=0.1),
        epochs=1.0,
        accumulate=4,
    ),
    "rollout": SampleRollouts(
        samples=8, sampling=Sampling(temperature=1.0), reward=reward, batch=16
    ),
    "feedback": Feedback(
        init="{run}/sft/model",
        model=numerics,
        reranker=Stream(
            batch=16,
            objectives=Objectives(
                nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0, beta=0.1, chosen_nll=0.1)
            ),
        ),
        generator=Stream(batch=16),
        contexts=Contexts(),
        optimizer=OptimizerConfig(learning_rate=5e-6, schedule="cosine", warmup=0.1),
        epochs=1.0,
        accumulate=8,
    ),
    "evaluate": Evaluate(
        models={"behavior cloning": "{run}/sft/model", "after feedback": "{run}/feedback/model"},
        questions="{run}/retrieve/evaluation.jsonl",
        top_k=(1, 3, 5, 10),
        reward=reward,
        batch=16,
    ),
    "rerank": Rerank(questions=("{run}/retrieve/evaluation.jsonl",), batch=16),
    "answer": Answer(batch=16),
    "export": Export(dtype="bfloat16"),
    "report": Report(title="My corpus, my questions, my checkpoint"),
}
