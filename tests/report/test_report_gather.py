"""What a run has written, as the parts of a report."""

from __future__ import annotations

import pytest

from dynarag_jax.evaluation.lists import NO_RETRIEVAL, ORACLE, shuffled_name
from dynarag_jax.records import Passage, Question
from dynarag_jax.report import gather, render
from dynarag_jax.report import schema as s


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python -m train.pipeline configs/quickstart.py --run.seed 1", "quickstart"),
        ("python /usr/bin/dynarag run 'my configs/own.py' --plan", "own"),
        ("python train/pipeline.py configs/nq.py", "nq"),
        ("python -m eval.score --questions a.jsonl", ""),
    ],
)
def test_the_config_is_the_one_that_the_command_names(command: str, name: str):
    assert gather.config_name(command) == name


def test_roles():
    roles = [
        gather.role_of(system, "one", "two")
        for system in ("one", "two", shuffled_name("two"), "top-3", NO_RETRIEVAL, ORACLE, "gap")
    ]
    assert roles == ["cloning", "feedback", "shuffled", "fixed", "none", "oracle", "other"]


def test_the_score_is_called_by_its_metric():
    short, label = Question("a", "?"), Question("b", "?", task="label")
    popqa = Question("c", "?", extra={"dataset": "popqa"})
    assert gather.answer_metric([short, short]) == "EM"
    assert gather.answer_metric([label]) == "accuracy"
    assert gather.answer_metric([popqa]) == "containment"
    assert gather.answer_metric([short, label]) == "score"


def test_ranks_of_needed_passages_are_counted_once_each():
    def ask(*gold: str, passages: int = 4) -> Question:
        shown = tuple(Passage(str(i), "text") for i in range(1, passages + 1))
        return Question("q", "?", gold=gold, passages=shown)

    questions = [
        ask("1"),
        ask("4"),
        ask("2", "9"),
        ask("1", "2"),
        ask(passages=2),
        Question("x", "?"),
    ]
    found = gather.rank_rows(questions, shown=3)
    assert found == [
        s.RankRow(1, 2, [1, 0, 0], absent=1),  # the fourth is not shown
        s.RankRow(2, 2, [1, 2, 0], absent=1),
    ]
    for row in found:
        assert sum(row.at) + row.absent == row.needed * row.questions


def test_every_stage_that_trained_has_a_panel_of_what_it_logged():
    lists = [{"step": 1, "reranker/nll": 2.0, "generator/nll": 1.0, "loss": 3.0}]
    (panel,) = gather.training_curves("sft", lists, {"reranker": []})
    assert panel.series == {"lists": [2.0], "answers": [1.0]} and panel.steps == [1]
    other = [{"step": i, "reranker/list_net": 2.0, "loss": 3.0} for i in (1, 2)]
    (panel,) = gather.training_curves("sft", other, {"reranker": ["list_net"]})
    assert (panel.y_label, panel.series) == ("list_net: loss", {"loss": [2.0, 2.0]})
    pairs = [{"step": 1, "generator/dpo": 0.6, "generator/dpo/chosen_reward": 0.1}]
    labels = [p.y_label for p in gather.training_curves("dpo", pairs, {"generator": ["dpo"]})]
    assert labels == ["dpo of answers: loss", "dpo of answers: implicit reward"]
    (total,) = gather.training_curves("x", [{"step": 5, "loss": 3.0}], {})
    assert total.series == {"loss": [3.0]}
    page = render(s.RunReport("A run", s.RunFacts("c", 0, 1), curves=[total]))
    assert "Training" in page
