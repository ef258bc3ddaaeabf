"""Real questions and passages, a model from nothing: every program on real input in minutes.

    python -m train.pipeline configs/nq_litm.py --gather.source nq-open-20docs.jsonl.gz

The source is a file of questions with their passages, as Lost in the Middle and Self-RAG publish
them ({question, answers, ctxs: [{title, text, score, isgold}]}). Its passages become the corpus;
the candidates are retrieved anew from it. The model is small and starts at random, so that it
answers nothing: this shows that the data flows, what retrieval finds, and what the records hold.
Expect about eight minutes on two CPU cores, half of them embedding, and scores near 0.
"""

from dynarag_jax.config import Run
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
    Gather,
    Label,
    Report,
    Retrieve,
    SampleRollouts,
    Sft,
    Stream,
    TrainTokenizer,
)
from dynarag_jax.training.optimizer import OptimizerConfig

prompts = PromptConfig(
    style="instruct",
    ids=20,
    max_list=15,
    rerank_tokens=2048,
    answer_prompt_tokens=1024,
    answer_tokens=16,
)

run = Run(directory="runs/nq_litm", seed=0, prompts=prompts)

model = DecoderConfig(
    width=64, layers=2, heads=2, kv_heads=1, head_size=32, mlp=172, rope_base=10_000.0, unroll=2
)
optimizer = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=0.1)
answers = Stream(batch=4)
# The paper's terms that need no other model, and a small price a passage.
reward = RewardWeights(em=0.2, rouge_l=0.2, length=0.2, passages=0.05)
files = ("{run}/gather/train.jsonl", "{run}/gather/evaluation.jsonl")

stages = {
    "gather": Gather(),
    "tokenizer": TrainTokenizer(vocabulary=4096),
    "retrieve": Retrieve(
        corpus=CorpusConfig(files=("{run}/gather/corpus.jsonl",)),
        questions=files,
        passages=20,
        compare_given=True,
    ),
    "label": Label(questions=("{run}/retrieve/train.jsonl",), source="gold"),
    "sft": Sft(
        tokenizer="{run}/tokenizer/tokenizer",
        model=model,
        reranker=Stream(batch=4),
        generator=answers,
        contexts=Contexts(gold=0.5),
        optimizer=optimizer,
        steps=100,
        lengths=2,
    ),
    "rollout": SampleRollouts(
        limit=128, sampling=Sampling(temperature=1.0), reward=reward, batch=8
    ),
    "feedback": Feedback(
        init="{run}/sft/model",
        model=model,
        reranker=Stream(
            batch=4,
            objectives=Objectives(
                nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0, beta=0.1, chosen_nll=0.1)
            ),
        ),
        generator=answers,
        contexts=Contexts(gold=0.5),
        optimizer=optimizer,
        epochs=1.0,
        lengths=2,
    ),
    "evaluate": Evaluate(
        models={"behavior cloning": "{run}/sft/model", "after feedback": "{run}/feedback/model"},
        questions="{run}/retrieve/evaluation.jsonl",
        top_k=(1, 3, 5),
        reward=reward,
        batch=8,
    ),
    "export": Export(dtype="float32"),
    "report": Report(
        title="Real questions, a model from nothing",
        notes=("The model is small and was trained for minutes: it knows no answers.",),
    ),
}
