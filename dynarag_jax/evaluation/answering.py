"""Answers from given lists, as predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.evaluation.predictions import Prediction
from dynarag_jax.prompts import format_passage
from dynarag_jax.records import Question
from dynarag_jax.sampling.answer_server import NoAnswer, ServerAnswers
from dynarag_jax.sampling.policy_sampler import PolicySampler

BATCHES = 4
"""Batches of a sampler whose answers are given at once."""


def answer(
    sampler: PolicySampler,
    questions: Sequence[Question],
    lists: Sequence[Chosen],
    generator: ServerAnswers | None = None,
) -> Iterator[tuple[Question, Prediction]]:
    """Answer each question from its list, in order; one that cannot be served says why.

    ``sampler`` answers, or the server that ``generator`` asks, a few batches at a time, so that
    whoever keeps answers loses no more. In a run of several processes all of them call it.

    ``tokens`` counts those of the passages that the prompt had room for, each with its number and
    title.
    """
    pairs = list(zip(questions, lists, strict=True))
    size = BATCHES * sampler.batch
    (rounds,) = sampler.team.max([-(-len(pairs) // size)])
    for start in range(0, rounds * size, size):
        some = pairs[start : start + size]
        given = (generator or sampler).try_answers(some)
        for (question, chosen), answered in zip(some, given, strict=True):
            yield question, _predicted(sampler, question, chosen, answered)


def _predicted(
    sampler: PolicySampler,
    question: Question,
    chosen: Chosen,
    answered: str | InputError | NoAnswer,
) -> Prediction:
    if not isinstance(answered, str):
        why = answered.reason if isinstance(answered, NoAnswer) else str(answered)
        read = 0 if chosen else None
        return Prediction(question.id, answer="", list=chosen, tokens=0, read=read, failed=why)
    read = sampler.maker.answer_prompt(question, chosen).shown
    shown = [question.passages[i - 1] for i in chosen[:read]]
    lines = [format_passage(n, passage) for n, passage in enumerate(shown, 1)]
    tokenizer = sampler.policy.tokenizer
    tokens = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    return Prediction(
        question.id,
        answer=answered,
        list=chosen,
        tokens=sum(map(len, tokens)),
        read=read if read < len(chosen) else None,
    )
