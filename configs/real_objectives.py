"""The objectives side by side on real questions: a list head on a frozen encoder, each once.

    dynarag run configs/real_objectives.py              # where ../shared/data is there
    python -m benchmarks.objectives configs/real_objectives.py --seeds 0 1 2

The cross-encoder (which must stand in runs/reranker) and the held-out questions are those of
configs/encoder.py, fewer of them, the same for every seed. It learns from lists in the order of the
files, and of NQ from questions with five retrieved passages, of which all that contain an answer
count as needed. The reader that answers from
the lists of the evaluation is the one that configs/real.py trains, in runs/real. The encoder stays
frozen, so that its vectors are computed once; the head learns from gold, then by each objective
from the same sampled lists, rewarded by their set F1: no model answers there. DRO weighs lists by
how likely the reader finds the reference answer; since that reads every list, it learns from 256
questions, six times, which is as many steps. As on the quickstart's world nothing is tuned for any
objective.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.encoder_layout import TrainedEncoder
from dynarag_jax.objectives.terms import ListNet, Objectives, TokenNll
from dynarag_jax.stages import Contrast, CurveConfig, Feedback, Reference

encoder_run = base_config(__file__, "encoder.py")
world = base_config(__file__, "objectives.py")

READER = "runs/real/reader/model"
limits = base_config(__file__, "real.py").run.prompts
prompts = replace(
    encoder_run.run.prompts,
    answer_prompt_tokens=limits.answer_prompt_tokens,
    answer_tokens=limits.answer_tokens,
)
run = replace(encoder_run.run, directory="runs/real_objectives", prompts=prompts)

before = encoder_run.stages
frozen = {
    "encoder": replace(before["sft"].encoder, trained=TrainedEncoder(part="frozen"), rate=1.0),
    "model": DecoderConfig(),
    "accumulate": 1,
}
feedback = replace(before["feedback"], **frozen)
rollout = replace(before["rollout"], dtype=DecoderConfig().dtype)
likely = replace(
    rollout,
    reward=world.stages["likely"].reward,
    reader=READER,
    reader_dtype="bfloat16",
    limit=256,
)
learners = {
    name: replace(
        feedback,
        rollouts=other.rollouts,
        reranker=replace(feedback.reranker, objectives=other.reranker.objectives),
        epochs=6.0 if name == "dro" else 1.0,
    )
    for name, other in world.stages.items()
    if isinstance(other, Feedback)
}


sets = before["mix"]
in_order = Objectives(nll=TokenNll(weight=1.0), list_net=ListNet(weight=0.5))
stages = {
    "mix": replace(
        sets,
        train=sets.train | {"nq": "../shared/data/nq-train-retrieved-top5.1000.jsonl.gz"},
        limits={"hotpotqa": 600, "nq": 400},
        answers_as_gold=("nq",),
        held_out_limit=100,
        seed=0,
    ),
    "label": before["label"],
    "sft": replace(
        before["sft"],
        reranker=replace(before["sft"].reranker, objectives=in_order),
        **frozen,
    ),
    "rollout": rollout,
    "by_step": replace(rollout, credit="gains"),
    "likely": likely,
    "contrast": Contrast(questions="{run}/label/train.jsonl"),
    "contrasted": Reference(rollouts="{run}/contrast/rollouts.jsonl"),
    **learners,
    "evaluate": replace(
        before["evaluate"],
        models={"behavior cloning": "{run}/sft/model"}
        | {name.replace("_", " "): f"{{run}}/{name}/model" for name in learners},
        curve=CurveConfig(),
        reader=READER,
    ),
}
