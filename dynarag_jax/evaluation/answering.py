"""Answers from given lists, as lines of a file of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.prompts import format_passage
from dynarag_jax.records import Question
from dynarag_jax.sampling.writer import Writer


@dataclass(frozen=True)
class Answered:
    """What the generator made of a question and a list.

    Attributes:
      answer: empty where it failed.
      read: passages that its prompt had room for, the first of the list.
      tokens: of these passages, each with its number and title.
      failed: why there is no answer.
    """

    question: Question
    list: Chosen
    answer: str
    read: int
    tokens: int
    failed: str = ""


def answer(
    writer: Writer, questions: Sequence[Question], lists: Sequence[Chosen]
) -> Iterator[Answered]:
    """Answer each question from its list, in order; one that cannot be served says why."""
    tokenizer = writer.policy.tokenizer
    asked = list(zip(questions, lists, strict=True))
    for (question, chosen), found in zip(asked, writer.try_answers(asked), strict=True):
        if isinstance(found, InputError):
            yield Answered(question, chosen, "", 0, 0, str(found))
            continue
        read = writer.maker.answer_prompt(question, chosen).shown
        shown = [question.passages[i - 1] for i in chosen[:read]]
        lines = [format_passage(n, passage) for n, passage in enumerate(shown, 1)]
        tokens = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
        yield Answered(question, chosen, found, read, sum(map(len, tokens)))
