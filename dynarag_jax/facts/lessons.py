"""Lessons in reading: questions with a handful of candidates, for a model that cannot read yet.

A question and passages that all say the same of somebody, one of them of whom the question asks:
names alone tell it from the others. A small model learns from these to look a name up, which it
does not begin to do in as many steps of all questions with all their candidates (docs/design.md).
Once it does, near lessons teach it to look the whole name up: all their passages hold a part of it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynarag_jax.errors import InputError
from dynarag_jax.facts.language import NAMES, RELATIONS
from dynarag_jax.facts.world import World
from dynarag_jax.records import Question


@dataclass(frozen=True)
class LessonConfig:
    """How many lessons, and how large."""

    questions: int = 0
    """lessons; 0 writes none"""
    passages: int = 3
    """candidates of each: the needed one, and others of the same relation"""
    near: int = 0
    """near lessons beside them, whose others share a word with the name that is asked for"""
    near_passages: int = 6
    """candidates of each near lesson"""

    def __post_init__(self) -> None:
        for name in ("questions", "near"):
            if getattr(self, name) < 0:
                raise InputError(f"lessons: {name} = {getattr(self, name)} must not be negative")
        for name in ("passages", "near_passages"):
            if getattr(self, name) < 2:
                found = getattr(self, name)
                raise InputError(f"lessons: {name} = {found} must be at least 2, to choose")


def make_lessons(world: World, config: LessonConfig, seed: int) -> list[Question]:
    """Lessons from the training part of a world; the same arguments give the same lessons.

    The one-hop questions of training in turn, each time among other passages: ``config.passages``
    candidates in random order, the needed one and others that state the same relation of others.
    ``expert`` is the list of the needed one.

    Raises:
      InputError: a lesson asks for more passages than state a relation in training, or there is no
        one-hop question.
    """
    stating: dict[str, list[str]] = {}
    for question, needed in _one_hop(world):
        if needed not in (known := stating.setdefault(question.extra["relations"][0], [])):
            known.append(needed)
    for relation, known in stating.items():
        if config.questions and len(known) < config.passages:
            raise InputError(
                f"lessons: passages = {config.passages}, and training asks about "
                f"{len(known)} passages of the relation '{relation}'; make the world larger"
            )
    rng = random.Random(f"facts lessons {seed}")
    return _lessons(
        world, config.questions, config.passages, "lesson", rng,
        lambda question: stating[question.extra["relations"][0]],
    )  # fmt: skip


def make_near_lessons(world: World, config: LessonConfig, seed: int) -> list[Question]:
    """Near lessons, ``config.near`` of them: as ``make_lessons``, from passages easily mistaken.

    The others hold a word of the name that is asked for: they say the same of another, or another
    thing. All are passages that some question of training needs.

    Raises:
      InputError: there is no one-hop question that so many passages are near to.
    """
    told = {needed for question in world.train for needed in question.gold or ()}
    holding: dict[str, list[str]] = {}
    for passage in world.passages:
        if passage.id not in told:
            continue
        for word in dict.fromkeys(passage.text.replace(".", " ").split()):
            holding.setdefault(word, []).append(passage.id)

    def near(question: Question) -> list[str]:
        kind = RELATIONS[question.extra["relations"][0]][0]
        words = {word for pool in NAMES[kind] for word in pool}
        named = [word for word in question.text.replace("?", " ").split() if word in words]
        return list(dict.fromkeys(p for word in named for p in holding.get(word, ())))

    rng = random.Random(f"facts near lessons {seed}")
    return _lessons(world, config.near, config.near_passages, "near", rng, near)


def _one_hop(world: World) -> list[tuple[Question, str]]:
    """The one-hop questions of training, and the passage that each needs."""
    return [(q, q.gold[0]) for q in world.train if q.gold and len(q.gold) == 1]


def _lessons(
    world: World,
    count: int,
    passages: int,
    name: str,
    rng: random.Random,
    others: Callable[[Question], Sequence[str]],
) -> list[Question]:
    """Lessons of the one-hop questions in turn: the needed passage, the rest drawn from others."""
    texts = {passage.id: passage for passage in world.passages}
    asked = [
        (question, needed, rest)
        for question, needed in _one_hop(world)
        if len(rest := [p for p in others(question) if p != needed]) >= passages - 1
    ]
    if count and not asked:
        raise InputError(
            f"lessons: the world has no one-hop question with {passages} passages to make lessons "
            f"of; make it larger"
        )
    lessons: list[Question] = []
    width = max(5, len(str(count)))
    while len(lessons) < count:
        rng.shuffle(asked)
        for question, needed, rest in asked[: count - len(lessons)]:
            shown = [needed, *rng.sample(rest, passages - 1)]
            rng.shuffle(shown)
            lessons.append(
                dataclasses.replace(
                    question,
                    id=f"{name}-{len(lessons) + 1:0{width}}",
                    passages=tuple(texts[p] for p in shown),
                    expert=(shown.index(needed) + 1,),
                    expert_source="gold",
                )
            )
    return lessons
