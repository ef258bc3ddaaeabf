"""The encoder policy that reads again, on more kinds of questions: PopQA, and some nothing helps.

    dynarag run configs/encoder_mixed.py                # where ../shared/data is there

As configs/encoder_reencode.py, whose cross-encoder must stand in runs/reranker, with adapters in
all layers in place of the last six, on 1,800 questions: also PopQA with passages that were really
retrieved, and questions of HotpotQA whose retrieved passages were robbed of all that help, so that
the right list is empty. Of the last two kinds some are cut off to evaluate on; the held-out
questions are all 979. Training takes 3,440 of 4,840 steps of lists: an hour and a half on two
cores; on a GPU give ``--sft.lengths 1 --sft.model.unroll 1``, which compiles
once. docs/benchmarks.md has results.
"""

from dataclasses import replace

from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.models.encoder_layout import TrainedEncoder

reads_again = base_config(__file__, "encoder_reencode.py")
before = reads_again.stages
run = replace(reads_again.run, directory="runs/encoder_mixed")

DATA = "../shared/data"
POPQA = FieldPaths(
    question="question",
    answers="answers",
    id="id",
    passages="retrieved_keyword[].text",
    titles="retrieved_keyword[].title",
)

mix = before["mix"]
others = replace(
    mix,
    train={
        "popqa": f"{DATA}/popqa-1000-gold-retrieved.jsonl.gz",
        # What was really retrieved, less the pages that help.
        "nothing_helps": f"{DATA}/hotpot-fullwiki-dev.jsonl.gz",
    },
    left_out=(f"{DATA}/hotpot-dev500-queries.jsonl.gz", mix.train["hotpotqa"]),
    fields={"popqa": POPQA},
    answers_as_gold=("popqa",),
    one_suffices=("popqa",),
    unanswerable={"nothing_helps": 1.0},
    evaluated={"popqa": 200, "nothing_helps": 200},
    held_out={},
    limits={},
    development=0.0,
)

stages = {
    "gather": before["gather"],
    "retrieve": before["retrieve"],
    # Two kinds of questions of which a part is cut off to evaluate on.
    "others": others,
    "mix": replace(
        mix,
        train=mix.train | others.train,
        left_out=(*others.left_out[:1], "{run}/others/evaluation.jsonl"),
        limits={
            "hotpotqa": 600,
            "nq": 150,
            "nq_retrieved": 250,
            "popqa": 100,
            "nothing_helps": 200,
        },
        fields=others.fields,
        answers_as_gold=(*mix.answers_as_gold, "popqa"),
        one_suffices=(*mix.one_suffices, "popqa"),
        unanswerable=others.unanswerable,
        held_out_limit=0,
    ),
    "label": before["label"],
    # On development questions adapters were ahead of the last six layers, at about the same cost.
    "sft": replace(
        before["sft"],
        encoder=replace(before["sft"].encoder, trained=TrainedEncoder(part="lora"), rate=0.5),
        steps=860,
    ),
    **{name: before[name] for name in ("calibrate", "evaluate")},
    "evaluate_others": replace(before["evaluate"], questions="{run}/others/evaluation.jsonl"),
    # With a package's name it wants a card of its own: other data, other results.
    "export": replace(before["export"], package=replace(before["export"].package, card="")),
}
