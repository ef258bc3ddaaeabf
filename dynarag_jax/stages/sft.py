"""Behavior cloning of the expert's lists, generator SFT and instruction data, jointly.

    dynarag sft configs/quickstart.py
    dynarag sft configs/llama3_8b.py --optimizer.learning_rate 2e-5
    dynarag sft configs/encoder.py --encoder.trained.part frozen

Writes model/, a Hugging Face directory, and metrics.jsonl into RUN/sft.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.stages.common.candidates import to_learn
from dynarag_jax.stages.common.encoder_training import train_on_experts
from dynarag_jax.stages.common.leakage import say_leakage
from dynarag_jax.stages.common.training import inputs, start_stage, train_stage
from dynarag_jax.training.config import Stream, StreamShape, Train
from dynarag_jax.training.instructions import read_instructions
from dynarag_jax.training.run import (
    ExampleSource,
    behavior_source,
    example_maker,
    generator_source,
    instruction_source,
    mixed,
)


@dataclass(frozen=True)
class Sft(Train):
    """Behavior cloning of the expert's lists and generator SFT, jointly in every step."""

    mixture: dict[str, float] = field(default_factory=dict)
    """further question files -> how many of their examples are drawn for one of ``questions``"""
    shuffled: float = 0.0
    """share of the lists learned over candidates in random order, so that the reranker reads them
    and does not trust the retriever's ranks alone (as RankVicuna, arXiv 2309.15088)"""
    instructions: Stream = Stream(batch=0)
    """instruction data, mixed in by the ratio of the streams' batches; batch 0 leaves it out"""
    instruction_file: str = ""
    """JSONL of {instruction, input, output} or {messages}"""
    instruction_tokens: int = 512
    """longest reply, end of text included; longer ones are left out and counted"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shuffled <= 1:
            raise InputError(f"shuffled = {self.shuffled} must be a share from 0 to 1")
        if bool(self.instructions.batch) != bool(self.instruction_file):
            raise InputError(
                f"instruction_file = '{self.instruction_file}' and instructions.batch = "
                f"{self.instructions.batch}: instruction data needs both, or neither"
            )
        if self.instruction_tokens < 1:
            raise InputError(f"instruction_tokens = {self.instruction_tokens} must be positive")

    def shapes(self, list_tokens: int, samples: int) -> dict[str, StreamShape]:
        """As of every training stage, with the instructions."""
        shape = StreamShape(
            self.instructions, self.prompts.answer_prompt_tokens, 1, self.instruction_tokens
        )
        return super().shapes(list_tokens, samples) | {"instructions": shape}


def run(context: Context, stage: Sft) -> None:
    """Train on the expert's lists and the reference answers."""
    paths = inputs(context, stage)
    paths |= {f"mixture {path}": context.path(path) for path in stage.mixture}
    if stage.instruction_file:
        paths["instructions"] = context.path(stage.instruction_file)
    context.manifest(inputs=paths)
    say_leakage(context, [stage.questions, *stage.mixture])
    if stage.policy == "encoder":
        files = {stage.questions: 1.0, **stage.mixture}
        return train_on_experts(context, stage, files, stage.shuffled)
    start = start_stage(context, stage)
    maker = example_maker(stage, start, context.token_cache)

    def asked(path: str) -> list[ExampleSource]:
        read = read_questions(context.path(path), context.log)
        ids, rule = stage.prompts.ids, stage.more_passages
        questions = to_learn(read, ids, rule, context.path(path).name, context.log)
        if missing := sum(q.expert is None for q in questions):
            context.log(f"{path}: {missing} of {len(questions)} questions have no list to imitate")
        bare = sum(q.expert is not None and not q.expert_thought.strip() for q in questions)
        if stage.prompts.thought_tokens and bare:
            context.log(
                f"{path}: {bare} of {len(questions)} questions have a list without a thought "
                f"before it (expert.thought): the list is learned behind an empty one"
            )
        said = sum(bool(q.expert_thought.strip()) for q in questions)
        if said and not stage.prompts.thought_tokens:
            context.log(
                f"{path}: {said} of {len(questions)} questions have a thought before their list, "
                f"which is left out: prompts.thought_tokens is 0"
            )
        return [
            behavior_source(stage, start, questions, maker, context.run.seed, stage.shuffled),
            generator_source(stage, questions, maker, context.run.seed),
        ]

    more = {path: asked(path) for path in stage.mixture}
    sources = mixed(asked(stage.questions), more, stage.mixture)
    if stage.instruction_file:
        read = read_instructions(paths["instructions"])
        sources.append(
            instruction_source(
                stage, stage.instructions, start, read, stage.instruction_tokens, context.log
            )
        )
    train_stage(context, stage, start, sources, maker)
