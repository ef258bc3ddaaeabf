"""Experts: who writes the lists that behavior cloning imitates.

The paper's expert is a pointwise reranker, which scores each passage against the question alone.
Such an expert errs in a way of its own: it overlooks passages that do not resemble the question
(the later links of a chain), takes a similar passage for the right one, and adds what resembles the
question without being needed. ``noisy_expert`` errs in the same ways, by known amounts, so that one
can see whether feedback repairs them.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.metrics.matching import has_answer
from dynarag_jax.metrics.ranking import asks_for_text
from dynarag_jax.records import Passage, Question

Source = Literal["gold", "answer", "noisy"]


@dataclass(frozen=True)
class ExpertNoise:
    """How a noisy expert errs. The defaults are the quickstart's."""

    lose_first: float = 0.05
    """chance to overlook a needed passage that the retriever ranks first"""
    lose_last: float = 0.30
    """the same for one it ranks last; in between the chance is linear in the rank"""
    swap: float = 0.10
    """chance to take, for a link of a chain before its last, the candidate most like it in words"""
    extras: tuple[float, ...] = (0.20, 0.40, 0.30, 0.10)
    """chances to add 0, 1, 2, ... of the retriever's best passages that are not needed"""

    def __post_init__(self) -> None:
        for name in ("lose_first", "lose_last", "swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"expert: {name} must be between 0 and 1, found {getattr(self, name)}"
                )
        if any(p < 0 for p in self.extras) or abs(sum(self.extras) - 1) > 1e-6:
            raise InputError(
                f"expert: extras must be chances that sum to 1, found {list(self.extras)}"
            )


def _gold(question: Question, source: str) -> tuple[int, ...]:
    needed = question.gold_list()
    if needed is None:
        raise InputError(
            f"question '{question.id}': field 'gold' is missing, and the source '{source}' labels "
            "by it; use the source 'answer'"
        )
    return needed


def _words(passage: Passage) -> set[str]:
    return set(re.findall(r"\w+", f"{passage.title} {passage.text}".lower()))


def _confusable(question: Question, position: int, taken: Iterable[int]) -> int | None:
    """The candidate not yet taken that shares most words with the one at ``position`` (Jaccard)."""
    mine, used = _words(question.passages[position - 1]), {position, *taken}
    best, most = None, 0.0
    for i, passage in enumerate(question.passages, 1):
        theirs = _words(passage)
        alike = len(mine & theirs) / max(len(mine | theirs), 1)
        if i not in used and alike > most:
            best, most = i, alike
    return best


def noisy_expert(
    question: Question, seed: int, config: ExpertNoise | None = None
) -> tuple[int, ...]:
    """The list of a biased, noisy expert: needed passages with losses and swaps, then extras.

    Needed passages stand in the order of reasoning, extras after them in the retriever's order. The
    same seed and question id give the same list, whatever other questions there are.

    Returns:
      Positions in ``question.passages``, from 1, without repeats.

    Raises:
      InputError: the question's ``gold`` is unknown.
    """
    config = config or ExpertNoise()
    needed = _gold(question, "noisy")
    rng = random.Random(f"expert {seed} {question.id}")
    span = max(len(question.passages) - 1, 1)
    chosen: list[int] = []
    for link, position in enumerate(needed, 1):
        far = (position - 1) / span
        # Both are drawn always, so that one rate does not change what another draws.
        lost = rng.random() < config.lose_first + (config.lose_last - config.lose_first) * far
        swapped = rng.random() < config.swap
        if lost:
            continue
        if swapped and link < len(needed):
            other = _confusable(question, position, [*chosen, *needed])
            chosen.append(position if other is None else other)
        else:
            chosen.append(position)
    count = rng.choices(range(len(config.extras)), weights=config.extras)[0]
    others = [
        i for i in range(1, len(question.passages) + 1) if i not in needed and i not in chosen
    ]
    return (*chosen, *others[:count])


def label_questions(
    questions: Sequence[Question],
    source: str,
    seed: int = 0,
    noise: ExpertNoise | None = None,
    shown: int | None = None,
    limit: int | None = None,
) -> list[Question]:
    """Give each question the list to imitate, and say whose it is.

    Args:
      questions: with their candidate passages.
      source: ``gold``, the needed passages that are among the candidates, in the order of
        reasoning; ``answer``, the candidates whose text contains an answer (DPR's test), in the
        retriever's order; ``noisy``, ``gold`` as ``noisy_expert`` spoils it. No passage contains a
        yes, a no or a label: of such questions, and of those without an answer, ``answer`` takes
        ``gold`` where it is known, and gives no list where it is not.
      seed: of the noisy expert.
      noise: how the noisy expert errs.
      shown: candidates the reranker is shown; what stands behind them is never listed.
      limit: ids in a list at most; the rest of a longer list is dropped.

    Returns:
      The questions with ``expert`` and ``expert_source`` set.

    Raises:
      InputError: the source is unknown, or a question lacks the ``gold`` it needs.
    """
    if source not in get_args(Source):
        raise InputError(
            f"expert: unknown source '{source}'{nearest(source, get_args(Source))}; "
            f"it must be one of {', '.join(get_args(Source))}"
        )
    for name, value in (("shown", shown), ("limit", limit)):
        if value is not None and value < 1:
            raise InputError(f"expert: {name} must be at least 1, found {value}")
    result = []
    for question in questions:
        seen = dataclasses.replace(question, passages=question.passages[:shown])
        if source == "gold":
            expert = _gold(seen, source)
        elif source == "noisy":
            expert = noisy_expert(seen, seed, noise)
        else:
            answered = any(answer.strip() for answer in question.answers)
            if not answered or not asks_for_text(question):
                result.append(_without_text(seen, question, limit))
                continue
            expert = tuple(
                i
                for i, passage in enumerate(seen.passages, 1)
                if has_answer(passage.text, question.answers)
            )
        result.append(dataclasses.replace(question, expert=expert[:limit], expert_source=source))
    return result


def _without_text(seen: Question, question: Question, limit: int | None) -> Question:
    """A question whose answer no passage can contain: ``gold``, or no list."""
    if seen.gold is None:
        return dataclasses.replace(question, expert=None, expert_source="", expert_thought="")
    expert = _gold(seen, "gold")[:limit]
    return dataclasses.replace(question, expert=expert, expert_source="gold")


def why_empty(question: Question) -> str:
    """Why a list by ``label_questions`` is empty or missing; empty where it is neither."""
    if question.expert is None:
        if not any(answer.strip() for answer in question.answers):
            return "no list: there is no answer to look for, and 'gold' is not known"
        return "no list: no passage contains a yes, a no or a label, and 'gold' is not known"
    if question.expert:
        return ""
    if question.expert_source == "answer":
        return "an empty list: no candidate contains an answer"
    return (
        "an empty list: nothing is needed"
        if not question.gold
        else "an empty list: what is needed is missing"
    )
