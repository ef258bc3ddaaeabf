"""Lines of an evaluation: what they hold, and the scores that are made of them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from dynarag_jax.evaluation.predictions import (
    Prediction,
    prediction_from_json,
    prediction_to_json,
)
from dynarag_jax.evaluation.scoring import by_benchmark, row_of_line, scored_line
from dynarag_jax.evaluation.summary import scores_by_system, summarize
from dynarag_jax.evaluation.tables import side_by_side
from dynarag_jax.metrics.intervals import bootstrap
from dynarag_jax.records import Passage, Question

PASSAGES = tuple(Passage(f"p{i}", f"text {i}") for i in range(1, 5))


def ask(number: int, **fields) -> Question:
    return Question(
        f"q{number}",
        "?",
        answers=("Rome",),
        type=("a", "b")[number % 2],
        passages=PASSAGES,
        **fields,
    )


@pytest.mark.parametrize(
    "prediction",
    [
        Prediction("q1", answer="Rome", list=(2, 1), tokens=7),
        Prediction("q1", answer="Rome", list=(2, 1), tokens=4, read=1),
        Prediction("q1", answer="", list=(3,), tokens=0, read=0, failed="too long"),
        Prediction("q1", answer="", list=(), tokens=0),
        Prediction("q1", answer="", failed="no list"),
    ],
)
def test_a_prediction_is_read_as_it_was_written(prediction: Prediction):
    line = prediction_to_json(prediction, ask(1), "mine")
    found = prediction_from_json(line, "")
    for name in ("id", "answer", "list", "tokens", "failed"):
        assert getattr(found, name) == getattr(prediction, name)
    assert line["system"] == "mine"
    if prediction.list is not None:
        assert line["chosen"] == [f"p{i}" for i in prediction.list]
        assert line["k"] == len(prediction.list)


def test_scores_are_the_bootstrap_of_each_figure_alone():
    rng = np.random.default_rng(0)
    lines = []
    for number in range(40):
        question = ask(number, gold=tuple(rng.choice(["p1", "p2", "p3"], 2, replace=False)))
        chosen = tuple(int(i) for i in rng.permutation(4)[: rng.integers(0, 5)] + 1)
        answer = str(rng.choice(["Rome", "Oslo"]))
        prediction = Prediction(question.id, answer=answer, list=chosen, tokens=3 * len(chosen))
        lines.append(scored_line(prediction, question, "mine", by_benchmark()))
    found = scores_by_system(summarize(map(row_of_line, lines), seed=3, one_by_one=True))
    assert list(found) == ["mine"] and list(found["mine"]["by_type"]) == ["a", "b"]
    for figure in ("score", "set_f1", "k", "tokens"):
        values = [line[figure] for line in lines]
        assert found["mine"][figure] == asdict(bootstrap(values, seed=3))  # to the last digit
        part = [line[figure] for line in lines if line["type"] == "b"]
        assert found["mine"]["by_type"]["b"][figure] == asdict(bootstrap(part, seed=3))


def test_a_figure_that_some_questions_lack_is_no_mean():
    questions = [ask(0, gold=("p1",)), ask(2)]
    lines = [
        scored_line(Prediction(q.id, answer="Rome", list=(1,), tokens=1), q, "mine", by_benchmark())
        for q in questions
    ]
    assert [line["set_f1"] for line in lines] == [1.0, None]
    assert [line["needed"] for line in lines] == [1, None]
    summaries = summarize(map(row_of_line, lines), one_by_one=True)
    assert "set_f1" not in scores_by_system(summaries)["mine"]
    assert side_by_side(summaries).split()[-4:] == ["100.0", "–", "1.00", "1.0"]
    failed = Prediction("q0", answer="", list=(2,), tokens=0, failed="too long")
    line = scored_line(failed, questions[0], "a system whose name is long", by_benchmark())
    assert (line["score"], line["set_f1"], row_of_line(line).state) == (0.0, 0.0, "failed")
    text = side_by_side([*summaries, *summarize([row_of_line(line)])])
    assert len({len(row) for row in text.splitlines()}) == 1  # the columns stand below each other
    assert "100.0" in text and "a system whose name is long" in text
