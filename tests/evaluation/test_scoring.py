"""Scores of files of predictions: numbers by hand, what is missing, what is not asked."""

from __future__ import annotations

import dataclasses
import json
import math
from urllib.parse import unquote

import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.outputs import write_trec
from dynarag_jax.evaluation.predictions import Prediction, read_predictions
from dynarag_jax.evaluation.protocols import answerer, note
from dynarag_jax.evaluation.runs import score_predictions
from dynarag_jax.evaluation.scoring import list_scores, reached, score_system
from dynarag_jax.evaluation.summary import summarize
from dynarag_jax.evaluation.tables import report
from dynarag_jax.metrics import released
from dynarag_jax.metrics.intervals import (
    bootstrap,
    bootstrap_columns,
    paired_bootstrap,
    paired_bootstrap_columns,
)
from dynarag_jax.records import Passage, Question

NQ = {"dataset": "nq"}
CANDIDATES = (
    Passage("a", "The capital of France is Paris."),
    Passage("b", "Rome", "Italy"),
    Passage("c", "Oslo lies on a fjord."),
    Passage("d", "Nothing here."),
)
QUESTIONS = [
    Question("1", "?", ("Paris",), passages=CANDIDATES, gold=("a",), type="one", extra=NQ),
    Question("2", "?", ("Rome",), passages=CANDIDATES, gold=("b", "x"), type="two", extra=NQ),
    Question("3", "?", ("no",), passages=CANDIDATES, gold=(), type="one", extra=NQ),
    Question("4", "?", ("Oslo",), passages=CANDIDATES, type="two", extra=NQ),
]


def system(*predictions: Prediction) -> dict[str, Prediction]:
    return {p.id: p for p in predictions}


WHOLE = system(
    Prediction("1", answer="the Paris!", list=(2, 1), tokens=12),
    Prediction("2", answer="Rome, Italy", chosen=("b", "c", "d"), tokens=20),
    Prediction("3", answer="no", list=(), tokens=0),
    Prediction("4", answer="", list=(4,), tokens=4),
)


def test_every_figure_of_a_small_file_by_hand():
    rows = score_system(QUESTIONS, "ours", WHOLE, cutoffs=(1, 2))
    one, two, three, four = rows
    assert [r.state for r in rows] == ["answered", "answered", "answered", "empty"]
    assert one.answer == {"em": 1.0, "f1": 1.0, "containment": 1.0}
    assert two.answer == {"em": 0.0, "f1": pytest.approx(2 / 3), "containment": 1.0}
    assert one.lists == pytest.approx(
        {
            "set_f1": 2 / 3, "set_precision": 1 / 2, "set_recall": 1, "recall@1": 0, "recall@2": 1,
            "precision@1": 0, "precision@2": 1 / 2, "ndcg@1": 0, "ndcg@2": 1 / math.log2(3),
            "mrr": 1 / 2, "answer_recall@1": 0, "answer_recall@2": 1,
        }
    )  # fmt: skip
    # A needed passage that retrieval did not find is missing all the same.
    assert two.lists == pytest.approx(
        {
            "set_f1": 2 / 5, "set_precision": 1 / 3, "set_recall": 1 / 2, "recall@1": 1 / 2,
            "recall@2": 1 / 2, "precision@1": 1, "precision@2": 1 / 2, "ndcg@1": 1,
            "ndcg@2": 1 / (1 + 1 / math.log2(3)), "mrr": 1, "answer_recall@1": 1,
            "answer_recall@2": 1,
        }
    )  # fmt: skip
    # Nothing is needed and nothing chosen; "no" stands in no passage as an answer.
    assert three.lists == {"set_f1": 1, "set_precision": 1, "set_recall": 1}
    # The needed passages are unknown.
    assert four.lists == {"answer_recall@1": 0, "answer_recall@2": 0}
    assert [r.k for r in rows] == [2, 3, 0, 1] and [r.tokens for r in rows] == [12, 20, 0, 4]
    (summary,) = summarize(rows)
    assert summary.dataset == "nq" and summary.headline == "em" and summary.n == 4
    assert summary.figures["em"].mean == 1 / 2
    assert summary.figures["set_f1"].n == 3 and summary.figures["mrr"].n == 2
    assert summary.figures["mrr"].mean == 3 / 4
    assert summary.sizes is not None
    assert (summary.sizes.mean, summary.sizes.sd) == (1.5, pytest.approx(math.sqrt(1.25)))
    assert [(t.type, t.n, t.figures["em"].mean) for t in summary.types] == [
        ("one", 2, 1.0),
        ("two", 2, 0.0),
    ]


def test_what_is_missing_failed_or_empty_counts_zero_and_is_counted():
    part = system(
        Prediction("1", answer="Paris", list=(1,)),
        Prediction("3", answer="no", list=(), failed="the prompt is too long"),
        Prediction("4", answer=" "),
        Prediction("of another file", answer="x"),
        Prediction("and another", answer="x"),
    )
    scored = score_predictions(QUESTIONS, {"ours": part})
    (summary,) = summarize(scored.flat())
    assert summary.n == 4 and summary.figures["em"] == bootstrap([1, 0, 0, 0])
    assert summary.states == {"answered": 1, "empty": 1, "failed": 1, "missing": 1}
    # No list is not the empty list, which would be right for the third question.
    assert [r.lists["set_f1"] for r in scored.rows["ours"] if "set_f1" in r.lists] == [1, 0, 1]
    assert scored.extra == {"ours": 2}
    page = report([summary], scored.notes())
    assert "| ours | 4 | 3 (1 empty, 1 failed, 1 missing) | 25.0 [" in page
    assert "2 predictions of 'ours' are of no question that was asked" in page


def test_lists_alone_and_answers_alone_are_scored_as_far_as_they_go():
    lists = system(*(dataclasses.replace(p, answer=None) for p in WHOLE.values()))
    answers = system(*(Prediction(p.id, answer=p.answer) for p in WHOLE.values()))
    scored = score_predictions(QUESTIONS, {"lists": lists, "answers": answers})
    one, other = summarize(scored.flat())
    assert "em" not in one.figures and not one.states and one.figures["set_f1"].n == 3
    assert set(other.figures) == {"em", "f1", "containment"} and other.sizes is None
    assert "| lists | 4 | – | – |" in report([one, other])


def test_a_dataset_that_a_system_knows_nothing_of_is_left_out_and_unknown_names_are_said():
    more = [Question(f"own{i}", "?", ("Rome",), extra={"dataset": "mine"}) for i in range(3)]
    scored = score_predictions([*QUESTIONS, *more], {"ours": WHOLE})
    assert {r.dataset for r in scored.rows["ours"]} == {"nq"}
    assert scored.unknown == ("mine",) and "'mine'" in scored.notes()[-1]
    with pytest.raises(InputError, match=r"answers none of the questions: .* 'own0'.* '1'"):
        score_predictions(more, {"ours": WHOLE})
    with pytest.raises(InputError, match="no metrics for dataset 'hotpot'"):
        score_predictions(QUESTIONS, {"ours": WHOLE}, dataset="hotpot")


def test_lists_of_other_questions_are_refused():
    with pytest.raises(InputError, match=r"field 'list' holds 5, outside 1\.\.4; question '1'"):
        score_system(QUESTIONS, "x", system(Prediction("1", answer="a", list=(5,))))
    with pytest.raises(InputError, match="names 'zz', which is no candidate of question '1'"):
        score_system(QUESTIONS, "x", system(Prediction("1", answer="a", chosen=("zz",))))


def test_ranking_figures_equal_trec_evals_on_the_files_we_write(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(0)
    passages = tuple(Passage(f"p {i}", "text") for i in range(30))
    questions, predictions = [], {}
    for i in range(40):
        gold = tuple(f"p {j}" for j in rng.choice(30, rng.integers(1, 6), replace=False))
        questions.append(Question(f"q{i}", "?", passages=passages, gold=gold))
        order = tuple(int(j) + 1 for j in rng.permutation(30)[: rng.integers(1, 31)])
        predictions[f"q{i}"] = Prediction(f"q{i}", list=order)
    run: dict[str, dict[str, float]] = {}
    scored = score_predictions(questions, {"a system": predictions})
    write_trec(tmp_path, scored)
    for line in (tmp_path / "a-system.run").read_text().splitlines():
        qid, q0, doc, rank, score, tag = line.split()
        assert q0 == "Q0" and tag == "a-system" and int(rank) >= 1
        run.setdefault(qid, {})[unquote(doc)] = float(score)
    judged: dict[str, dict[str, int]] = {}
    for line in (tmp_path / "judgments.qrels").read_text().splitlines():
        qid, _, doc, relevance = line.split()
        judged.setdefault(qid, {})[unquote(doc)] = int(relevance)
    names = {"recall@5": "recall_5", "precision@10": "P_10", "ndcg@10": "ndcg_cut_10"}
    measures = {"recall.5", "P.10", "ndcg_cut.10", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    for question in questions:
        ranking = predictions[question.id].ranking(question)
        assert ranking is not None
        ours = list_scores(question, ranking)
        for name, other in (names | {"mrr": "recip_rank"}).items():
            assert ours[name] == pytest.approx(theirs[question.id][other], abs=1e-12), name


def test_columns_are_bootstrapped_as_one_by_one(monkeypatch):
    rng = np.random.default_rng(0)
    a = np.stack([rng.random(70), rng.random(70) < 0.4, rng.integers(0, 15, 70)], axis=1)
    b = np.stack([rng.random(70), rng.random(70) < 0.6, rng.integers(0, 15, 70)], axis=1)
    monkeypatch.setattr("dynarag_jax.metrics.intervals._BLOCK", 70 * 300)  # several blocks
    for column, found in enumerate(bootstrap_columns(a, seed=5)):
        assert vars(found) == pytest.approx(vars(bootstrap(a[:, column], seed=5)))
    for column, found in enumerate(paired_bootstrap_columns(a, b, seed=5)):
        one = paired_bootstrap(a[:, column], b[:, column], seed=5)
        assert vars(found) == pytest.approx(vars(one), abs=1e-12)


def test_the_released_protocol_is_marked_and_has_its_mistakes():
    predictions = system(
        Prediction("1", answer=""),
        Prediction("2", answer="It is Rome"),
        Prediction("3", failed="x"),
    )
    scored = score_predictions(QUESTIONS, {"ours": predictions}, answerer=answerer("released-code"))
    (summary,) = summarize(scored.flat())
    assert summary.headline == "released match"
    # An empty answer matches, a right sentence does not, and who failed or is missing is dropped.
    match = summary.figures["released match"]
    assert (match.n, match.mean) == (2, 0.5)
    page = report([summary], note("released-code"))
    assert "wrong on purpose" in page and "50.0 [0.0, 100.0] (n = 2)" in page
    assert "Every question is in every mean" not in page
    assert note("benchmark") == []


# ---------------------------------------------------------------------------- files


def lines(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def test_files_of_predictions(tmp_path):
    one = lines(tmp_path / "one.jsonl", {"id": 1, "answer": "a"}, {"id": "2", "answer": None})
    two = lines(
        tmp_path / "two.jsonl",
        {"id": "1", "system": "x", "answer": "a", "list": [2, 1], "tokens": 7},
        {"id": "1", "system": "y", "list": []},
        {"id": "2", "system": "y", "answer": "", "failed": "too long"},
    )
    found = read_predictions([("", one), ("", two)])
    assert list(found) == ["one", "x", "y"]
    assert found["one"]["1"].answer == "a" and found["one"]["2"].answer is None
    assert found["x"]["1"].list == (2, 1) and found["x"]["1"].tokens == 7
    assert found["y"]["1"].has_list() and found["y"]["2"].failed == "too long"
    assert list(read_predictions([("mine", one), ("theirs", two)])) == [
        "mine", "theirs: x", "theirs: y",
    ]  # fmt: skip
    # The same systems in two files: refused, unless they are named apart or share no question.
    with pytest.raises(InputError, match=r"two\.jsonl:1: question '1' is answered twice by system"):
        read_predictions([("", two), ("", two)])
    more = lines(tmp_path / "more.jsonl", {"id": "9", "system": "x", "answer": "b"})
    assert set(read_predictions([("", two), ("", more)])["x"]) == {"1", "9"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1", "anwser": "a"}, r"p\.jsonl:2: field 'answer' is missing \(did you mean"),
        ({"answer": "a"}, r"p\.jsonl:2: field 'id' is missing"),
        ({"id": "1", "answer": 7}, r"p\.jsonl:2: field 'answer' must be a string, found 7"),
        ({"id": "1", "list": ["a"]}, r"p\.jsonl:2: field 'list' must be a list of integers"),
        ({"id": "0", "answer": "b"}, r"p\.jsonl:2: question '0' is answered twice"),
        ("{nonsense\n", r"p\.jsonl:2: not valid JSON"),
    ],
)
def test_lines_that_are_no_predictions(row, message, tmp_path):
    path = lines(tmp_path / "p.jsonl", {"id": "0", "answer": "a"}, row)
    with pytest.raises(InputError, match=message):
        read_predictions([("", path)])


def test_the_released_protocol_gives_the_one_number_that_the_scripts_print():
    rng = np.random.default_rng(0)
    words = ["Paris", "Rome", "the", "in", "", "Oslo, Norway"]
    questions = [
        Question(f"q{i}", "?", tuple(rng.choice(words[:2], rng.integers(0, 3))), extra=NQ)
        for i in range(60)
    ]
    texts = {q.id: str(rng.choice(words)) for q in questions[:50]}
    predictions = system(*(Prediction(i, answer=text) for i, text in texts.items()))
    rows = score_predictions(
        questions, {"ours": predictions}, answerer=answerer("released-code")
    ).flat()
    (summary,) = summarize(rows)
    for metric in released.METRICS:
        scores = [released.score_prediction(q, texts.get(q.id), "nq", metric) for q in questions]
        kept = [score for score in scores if score is not None]  # they take the mean of these
        ours = summary.figures[f"released {metric}"]
        scale = 100 if metric == "f1" else 1
        assert ours.mean * scale == pytest.approx(sum(kept) / len(kept), abs=1e-12), metric
        assert ours.n == len(kept) < 60


def test_cutoffs_that_no_candidates_reach_are_left_out():
    assert reached((5, 10, 20), QUESTIONS) == (5,)
    assert reached((20, 2, 4), QUESTIONS) == (2, 4)
    assert reached((), QUESTIONS) == ()
    assert reached((5, 20), [dataclasses.replace(q, passages=()) for q in QUESTIONS]) == (5, 20)
    predicted = {"1": Prediction("1", chosen=("a",))}
    rows = score_predictions(QUESTIONS, {"ours": predicted}).rows["ours"]
    assert {name for row in rows for name in row.lists if "@" in name} == {
        "recall@5", "precision@5", "ndcg@5", "answer_recall@5",
    }  # fmt: skip
