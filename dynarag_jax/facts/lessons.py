"""Lessons in reading: questions with a handful of candidates, for a model that cannot read yet.

A question and passages that all say the same of somebody, one of them of whom the question asks:
names alone tell it from the others. A small model learns from these to look a name up, which it
does not begin to do in as many steps of all questions with all their candidates (docs/design.md).
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

from dynarag_jax.errors import InputError
from dynarag_jax.facts.world import World
from dynarag_jax.records import Question


@dataclass(frozen=True)
class LessonConfig:
    """How many lessons, and how large."""

    questions: int = 0
    """lessons; 0 writes none"""
    passages: int = 3
    """candidates of each: the needed one, and others of the same relation"""

    def __post_init__(self) -> None:
        if self.questions < 0:
            raise InputError(f"lessons: questions = {self.questions} must not be negative")
        if self.passages < 2:
            raise InputError(f"lessons: passages = {self.passages} must be at least 2, to choose")


def make_lessons(world: World, config: LessonConfig, seed: int) -> list[Question]:
    """Lessons from the training part of a world; the same arguments give the same lessons.

    The one-hop questions of training in turn, each time among other passages: ``config.passages``
    candidates in random order, the needed one and others that state the same relation of others.
    ``expert`` is the list of the needed one.

    Raises:
      InputError: a lesson asks for more passages than state a relation in training, or there is no
        one-hop question.
    """
    rng = random.Random(f"facts lessons {seed}")
    texts = {passage.id: passage for passage in world.passages}
    # Each one-hop question with its relation and the passage it needs.
    asked = [
        (q, q.extra["relations"][0], q.gold[0]) for q in world.train if q.gold and len(q.gold) == 1
    ]
    if config.questions and not asked:
        raise InputError("lessons: the world has no one-hop question to make lessons of")
    stating: dict[str, list[str]] = {}
    for _, relation, needed in asked:
        if needed not in (known := stating.setdefault(relation, [])):
            known.append(needed)
    for relation, known in stating.items():
        if config.questions and len(known) < config.passages:
            raise InputError(
                f"lessons: passages = {config.passages}, and training asks about "
                f"{len(known)} passages of the relation '{relation}'; make the world larger"
            )
    lessons: list[Question] = []
    width = max(5, len(str(config.questions)))
    while len(lessons) < config.questions:
        rng.shuffle(asked)
        for question, relation, needed in asked[: config.questions - len(lessons)]:
            others = [p for p in stating[relation] if p != needed]
            shown = [needed, *rng.sample(others, config.passages - 1)]
            rng.shuffle(shown)
            lessons.append(
                dataclasses.replace(
                    question,
                    id=f"lesson-{len(lessons) + 1:0{width}}",
                    passages=tuple(texts[p] for p in shown),
                    expert=(shown.index(needed) + 1,),
                    expert_source="gold",
                )
            )
    return lessons
