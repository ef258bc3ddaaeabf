"""What of an encoder policy pays: the variants side by side on few real questions.

    dynarag run configs/encoder_variants.py             # where ../shared/data is there

The cross-encoder of configs/encoder.py, which must stand in runs/reranker, learns from gold of 385
questions of HotpotQA and 2WikiMultihopQA with ten candidates, once: trained whole, its last six
layers, adapters, or frozen (eight times, since its vectors are computed once); candidates that see
each other inside it; steps that read again what was chosen (a pass each); and lists in the order of
the file in place of sets. All are measured on the same 208 questions of the development part, on
which what configs/encoder.py does was chosen, and on held-out ones.
"""

from dataclasses import replace

from dynarag_jax.evaluation.tuning import RulesConfig
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.models.encoder_layout import TrainedEncoder
from dynarag_jax.objectives.terms import ListNet, Objectives, SetNll, TokenNll
from dynarag_jax.stages import CurveConfig

encoder_run = base_config(__file__, "encoder.py")
before = encoder_run.stages
run = replace(encoder_run.run, directory="runs/encoder_variants")

mix = before["mix"]
SETS = {"hotpotqa": 400, "2wikimultihopqa": 193}

cloning = replace(
    before["sft"],
    encoder=replace(before["sft"].encoder, trained=TrainedEncoder(), rate=0.05),
)
in_order = replace(
    cloning,
    reranker=replace(
        cloning.reranker,
        objectives=Objectives(nll=TokenNll(weight=1.0), list_net=ListNet(weight=0.5)),
    ),
)
of_sets = replace(
    cloning,
    reranker=replace(
        cloning.reranker,
        objectives=Objectives(
            nll=TokenNll(weight=0.0),
            set_nll=SetNll(weight=1.0),
            list_net=ListNet(weight=0.5, graded=False),
        ),
    ),
)


def trained(part, stage=of_sets, **fields):
    """The stage with this part of the encoder trained."""
    return replace(stage, encoder=replace(stage.encoder, trained=TrainedEncoder(**part), **fields))


variants = {
    "whole": of_sets,
    "in_order": in_order,
    "last_six": trained({"part": "last", "layers": 6}),
    # Adapters take a higher rate than weights do.
    "adapters": trained({"part": "lora"}, rate=0.5),
    "frozen": replace(trained({"part": "frozen"}, rate=1.0), accumulate=1, epochs=8.0),
    "interaction": replace(of_sets, encoder=replace(of_sets.encoder, interaction=True)),
    # An epoch holds every step of every list.
    "reencode": replace(
        trained({"part": "last", "layers": 6}, reencode=32),
        reranker=replace(
            of_sets.reranker,
            objectives=Objectives(nll=TokenNll(weight=0.0), set_nll=SetNll(weight=1.0)),
        ),
    ),
}
evaluate = replace(
    before["evaluate"],
    models={name.replace("_", " "): f"{{run}}/{name}/model" for name in variants},
    curve=CurveConfig(),
)

stages = {
    "mix": replace(
        mix,
        train={name: mix.train[name] for name in SETS},
        held_out={name: mix.held_out[name] for name in SETS},
        limits=SETS,
        answers_as_gold=(),
        development=0.35,
        seed=0,
    ),
    "label": before["label"],
    **variants,
    # Rules are tuned on these questions.
    "choose": replace(evaluate, questions="{run}/label/development.jsonl", rules=RulesConfig()),
    "evaluate": evaluate,
}
