"""The encoder policy that reads again at each step what was chosen so far, on real questions.

    dynarag run configs/encoder_reencode.py             # where ../shared/data is there

As configs/encoder.py, whose cross-encoder must stand in runs/reranker; in place of one reading of
the candidates, one a step, with the first 32 word pieces of each chosen passage: the second hop's
passage resembles what was found, not the question. Each example shows all needed candidates and
seven others. Questions of NQ and PopQA come with passages that were really retrieved, of which one
that holds the answer is kept; of some HotpotQA questions nothing that helps was left. How readily
lists stop is set on development questions afterwards. Minutes on a GPU, two to three hours on two
cores with bfloat16 products; docs/benchmarks.md has results.

``dynarag export`` writes the calibrated policy, and with a name the source of a package that holds
it in eight bits, with the page beside this file:

    dynarag export configs/encoder_reencode.py --package.name my_lists
    pip wheel --no-deps runs/encoder_reencode/export/package
"""

from dataclasses import replace

from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.exchange.python_package import PackageConfig
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.objectives.terms import Objectives, SetNll, TokenNll
from dynarag_jax.stages import Calibrate, CalibrationTarget, CurveConfig, Export

one_reading = base_config(__file__, "encoder.py")
before = one_reading.stages
run = replace(one_reading.run, directory="runs/encoder_reencode")

encoder = replace(before["sft"].encoder, reencode=32, pieces=160, negatives=7)
DATA = "../shared/data"
POPQA = FieldPaths(
    question="question",
    answers="answers",
    id="id",
    passages="retrieved_keyword[].text",
    titles="retrieved_keyword[].title",
)
others = replace(
    before["mix"],
    train={
        "popqa": f"{DATA}/popqa-1000-gold-retrieved.jsonl.gz",
        # What was really retrieved, less the pages that help.
        "nothing_helps": f"{DATA}/hotpot-fullwiki-dev.jsonl.gz",
    },
    left_out=(f"{DATA}/hotpot-dev500-queries.jsonl.gz", f"{DATA}/hotpot-distractor-new.jsonl.gz"),
    fields={"popqa": POPQA},
    answers_as_gold=("popqa",),
    one_suffices=("popqa",),
    unanswerable={"nothing_helps": 1.0},
    evaluated={"popqa": 200, "nothing_helps": 200},
    held_out={},
    limits={},
    development=0.0,
    seed=0,
)

stages = {
    "gather": before["gather"],
    "retrieve": before["retrieve"],
    # Two kinds of questions of which a part is cut off to evaluate on.
    "others": others,
    "mix": replace(
        before["mix"],
        train=before["mix"].train
        | {"nq_retrieved": f"{DATA}/nq-train-retrieved-top5.1000.jsonl.gz"}
        | others.train,
        left_out=(*others.left_out[:1], "{run}/others/evaluation.jsonl"),
        limits={
            "hotpotqa": 1100,
            "nq": 300,
            "nq_retrieved": 500,
            "popqa": 200,
            "nothing_helps": 200,
        },
        fields=others.fields,
        answers_as_gold=("nq_retrieved", "popqa"),
        one_suffices=("nq_retrieved", "popqa"),
        unanswerable=others.unanswerable,
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
    "evaluate_others": replace(
        before["evaluate"],
        models={"reads again": "{run}/sft/model", "calibrated": "{run}/calibrate/model"},
        questions="{run}/others/evaluation.jsonl",
        curve=CurveConfig(),
        dtype="bfloat16",
    ),
    "export": Export(
        model="{run}/calibrate/model",
        package=PackageConfig(license="CC-BY-SA-4.0", card="configs/encoder_reencode.md"),
    ),
}
