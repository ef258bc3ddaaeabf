"""Shuffled candidates: another order to read, the same positions to report."""

from __future__ import annotations

from types import SimpleNamespace

from dynarag_jax.processes import ProcessTeam
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Passage, Question
from dynarag_jax.stages.evaluate import SHUFFLED, Evaluate, choose


def question(number: int, passages: int = 9) -> Question:
    shown = tuple(Passage(id=f"q{number}p{i}", text=f"text {i}") for i in range(1, passages + 1))
    return Question(id=f"q{number}", text="what?", passages=shown)


def test_lists_over_shuffled_candidates_are_reported_in_the_order_that_was_given():
    """A reader of texts, for whom order is nothing, chooses the same passages either way."""

    def lists(questions, sampling):
        for q in questions:
            found = [n for n, p in enumerate(q.passages, 1) if p.text in ("text 2", "text 5")]
            yield SimpleNamespace(
                lists=[tuple(sorted(found, key=lambda n: q.passages[n - 1].text))],
                shown=len(q.passages),
                thoughts=(),
            )

    prompts = PromptConfig(ids=6)
    maker = SimpleNamespace(rerank_prompt=lambda question: None)
    writer = SimpleNamespace(
        try_lists=lambda *how: list(lists(*how)), prompts=prompts, maker=maker,
        team=ProcessTeam(None),
    )  # fmt: skip
    stage = Evaluate(prompts=prompts)
    asked = [question(number) for number in range(20)]
    for system in ("model", "model" + SHUFFLED):
        made = choose(writer, system, stage, asked, seed=0)
        assert [one.list for one in made] == [(2, 5)] * 20
