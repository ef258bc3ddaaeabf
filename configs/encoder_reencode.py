"""The encoder policy that reads again at each step what was chosen so far, on real questions.

    dynarag run configs/encoder_reencode.py             # where ../shared/data is there

As configs/encoder.py, whose cross-encoder must stand in runs/reranker; in place of one reading of
the candidates, one a step, with the first 32 word pieces of each chosen passage: the second hop's
passage resembles what was found, not the question. Each example shows all needed candidates and
seven others. Questions of NQ come also with passages that were really retrieved, of which one that
holds the answer is kept. How readily lists stop is set on development questions afterwards.
Some 80 minutes of training on two cores with bfloat16 products; docs/benchmarks.md has results.

``dynarag export`` writes the calibrated policy, and with a name the source of a package that holds
it in eight bits, with the page beside this file:

    dynarag export configs/encoder_reencode.py --package.name my_lists
    pip wheel --no-deps runs/encoder_reencode/export/package
"""

from dataclasses import replace

from dynarag_jax.exchange.python_package import PackageConfig
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import Objectives, SetNll, TokenNll
from dynarag_jax.stages import Calibrate, CalibrationTarget, CurveConfig, Export

one_reading = base_config(__file__, "encoder.py")
before = one_reading.stages
run = replace(one_reading.run, directory="runs/encoder_reencode")

encoder = replace(before["sft"].encoder, reencode=32, pieces=160, negatives=7)
RETRIEVED = "../shared/data/nq-train-retrieved-top5.1000.jsonl.gz"

stages = {
    "gather": before["gather"],
    "retrieve": before["retrieve"],
    "mix": replace(
        before["mix"],
        train=before["mix"].train | {"nq_retrieved": RETRIEVED},
        limits={"hotpotqa": 500, "nq": 150, "nq_retrieved": 500},
        answers_as_gold=("nq_retrieved",),
        one_suffices=("nq_retrieved",),
        held_out_limit=100,
        seed=0,
    ),
    "label": before["label"],
    "sft": replace(
        before["sft"],
        encoder=encoder,
        reranker=replace(
            before["sft"].reranker,
            objectives=Objectives(nll=TokenNll(weight=0.0), set_nll=SetNll(weight=1.0)),
        ),
        # Four states of some nine candidates at once, without padding between them on a CPU.
        accumulate=1,
    ),
    "calibrate": Calibrate(
        model="{run}/sft/model",
        questions="{run}/label/development.jsonl",
        target=CalibrationTarget(quality="set_f1"),
        dtype="bfloat16",
    ),
    "evaluate": replace(
        before["evaluate"],
        models={"reads again": "{run}/sft/model", "calibrated": "{run}/calibrate/model"},
        curve=CurveConfig(),
        dtype="bfloat16",
    ),
    "export": Export(
        model="{run}/calibrate/model",
        package=PackageConfig(license="CC-BY-SA-4.0", card="configs/encoder_reencode.md"),
    ),
}
