"""The paper's setting: Llama-3-8B, 45 passages at 8k tokens, behavior cloning, then DPO.

    python -m train.pipeline configs/llama3_8b.py \
        --run.directory gs-or-disk/run1 --run.mesh.fsdp 8 \
        --retrieve.corpus.files corpus.jsonl --retrieve.questions train.jsonl evaluation.jsonl \
        --sft.init /models/Meta-Llama-3-8B-Instruct

Bring a corpus and questions as JSONL (see dynarag_jax/records.py) and a checkpoint directory. The
expert's lists are the passages that contain an answer; where your questions mark their needed
passages (``gold``), say --label.source gold. Sized for eight accelerators of 80 GB or a v5p-16:
global batches are those of the paper (32 lists, 32 pairs). Not measured by us on such hardware;
the paper reports EM 48.4 on NQ and 36.7 on HotpotQA for its own training data.
"""

from dynarag_jax.config import Mesh, Run
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import (
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

prompts = PromptConfig(style="instruct", ids=45, max_list=15)

run = Run(
    directory="runs/llama3_8b",
    seed=0,
    mesh=Mesh(data=1, fsdp=-1, tensor=1),
    prompts=prompts,
    dtype="bfloat16",
)

# Only the numerics are taken from here; the shape is the checkpoint's.
numerics = DecoderConfig(dtype="bfloat16", param_dtype="float32", remat="full")
reward = RewardWeights(em=0.2, rouge_l=0.2, length=0.2, passages=0.1)
answers = Stream(batch=32, length=4096)

stages = {
    "retrieve": Retrieve(
        corpus=CorpusConfig(files=("corpus.jsonl",)),
        questions=("train.jsonl", "evaluation.jsonl"),
        encoder="facebook/contriever-msmarco",
        passages=45,
    ),
    "label": Label(questions=("{run}/retrieve/train.jsonl",), source="answer"),
    "sft": Sft(
        init="checkpoint",
        model=numerics,
        reranker=Stream(batch=32),
        generator=answers,
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup=0.1),
        epochs=1.0,
        accumulate=2,
    ),
    "rollout": SampleRollouts(
        samples=8,
        sampling=Sampling(temperature=1.0, top_p=0.9),
        reward=reward,
        batch=16,
    ),
    "feedback": Feedback(
        init="{run}/sft/model",
        model=numerics,
        reranker=Stream(
            batch=32,
            objectives=Objectives(
                nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0, beta=0.1, chosen_nll=0.1)
            ),
        ),
        generator=answers,
        contexts=Contexts(),
        optimizer=OptimizerConfig(learning_rate=5e-6, schedule="cosine", warmup=0.1),
        epochs=2.0,
        accumulate=4,
    ),
    "rerank": Rerank(questions=("{run}/retrieve/evaluation.jsonl",), batch=8),
    "evaluate": Evaluate(
        models={"behavior cloning": "{run}/sft/model", "after feedback": "{run}/feedback/model"},
        questions="{run}/retrieve/evaluation.jsonl",
        sampling=Sampling(temperature=0.2),
        top_k=(1, 3, 5, 10, 20),
        reward=reward,
        batch=16,
    ),
    "export": Export(dtype="bfloat16"),
    "report": Report(title="Llama-3-8B, reranker and generator"),
}
