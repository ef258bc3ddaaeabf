"""Several sets of questions as one to train on, without any question that is held out.

    dynarag mix configs/encoder.py

Reads question files that come with their candidates, of any format of docs/data.md, and writes
train.jsonl, development.jsonl and evaluation.jsonl into RUN/mix, and into needed.md how many
questions need how many passages. A question counts as the same by its normalized text, whatever
file it stands in. Candidates stand in random order, or with ``scorer`` in that of a cross-encoder's
scores, which they keep.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from dynarag_jax.atomic import atomic_write
from dynarag_jax.config import INHERITED
from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.data.reading import Reading, read_questions
from dynarag_jax.data.values import with_content_ids
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.facts.expert import label_questions
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.answers import containment
from dynarag_jax.metrics.normalizers import normalize
from dynarag_jax.processes import once
from dynarag_jax.records import Passage, Question, write_questions
from dynarag_jax.retrieval.relevance import load_scorer
from dynarag_jax.stages.common.scores import score_once


@dataclass(frozen=True)
class Mix:
    """Several sets of questions as one to train on, without any question that is held out."""

    train: dict[str, str] = field(default_factory=dict)
    """set -> its file of questions with candidates, to be trained on"""
    held_out: dict[str, str] = field(default_factory=dict)
    """set -> file of questions that are evaluated on, and left out of all others"""
    left_out: tuple[str, ...] = ()
    """further files whose questions are in no part"""
    limits: dict[str, int] = field(default_factory=dict)
    """set -> questions taken to train on at most, chosen by the seed; others take all"""
    held_out_limit: int = 0
    """questions of a held-out file, chosen by the seed; 0 takes all"""
    evaluated: dict[str, int] = field(default_factory=dict)
    """set to train on -> how many of its questions, chosen by the seed, are evaluated on instead"""
    fields: dict[str, FieldPaths] = field(default_factory=dict)
    """set -> where its records hold what, if their layout is none that is known (docs/data.md)"""
    development: float = 0.1
    """share of the questions to train on that is cut off for choosing and tuning"""
    shuffled: bool = True
    """candidates in an order drawn by the seed and the question: files may put the needed first"""
    scorer: str = ""
    """MonoT5 or cross-encoder whose scores order the candidates, best first, and stay with them:
    what a retriever would hand over; empty leaves them as ``shuffled`` says"""
    dtype: Literal["float32", "bfloat16"] = INHERITED
    """what the scorer computes in"""
    words: int = 0
    """words of a passage at most: of longer ones the first are kept, and it is said how many were
    cut; 0 keeps passages whole"""
    answers_as_gold: tuple[str, ...] = ()
    """sets that do not say which passages are needed: those that contain an answer count"""
    one_suffices: tuple[str, ...] = ()
    """sets whose questions any one of the needed passages answers: the first of the file stays, the
    other needed ones are taken away from the candidates"""
    unanswerable: dict[str, float] = field(default_factory=dict)
    """set -> share of its questions, chosen by the seed, whose needed passages are taken away from
    the candidates: none helps, and the right list is empty"""
    seed: int | None = None
    """of what is drawn here; that of the run if none is given. With one of its own, runs of several
    seeds train and are evaluated on the same questions"""

    def __post_init__(self) -> None:
        if not 0 <= self.development < 1:
            raise InputError(f"development = {self.development} must lie in [0, 1)")
        if self.words < 0:
            raise InputError(f"words = {self.words} must not be negative")
        named = (
            self.limits, self.fields, self.answers_as_gold, self.one_suffices, self.unanswerable
        )  # fmt: skip
        for name in itertools.chain.from_iterable(named):
            if name not in {**self.train, **self.held_out}:
                raise InputError(
                    f"mix: '{name}' is none of the sets {', '.join(self.train) or '(none)'}"
                )
        for name, count in self.evaluated.items():
            if name not in self.train or count < 1:
                raise InputError(
                    f"mix: evaluated.{name} = {count} must be a positive number of questions of a "
                    f"set to train on: {', '.join(self.train)}"
                )
        for name, share in self.unanswerable.items():
            if not 0 <= share <= 1:
                raise InputError(f"mix: unanswerable.{name} = {share} must be a share from 0 to 1")


def run(context: Context, stage: Mix) -> None:
    """Write train.jsonl, development.jsonl and evaluation.jsonl."""
    if not stage.train:
        raise InputError("mix: name at least one set in 'train'")
    files = {f"train {n}": context.path(p) for n, p in stage.train.items()}
    files |= {f"held out {n}": context.path(p) for n, p in stage.held_out.items()}
    files |= {f"left out {p}": context.path(p) for p in stage.left_out}
    scorer = {"scorer": context.model(stage.scorer)} if stage.scorer else {}
    context.manifest(inputs=files | scorer)
    seed = context.run.seed if stage.seed is None else stage.seed
    # To score, every process needs the questions.
    make = partial(mixed, context, stage, files, seed)
    parts = (make() if stage.scorer else once(make)) or {}
    directory = context.begin()
    if stage.scorer:
        parts = ordered(context, stage, parts)

    def write() -> None:
        for name, part in parts.items():
            write_questions(directory / f"{name}.jsonl", part)
            sets = {s: sum(q.extra["dataset"] == s for q in part) for s in _sets(part)}
            context.log(
                f"{name}.jsonl: {len(part)} questions ("
                + ", ".join(f"{s} {n}" for s, n in sets.items())
                + ")"
            )

        table = needed_table(parts)
        with atomic_write(directory / "needed.md") as stream:
            stream.write(table + "\n")
        context.log(table)

    once(write)


def needed_table(parts: Mapping[str, Sequence[Question]]) -> str:
    """How many questions of each set and part need how many of their candidates, in Markdown."""
    counts = Counter(
        (part, str(q.extra["dataset"]), len(q.gold_list() or ()))
        for part, questions in parts.items()
        for q in questions
    )
    numbers = range(max((needed for _, _, needed in counts), default=0) + 1)
    rows = [
        [part, name, *(str(counts[part, name, needed] or "") for needed in numbers)]
        for part, name in dict.fromkeys((part, name) for part, name, _ in counts)
    ]
    return markdown(["part", "set", *(f"need {needed}" for needed in numbers)], rows)


def mixed(
    context: Context, stage: Mix, files: Mapping[str, Path], seed: int
) -> dict[str, list[Question]]:
    """The questions of each part; none that is held out is in another."""
    taken: dict[str, str] = {}
    held: list[Question] = []
    for name in stage.held_out:
        own = read(context, stage, name, files[f"held out {name}"], seed)
        own = [q for q in own if taken.setdefault(normalize(q.text), name) == name]
        # What is not drawn is held out all the same.
        held += drawn(own, stage.held_out_limit, f"{seed}/held out/{name}")
    for path in stage.left_out:
        others = read_questions(files[f"left out {path}"], context.log, Reading(repeats="drop"))
        taken |= {normalize(question.text): path for question in others}
    train: list[Question] = []
    for name in stage.train:
        own = read(context, stage, name, files[f"train {name}"], seed)
        kept: list[Question] = []
        for question in own:
            text = normalize(question.text)
            if text not in taken:
                taken[text] = name
                kept.append(question)
        if len(kept) < len(own):
            context.log(f"{name}: {len(own) - len(kept)} questions are held out or come twice")
        if count := stage.evaluated.get(name, 0):
            own = drawn(kept, count, f"{seed}/evaluated/{name}")
            held += own
            apart = {question.id for question in own}
            kept = [question for question in kept if question.id not in apart]
        train += drawn(kept, stage.limits.get(name, 0), f"{seed}/train/{name}")
    random.Random(f"{seed}/mix").shuffle(train)
    cut = round(stage.development * len(train))
    return {"development": train[:cut], "train": train[cut:], "evaluation": held}


def ordered(
    context: Context, stage: Mix, parts: Mapping[str, Sequence[Question]]
) -> dict[str, list[Question]]:
    """The parts with each question's candidates by the scorer, best first, with their scores."""
    scorer = load_scorer(context.model(stage.scorer), stage.dtype)
    found = {}
    for name, part in parts.items():
        output = context.stage_directory / f"scores-{name}.jsonl"
        scores = score_once(context, scorer, output, name, part)
        found[name] = [by_score(question, scores[question.id]) for question in part]
    return found


def by_score(question: Question, scores: Sequence[float]) -> Question:
    """The question with its candidates by these scores, best first; equals stay as they stood."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    passages = (replace(question.passages[i], score=scores[i]) for i in order)
    return replace(question, passages=tuple(passages), expert=None, expert_thought="")


def _sets(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(str(q.extra["dataset"]) for q in questions))


def drawn(questions: Sequence[Question], limit: int, key: str) -> list[Question]:
    """``limit`` of the questions, chosen by the key, in their order; all where it is 0."""
    if not limit or limit >= len(questions):
        return list(questions)
    kept = sorted(random.Random(key).sample(range(len(questions)), limit))
    return [questions[i] for i in kept]


def read(context: Context, stage: Mix, name: str, path: object, seed: int) -> list[Question]:
    """A set's questions that have candidates and say what they need, under ids of the set's own.

    Raises:
      InputError: none has.
    """
    layout = Reading(repeats="drop")
    if name in stage.fields:
        layout = replace(layout, format="fields", fields=stage.fields[name])
    every = read_questions(str(path), context.log, layout)
    found = []
    cut = Cut(stage.words)
    for question in every:
        if not question.passages:
            continue
        question = cut(with_content_ids(question))
        if question.gold is None and name in stage.answers_as_gold:
            (labeled,) = label_questions([question], "answer", seed)
            places = labeled.expert or ()
            # Where no passage contains an answer, nobody knows whether one helps.
            if not places:
                continue
            question = replace(question, gold=tuple(question.passages[i - 1].id for i in places))
        if question.gold is None:
            continue
        if name in stage.one_suffices:
            question = _with_one(question)
        share = stage.unanswerable.get(name, 0.0)
        if random.Random(f"{seed}/unanswerable/{question.id}").random() < share:
            question = _without(question, question.gold or ())
            # Of what was needed alone nothing would be left to choose from.
            if not question.passages:
                continue
        if stage.shuffled:
            rng = random.Random(f"{seed}/candidates/{question.id}")
            question, _ = question.shuffled(len(question.passages), rng)
        extra = question.extra | {"dataset": name}
        found.append(replace(question, id=f"{name}/{question.id}", extra=extra))
    if not found:
        raise InputError(
            f"{path}: none of {len(every)} questions has candidates and says which are needed"
        )
    if said := cut.said():
        context.log(f"{name}: {said}")
    if helpless := sum(not q.gold for q in found):
        context.log(f"{name}: nothing helps {helpless} of {len(found)} questions")
    if len(found) < len(every):
        context.log(
            f"{name}: {len(every) - len(found)} of {len(every)} questions have no candidates, or "
            f"do not say which they need"
        )
    return found


class Cut:
    """Cuts passages to so many words, 0 to none, and counts."""

    def __init__(self, words: int):
        self.words, self.seen, self.cut, self.lost = words, 0, 0, 0

    def __call__(self, question: Question) -> Question:
        """The question with its passages cut."""
        if not self.words:
            return question
        needed, passages = question.gold_list() or (), []
        for place, passage in enumerate(question.passages, 1):
            words = passage.text.split()
            self.seen += 1
            if len(words) > self.words:
                self.cut += 1
                shorter = replace(passage, text=" ".join(words[: self.words]))
                self.lost += place in needed and _holds(question, passage, shorter)
                passage = shorter
            passages.append(passage)
        return replace(question, passages=tuple(passages))

    def said(self) -> str:
        """What was cut, in words; nothing where nothing was."""
        if not self.cut:
            return ""
        lost = f"; of {self.lost} needed ones, the answer" if self.lost else ""
        return (
            f"{self.cut} of {self.seen} passages are longer than words = {self.words}, and what "
            f"lies beyond is cut off{lost}"
        )


def _holds(question: Question, passage: Passage, shorter: Passage) -> bool:
    """Whether a passage holds an answer, and what is left of it holds none."""
    answers = question.answers
    return containment(passage.text, answers) > containment(shorter.text, answers)


def _with_one(question: Question) -> Question:
    """The question with the first needed of its candidates, and without the other needed ones."""
    needed = sorted(question.gold_list() or ())
    if not needed:
        return question
    first, *others = (question.passages[i - 1].id for i in needed)
    return replace(_without(question, others), gold=(first,))


def _without(question: Question, ids: Sequence[str]) -> Question:
    """The question without these needed passages, and without a list, which names places."""
    passages = tuple(p for p in question.passages if p.id not in ids)
    gold = tuple(id for id in question.gold or () if id not in ids)
    return replace(question, passages=passages, gold=gold, expert=None, expert_thought="")
