"""One rule in every stage for questions with more candidates than a prompt shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dynarag_jax.config import INHERITED, MorePassages
from dynarag_jax.errors import InputError
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.sampling.list_sources import Reject
from dynarag_jax.sampling.windows import Windows

OPEN = Windows(window=0, budget=0)
"""Windows of the prompts' size, for lists as long as the prompts allow."""


def divide(
    questions: Sequence[Question], ids: int, rule: MorePassages
) -> tuple[list[Question], list[Reject]]:
    """The questions that a rule keeps, and those that it sets aside, with the reason."""
    if rule != "set_aside":
        return list(questions), []
    kept = [question for question in questions if len(question.passages) <= ids]
    aside = [
        Reject(question.id, f"question '{question.id}' {too_many(question, ids)}")
        for question in questions
        if len(question.passages) > ids
    ]
    return kept, aside


def too_many(question: Question, ids: int) -> str:
    """Why a question is set aside."""
    return (
        f"has {len(question.passages)} passages, and the grammar has prompts.ids = {ids}; raise "
        f"prompts.ids, or take the first {ids} with more_passages = show_first"
    )


def to_learn(
    questions: Sequence[Question],
    ids: int,
    rule: MorePassages,
    name: str,
    log: Callable[[str], None],
) -> list[Question]:
    """The questions that are learned from; what happens to those with more passages is said.

    Prompts show the first ``ids`` passages by themselves, also where lists are written by windows.

    Raises:
      InputError: all of them are set aside.
    """
    _say(questions, ids, rule, name, log, learned=True)
    kept, aside = divide(questions, ids, rule)
    if aside and not kept:
        raise InputError(f"{name}: every question is set aside; {aside[0].reason}")
    return kept


def to_rerank(
    questions: Sequence[Question],
    ids: int,
    rule: MorePassages,
    name: str,
    log: Callable[[str], None],
) -> tuple[list[Question], list[Reject]]:
    """The questions with the candidates that a list is written over, and those set aside."""
    _say(questions, ids, rule, name, log, learned=False)
    kept, aside = divide(questions, ids, rule)
    if rule == "show_first":
        kept = [first_passages(question, ids) for question in kept]
    return kept, aside


def first_passages(question: Question, ids: int) -> Question:
    """The question over its first ``ids`` passages."""
    if len(question.passages) <= ids:
        return question
    expert = question.expert
    if expert is not None:
        expert = tuple(place for place in expert if place <= ids)
    return replace(question, passages=question.passages[:ids], expert=expert)


def _say(
    questions: Sequence[Question],
    ids: int,
    rule: MorePassages,
    name: str,
    log: Callable[[str], None],
    learned: bool,
) -> None:
    more = [question for question in questions if len(question.passages) > ids]
    if not more:
        return
    done = {
        "windows": f"their first {ids} are shown" if learned else "read by windows",
        "show_first": f"their first {ids} are shown",
        "set_aside": "set aside",
    }[rule]
    log(
        f"{name}: {len(more)} of {len(questions)} questions have more passages than prompts.ids = "
        f"{ids}, '{more[0].id}' the first of them with {len(more[0].passages)}: {done} "
        f"(more_passages = {rule})"
    )


def check_windows(windows: Windows, prompts: PromptConfig, rule: MorePassages) -> None:
    """Refuse windows that do not fit the prompts, or that nothing reads.

    Raises:
      InputError: they are wider than a prompt or their budget longer than a list; or they are set
        and ``rule`` takes none.
    """
    if rule not in (INHERITED, "windows") and windows != OPEN:
        raise InputError(
            f"windows: set, and more_passages = {rule} reads no windows; leave them out, or set "
            f"more_passages to windows"
        )
    if prompts is INHERITED:
        return
    if windows.window > prompts.ids:
        raise InputError(
            f"windows: window = {windows.window} shows more passages than a prompt's "
            f"ids = {prompts.ids}"
        )
    if windows.budget > prompts.max_list:
        raise InputError(
            f"windows: budget = {windows.budget} is more than a list holds, max_list = "
            f"{prompts.max_list}"
        )
    if prompts.ids > 1:
        windows.within(prompts.ids, prompts.max_list)
