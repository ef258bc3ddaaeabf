"""Generate the facts world: a corpus, questions, and a word-level tokenizer for them.

    dynarag facts configs/quickstart.py

Writes corpus.jsonl, train.jsonl, evaluation.jsonl and tokenizer/ into RUN/facts, in seconds, and
lessons.jsonl and near_lessons.jsonl where it is asked for lessons.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.config import INHERITED
from dynarag_jax.exchange.tokenizers import train_word_level
from dynarag_jax.facts.lessons import LessonConfig, make_lessons, make_near_lessons
from dynarag_jax.facts.world import WorldConfig, make_world
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import write_passages, write_questions


@dataclass(frozen=True)
class Facts:
    """Generate the facts world: a corpus, questions and a word-level tokenizer."""

    world: WorldConfig = WorldConfig()
    lessons: LessonConfig = LessonConfig()
    prompts: PromptConfig = INHERITED


def run(context: Context, stage: Facts) -> None:
    """Write corpus.jsonl, train.jsonl, evaluation.jsonl and tokenizer/."""
    context.manifest(inputs={})
    directory = context.begin()
    once(lambda: write_world(context, stage, directory))


def write_world(context: Context, stage: Facts, directory: Path) -> None:
    """Generate the world, write its files and its tokenizer, and say how large it is."""
    world = make_world(stage.world, context.run.seed)
    write_passages(directory / "corpus.jsonl", world.passages)
    write_questions(directory / "train.jsonl", world.train)
    write_questions(directory / "evaluation.jsonl", world.evaluation)
    if stage.lessons.questions:
        lessons = make_lessons(world, stage.lessons, context.run.seed)
        write_questions(directory / "lessons.jsonl", lessons)
    if stage.lessons.near:
        lessons = make_near_lessons(world, stage.lessons, context.run.seed)
        write_questions(directory / "near_lessons.jsonl", lessons)
    questions = [*world.train, *world.evaluation]
    texts = [p.text for p in world.passages] + [q.text for q in questions]
    texts += [answer for q in questions for answer in q.answers]
    train_word_level(
        [*texts, *COMPACT_WORDS], directory / "tokenizer", stage.prompts.ids, overwrite=True
    )
    needed = sum(len(q.gold or ()) for q in world.evaluation) / len(world.evaluation)
    context.log(
        f"{len(world.passages)} passages, {len(world.train)} + {len(world.evaluation)} questions "
        f"that need {needed:.2f} passages on average"
    )
