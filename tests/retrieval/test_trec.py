"""TREC's forms as written: read back by ours, by split() as others read them, by trec_eval's."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.records import Question
from dynarag_jax.retrieval.trec import (
    judgment_lines,
    list_lines,
    read_qrels,
    read_run,
    trec_word,
    value_lines,
)


@given(st.text(min_size=1))
def test_a_word_is_one_column_and_says_which_id_it_was(text: str):
    word = trec_word(text)
    assert len(word.split()) == 1
    assert unquote(word) == text


def test_lists_and_judgments_read_back(tmp_path):
    questions = [
        Question("q 1", "?", gold=("d 1", "d%201")),
        Question("q2", "?", gold=()),
        Question("q3", "?"),
    ]
    lists = [("q 1", ("d%201", "d 1", "x")), ("q2", ())]
    (tmp_path / "run").write_text("".join(list_lines(lists, "my system")))
    (tmp_path / "qrels").write_text("".join(judgment_lines(questions)))
    rows = {"d%201": 0, "d%25201": 1, "x": 2}
    found = read_run(tmp_path / "run", rows.get)
    assert list(found) == ["q%201"]
    assert found["q%201"][0].tolist() == [1, 0, 2]
    assert read_qrels(tmp_path / "qrels") == {"q%201": {"d%201": 1, "d%25201": 1}}


def test_values_end_with_counts_and_means():
    values = [("q0", {"em": 1.0}), ("q 9", {"em": 0.25, "f1": 0.5})]
    lines = list(value_lines(values, {"num_q": 2}, "nq/"))
    assert [line.rstrip("\n").split("\t") for line in lines] == [
        ["nq/em", "q0", "1.0000"],
        ["nq/em", "q%209", "0.2500"],
        ["nq/f1", "q%209", "0.5000"],
        ["nq/num_q", "all", "2"],
        ["nq/em", "all", "0.6250"],
        ["nq/f1", "all", "0.5000"],
    ]


@pytest.mark.parametrize("cutoff", [1, 3])
def test_trec_evals_recall_of_lists_as_written(cutoff: int):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    lists = [("a", ("x", "y", "z")), ("b", ("y",))]
    questions = [Question("a", "?", gold=("z", "x")), Question("b", "?", gold=("x",))]
    run: dict[str, dict[str, float]] = {}
    for line in list_lines(lists, "t"):
        question, _, passage, _, score, _ = line.split()
        run.setdefault(question, {})[passage] = float(score)
    judged: dict[str, dict[str, int]] = {}
    for line in judgment_lines(questions):
        question, _, passage, grade = line.split()
        judged.setdefault(question, {})[passage] = int(grade)
    found = pytrec_eval.RelevanceEvaluator(judged, {f"recall.{cutoff}"}).evaluate(run)
    expected = {1: [0.5, 0.0], 3: [1.0, 0.0]}[cutoff]
    assert [found[q][f"recall_{cutoff}"] for q in ("a", "b")] == expected
