"""The lists of the baselines."""

from __future__ import annotations

from dynarag_jax.evaluation.lists import NO_RETRIEVAL, ORACLE, fixed_systems
from dynarag_jax.records import Passage, Question


def ask(name: str, passages: int, gold: tuple[str, ...] | None = ()) -> Question:
    shown = tuple(Passage(f"{name}{i}", "text") for i in range(1, passages + 1))
    return Question(name, "?", passages=shown, gold=gold)


def test_one_question_with_few_candidates_takes_no_baseline_away():
    questions = [ask("a", 4, ("a2", "elsewhere")), ask("b", 2), ask("c", 0)]
    found = fixed_systems(questions, (1, 3, 4, 5), ids=8)
    assert found == {
        NO_RETRIEVAL: [(), (), ()],
        "top-1": [(1,), (1,), ()],
        "top-3": [(1, 2, 3), (1, 2), ()],
        "top-4": [(1, 2, 3, 4), (1, 2), ()],
        ORACLE: [(2,), (), ()],
    }
    assert list(fixed_systems(questions, (1, 3, 4), ids=3)) == [
        NO_RETRIEVAL, "top-1", "top-3", ORACLE,
    ]  # fmt: skip
    assert ORACLE not in fixed_systems([*questions, ask("d", 1, None)], (1,), ids=8)
    assert fixed_systems([ask("c", 0)], (1,), ids=8) == {NO_RETRIEVAL: [()], ORACLE: [()]}
