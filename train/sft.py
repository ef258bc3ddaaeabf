"""Behavior cloning of the expert's lists, generator SFT and instruction data, jointly.

python -m train.sft configs/quickstart.py
python -m train.sft configs/llama3_8b.py --optimizer.learning_rate 2e-5
"""

from __future__ import annotations

from dynarag_jax.records import read_questions
from dynarag_jax.stages import Sft
from dynarag_jax.training.instructions import read_instructions
from dynarag_jax.training.run import (
    Source,
    behavior_source,
    example_maker,
    generator_source,
    instruction_source,
    mixed,
)
from train.program import Context, main
from train.training import inputs, start_stage, train_stage


def run(context: Context, stage: Sft) -> None:
    """Train on the expert's lists and the reference answers."""
    paths = inputs(context, stage)
    paths |= {f"mixture {path}": context.path(path) for path in stage.mixture}
    if stage.instruction_file:
        paths["instructions"] = context.path(stage.instruction_file)
    context.manifest(inputs=paths)
    start = start_stage(context, stage)
    maker = example_maker(stage, start, context.token_cache)

    def asked(path: str) -> list[Source]:
        questions = read_questions(context.path(path))
        return [
            behavior_source(stage, start, questions, maker, context.run.seed),
            generator_source(stage, questions, maker, context.run.seed),
        ]

    more = {path: asked(path) for path in stage.mixture}
    sources = mixed(asked(stage.questions), more, stage.mixture)
    if stage.instruction_file:
        read = read_instructions(paths["instructions"])
        sources.append(instruction_source(stage, start, read, context.log))
    train_stage(context, stage, start, sources, maker)


if __name__ == "__main__":
    main("sft", Sft, run)
