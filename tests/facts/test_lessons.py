"""Lessons against the world they are made of."""

from __future__ import annotations

import collections
import re

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.facts.language import NAMES
from dynarag_jax.facts.lessons import LessonConfig, make_lessons, make_near_lessons
from dynarag_jax.facts.world import make_world
from tests.facts.test_world import SMALL

WORLD = make_world(SMALL, seed=1)
RELATIONS = {
    "employer": "works for|has a job at|is employed by",
    "birth": "was born in|birthplace",
    "base": "is based in|home city",
    "country": r"^[a-z]+ [a-z]+ is (in|a city in) ",
}


def relation_of(text: str) -> str:
    (found,) = (name for name, pattern in RELATIONS.items() if re.search(pattern, text))
    return found


def test_a_lesson_asks_for_one_of_several_passages_that_say_the_same_of_others():
    lessons = make_lessons(WORLD, LessonConfig(questions=150, passages=4), seed=0)
    asked = {q.text: q for q in WORLD.train if q.type == "one_hop"}
    of_evaluation = {p for q in WORLD.evaluation for p in q.gold or ()}
    assert len(lessons) == len({lesson.id for lesson in lessons}) == 150
    for lesson in lessons:
        source = asked[lesson.text]
        assert (lesson.answers, lesson.gold) == (source.answers, source.gold)
        assert lesson.expert is not None
        (place,) = lesson.expert
        assert lesson.passages[place - 1].id == (source.gold or ())[0]
        assert len({p.id for p in lesson.passages}) == 4
        assert len({relation_of(p.text) for p in lesson.passages}) == 1
        assert not {p.id for p in lesson.passages} & of_evaluation
    # Every question is asked, and its passage stands at each place about as often.
    assert {lesson.text for lesson in lessons} == set(asked)
    places = collections.Counter(lesson.expert for lesson in lessons)
    assert set(places) == {(1,), (2,), (3,), (4,)} and min(places.values()) > 20


def test_the_others_of_a_near_lesson_hold_a_word_of_the_name_that_is_asked_for():
    lessons = make_near_lessons(WORLD, LessonConfig(near=80, near_passages=3), seed=0)
    asked = {q.text: q for q in WORLD.train if q.type == "one_hop"}
    told = {p for q in WORLD.train for p in q.gold or ()}
    assert len(lessons) == len({lesson.id for lesson in lessons}) == 80
    same = 0
    for lesson in lessons:
        (place,) = lesson.expert or ()
        needed = lesson.passages[place - 1]
        assert (lesson.gold, lesson.answers) == ((needed.id,), asked[lesson.text].answers)
        # Of the question, only the name is in all of its passages.
        name = set(lesson.text.strip("?").split()) & {w for pools in NAMES.values() for p in pools
                                                      for w in p}  # fmt: skip
        assert len(name) == 2 and name <= set(needed.text.replace(".", " ").split())
        for passage in lesson.passages:
            assert name & set(passage.text.replace(".", " ").split())
            assert passage.id in told
            same += relation_of(passage.text) == relation_of(needed.text)
        assert len({p.id for p in lesson.passages}) == 3
    assert 80 < same < 240  # others say the same, or another thing


def test_lessons_are_the_same_for_a_seed_and_others_for_another():
    config = LessonConfig(questions=20)
    assert make_lessons(WORLD, config, 0) == make_lessons(WORLD, config, 0)
    assert make_lessons(WORLD, config, 0) != make_lessons(WORLD, config, 1)


def test_what_cannot_be_a_lesson_is_refused():
    with pytest.raises(InputError, match="questions = -1 must not be negative"):
        LessonConfig(questions=-1)
    with pytest.raises(InputError, match="passages = 1 must be at least 2"):
        LessonConfig(passages=1)
    with pytest.raises(InputError, match="near = -1 must not be negative"):
        LessonConfig(near=-1)
    with pytest.raises(InputError, match="no one-hop question with 99 passages"):
        make_near_lessons(WORLD, LessonConfig(near=1, near_passages=99), 0)
    with pytest.raises(InputError, match="passages = 99, and training asks about"):
        make_lessons(WORLD, LessonConfig(questions=1, passages=99), 0)
