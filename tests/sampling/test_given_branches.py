"""Given branches: worth the same whatever they are scored with, and little is padded."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dynarag_jax.sampling.policy_sampler import PolicySampler


def asked(question):
    """Long and short questions, with one to five answers of one to five tokens."""
    questions, answers = [], []
    for i in range(21):
        one = question(f"q{i}", 1 + i % 3)
        longer = tuple(
            dataclasses.replace(p, text=f"{p.text} " * (1 + i % 4)) for p in one.passages
        )
        questions.append(dataclasses.replace(one, passages=longer))
        count = 5 if i == 7 else 1 + i % 2
        answers.append(
            [[2 + (i + j + t) % 40 for t in range(1 + (i + j) % 5)] for j in range(count)]
        )
    return questions, [tuple(range(1, len(q.passages) + 1)) for q in questions], answers


@pytest.fixture
def heard(tiny_policy):
    """A sampler, and the shapes of the batches that it scores."""
    policy, prompts = tiny_policy
    sampler = PolicySampler(policy, prompts, 16, 0)
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    score: Any = sampler._given._scorer

    def listening(params, batch):
        shapes.append((batch.trunk.shape, batch.branches.shape))
        return score(params, batch)

    sampler._given._scorer = listening
    return sampler, shapes


def test_answers_are_worth_the_same_alone_and_among_others(heard, question):
    sampler, _ = heard
    questions, contexts, answers = asked(question)
    together = sampler.answer_logps(questions, contexts, answers, 8)
    for i, given in enumerate(answers):
        assert [len(one) for one in together[i]] == list(map(len, given))
        if i % 5 == 2:
            (alone,) = sampler.answer_logps([questions[i]], [contexts[i]], [given], 8)
            for one, other in zip(alone, together[i], strict=True):
                np.testing.assert_allclose(one, other, atol=2e-5)
    assert sampler.answer_logps([], [], [], 8) == []


def test_few_prompts_are_not_padded_to_a_whole_batch(heard, question):
    sampler, shapes = heard
    questions, contexts, answers = asked(question)
    sampler.answer_logps(questions, contexts, answers, 8)
    real = sum(
        len(sampler.maker.answer_prompt(q, c).tokens)
        for q, c in zip(questions, contexts, strict=True)
    )
    # Rows go to the next power of two, eight at least; whole batches of 16 would be twice as many.
    assert sum(rows * length for (rows, length), _ in shapes) < 5 * real
    assert [rows for (rows, _), _ in shapes].count(16) == 1
    assert {rows for (rows, _), _ in shapes} == {8, 16}
    # Only the question with five answers is scored in eight branches.
    assert sorted({n for _, (_, n, _) in shapes}) == [1, 2, 8]
    assert sum(rows for (rows, _), (_, n, _) in shapes if n == 8) == 8
    assert {longest for _, (_, _, longest) in shapes} == {5}
    shapes.clear()
    short = [[one[:2] for one in given[:1]] for given in answers]
    sampler.answer_logps(questions, contexts, short, 8)
    assert {(n, longest) for _, (_, n, longest) in shapes} == {(1, 2)}
