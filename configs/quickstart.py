"""The whole method on two CPU cores in minutes: a model from nothing learns which and how many.

    make quickstart
    python -m train.pipeline configs/quickstart.py --run.seed 1 --run.directory runs/seed1

The stages: a generated world of facts and a tokenizer for it; candidates by real retrieval; a small
model taught to read (there is no checkpoint to start from), first by lessons of three passages that
say the same, then by all kinds of questions, at last with their answers; behavior cloning of a
biased, noisy expert; lists sampled and rewarded; DPO; evaluation beside every fixed top-k; export.
Wherever the model learns, candidates stand in random order: what retrieval puts where tells it
nothing, and its evaluation in random order is the one to look at. Expect 2 GB of memory;
docs/benchmarks.md has the measured results.
"""

from dataclasses import replace

from dynarag_jax.config import Run
from dynarag_jax.facts.lessons import LessonConfig
from dynarag_jax.facts.world import WorldConfig
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Dpo, Objectives, PromptNll, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import (
    Contexts,
    Evaluate,
    Export,
    Facts,
    Feedback,
    Label,
    Report,
    Retrieve,
    SampleRollouts,
    Sft,
    Stream,
)
from dynarag_jax.training.optimizer import OptimizerConfig

CANDIDATES = 6
prompts = PromptConfig(
    style="compact",
    ids=CANDIDATES,
    max_list=CANDIDATES,
    rerank_tokens=104,
    answer_prompt_tokens=104,
    answer_tokens=4,
)

run = Run(directory="runs/quickstart", seed=0, prompts=prompts)

# Norms of queries and keys let so small a model learn to look a name up (docs/design.md).
model = DecoderConfig(
    family="qwen3",
    qk_norm=True,
    width=64,
    layers=4,
    heads=4,
    kv_heads=4,
    head_size=32,
    mlp=172,
    rope_base=100_000.0,
    unroll=4,
)
# Learning to predict the prompt, too, is what makes copying emerge; most of all its repetitions.
prompt = PromptNll(weight=0.5, again=3.0)
lists = Stream(batch=32, objectives=Objectives(nll=TokenNll(weight=2.0), prompt_nll=prompt))
answers = Stream(batch=16, objectives=Objectives(prompt_nll=prompt))
reward = RewardWeights(em=1.0, passages=0.5)
muon = OptimizerConfig(
    name="muon",
    learning_rate=6e-3,
    weight_decay=0.1,
    schedule="plateau",
    warmup=0.03,
    b2=0.98,
)
# What was learned of three passages is learned again of six and of all kinds of questions.
all_kinds = Sft(
    init="{run}/pretrain/model",
    questions="{run}/clean/train.jsonl",
    mixture={"{run}/facts/near_lessons.jsonl": 0.6},
    model=model,
    reranker=lists,
    generator=Stream(batch=0),
    shuffled=1.0,
    contexts=Contexts(gold=0.5, padded=0.5),
    optimizer=replace(muon, learning_rate=4e-3, warmup=0.05, tail=0.4),
    steps=1100,
    lengths=1,
)

stages = {
    "facts": Facts(
        world=WorldConfig(train_questions=8000, evaluation_questions=500, asides=0.1),
        lessons=LessonConfig(questions=16_000, passages=3, near=8_000),
    ),
    "retrieve": Retrieve(
        corpus=CorpusConfig(files=("{run}/facts/corpus.jsonl",)),
        questions=("{run}/facts/train.jsonl", "{run}/facts/evaluation.jsonl"),
        passages=CANDIDATES,
        keep_gold=True,
    ),
    "clean": Label(questions=("{run}/retrieve/train.jsonl",), source="gold"),
    # Of lessons alone, in prompts that just hold them: among other questions, matching forms late.
    "pretrain": Sft(
        tokenizer="{run}/facts/tokenizer",
        questions="{run}/facts/lessons.jsonl",
        prompts=replace(prompts, rerank_tokens=64),
        model=model,
        reranker=lists,
        generator=Stream(batch=0),  # answers come later: beside them, it does not form
        shuffled=1.0,
        optimizer=replace(muon, tail=0.3),
        steps=1400,
        lengths=1,
    ),
    "lists": all_kinds,
    "reading": replace(
        all_kinds,
        init="{run}/lists/model",
        reranker=replace(lists, batch=16),
        generator=replace(answers, batch=24),
        optimizer=replace(all_kinds.optimizer, tail=0.7),
        steps=600,
    ),
    "label": Label(questions=("{run}/retrieve/train.jsonl",), source="noisy", shuffled=True),
    "sft": Sft(
        init="{run}/reading/model",
        questions="{run}/label/train.jsonl",
        model=model,
        reranker=lists,
        generator=answers,
        shuffled=1.0,
        contexts=Contexts(gold=0.3, padded=0.4),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="plateau", warmup=0.03, tail=0.4, b2=0.98
        ),
        steps=150,
        lengths=1,
    ),
    "rollout": SampleRollouts(
        questions="{run}/label/train.jsonl",
        limit=4096,
        samples=8,
        sampling=Sampling(temperature=1.0),
        reward=reward,
        batch=128,
    ),
    "feedback": Feedback(
        init="{run}/sft/model",
        questions="{run}/label/train.jsonl",
        model=model,
        reranker=Stream(
            batch=64,
            objectives=Objectives(
                nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0, beta=1.0, chosen_nll=0.5)
            ),
        ),
        generator=answers,
        contexts=Contexts(gold=0.3, padded=0.4),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, schedule="plateau", warmup=0.03, tail=0.4, b2=0.98
        ),
        epochs=3.0,
        lengths=1,
    ),
    "evaluate": Evaluate(
        models={"behavior cloning": "{run}/sft/model", "after feedback": "{run}/feedback/model"},
        questions="{run}/retrieve/evaluation.jsonl",
        top_k=tuple(range(1, CANDIDATES + 1)),
        shuffled=True,
        reward=reward,
        batch=128,
    ),
    "export": Export(model="{run}/feedback/model", dtype="float32"),
    "report": Report(title="DynamicRAG from nothing: the quickstart"),
}
