"""BM25, fused rankings, TREC files and the scores of a retrieval."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from dynarag_jax.errors import InputError
from dynarag_jax.files import read_jsonl
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.bm25 import Bm25Config, build_bm25, load_bm25
from dynarag_jax.retrieval.fusion import Fusion, fuse
from dynarag_jax.retrieval.scores import retrieval_scores, scores_table
from dynarag_jax.retrieval.trec import read_qrels, read_run, trec_lines

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

TEXTS = [
    "the red cat sat", "a blue dog", "red red dog and the cat", "", "green parks are running",
    "a blue dog", "the of and",
]  # fmt: skip


def lucene(query: list[str], docs: list[list[str]], k1: float, b: float) -> list[float]:
    """Lucene's BM25, by its formula."""
    mean = sum(map(len, docs)) / len(docs)
    scores = []
    for doc in docs:
        total = 0.0
        for word in query:
            df = sum(word in d for d in docs)
            if df:
                idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
                tf = doc.count(word)
                total += idf * tf / (tf + k1 * (1 - b + b * len(doc) / mean))
        scores.append(total)
    return scores


@pytest.mark.parametrize("config", [Bm25Config(), Bm25Config(k1=1.5, b=0.75, language="none")])
def test_bm25_is_lucenes_formula(config):
    index = build_bm25(iter(TEXTS), config)
    stop = {"the", "a", "and", "of", "are"} if config.language == "english" else set()
    stems = {"parks": "park", "running": "run"} if config.language == "english" else {}
    docs = [[stems.get(w, w) for w in t.split() if w not in stop] for t in TEXTS]
    for query in ("Red dog", "the cat, a cat!", "running park", "zebra", "", "blue"):
        words = "".join(c if c.isalnum() else " " for c in query.lower()).split()
        words = [stems.get(w, w) for w in words if w not in stop]
        expected = lucene(words, docs, config.k1, config.b)
        best = sorted((i for i, s in enumerate(expected) if s > 0), key=lambda i: -expected[i])
        ((positions,), (scores,)) = index.search([query], 4)
        count = min(len(best), 4)
        np.testing.assert_allclose(scores[:count], [expected[i] for i in best[:count]], rtol=1e-5)
        np.testing.assert_allclose([expected[i] for i in positions[:count]], scores[:count], 1e-5)
        assert (positions[count:] == -1).all() and np.isneginf(scores[count:]).all()


def test_equal_scores_stand_in_corpus_order_and_a_saved_index_gives_the_same(tmp_path):
    texts = ["red cat"] * 3 + ["blue dog"] * 50
    index = build_bm25(texts, Bm25Config(), "corpus")
    positions, scores = index.search(["dog", "cat"], 5)
    assert positions[0].tolist() == [3, 4, 5, 6, 7] and positions[1].tolist() == [0, 1, 2, -1, -1]
    index.save(tmp_path / "i")
    again = load_bm25(tmp_path / "i", "corpus")
    assert again.description == index.description and again.count == 53
    np.testing.assert_array_equal(again.search(["dog", "cat"], 5)[1], scores)
    with pytest.raises(InputError, match="counts the words of another corpus"):
        load_bm25(tmp_path / "i", "other")
    with pytest.raises(InputError, match="no BM25 index"):
        load_bm25(tmp_path)
    with pytest.raises(InputError, match="no passage has a word"):
        build_bm25(["", "the"], Bm25Config())
    with pytest.raises(InputError, match=r"b = 2 must lie in \[0, 1\]"):
        Bm25Config(b=2)


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_bm25_on_scifact_is_the_published_score():
    """Published nDCG@10: 0.665 (title and text apart) to 0.679 (together, as here)."""
    passages = [Passage(v["_id"], v["text"], v["title"])
                for _, v in read_jsonl(DATA / "scifact-corpus.jsonl.gz")]  # fmt: skip
    claims = read_jsonl(DATA / "scifact-claims-validation.jsonl.gz")
    judged = read_qrels(DATA / "scifact-qrels.beir-test.txt.gz")
    asked = {str(v["id"]): v["claim"] for _, v in claims if str(v["id"]) in judged}
    index = build_bm25((f"{p.title} {p.text}" for p in passages), Bm25Config())
    found, _ = index.search(list(asked.values()), 100)
    questions = [
        Question(i, t, passages=tuple(passages[p] for p in row if p >= 0))
        for (i, t), row in zip(asked.items(), found, strict=True)
    ]
    scores = retrieval_scores(questions, 100, judged)
    assert scores["ndcg@10"].n == 300
    assert scores["ndcg@10"].mean == pytest.approx(0.679, abs=0.01)


# ---------------------------------------------------------------------------- fusion


def ranking(*positions: int, scores=None):
    scores = np.arange(len(positions), 0, -1.0) if scores is None else np.array(scores)
    return np.array(positions), scores


def test_reciprocal_rank_fusion_by_hand():
    a, b = ranking(7, 3, 5), ranking(3, 9, -1)
    positions, scores = fuse([a, b], (1, 1), Fusion(k=60), 10)
    by_hand = {3: 1 / 62 + 1 / 61, 7: 1 / 61, 9: 1 / 62, 5: 1 / 63}
    assert dict(zip(positions.tolist(), scores, strict=True)) == pytest.approx(by_hand)
    assert positions.tolist() == [3, 7, 9, 5]
    assert fuse([a, b], (1, 1), Fusion(), 2)[0].tolist() == [3, 7]


def test_weighted_fusion_by_hand():
    a = ranking(1, 2, 3, scores=[9.0, 6.0, 5.0])
    b = ranking(3, 2, scores=[30.0, 10.0])
    positions, scores = fuse([a, b], (0.25, 0.75), Fusion("weighted"), 10)
    assert dict(zip(positions.tolist(), scores, strict=True)) == pytest.approx(
        {3: 0.75, 1: 0.25, 2: 0.25 * 0.25}
    )
    empty, one = ranking(), ranking(4, scores=[2.0])
    assert fuse([empty, one], (0.5, 0.5), Fusion("weighted"), 3)[0].tolist() == [4]
    assert fuse([empty, empty], (1, 1), Fusion(), 3)[0].tolist() == []
    for fields in ({"k": -1}, {"weight": 2.0}, {"depth": 0}):
        with pytest.raises(InputError, match="fusion: "):
            Fusion(**fields)


# ---------------------------------------------------------------------------- TREC


def test_a_run_is_read_as_it_was_written(tmp_path):
    passages = [Passage(f"d{i}", "t", score=s) for i, s in enumerate([0.5, 0.25, -1.0])]
    questions = [Question("q1", "?", passages=tuple(passages)), Question("q2", "?"),
                 Question("q3", "?", passages=(passages[2], passages[0]))]  # fmt: skip
    path = tmp_path / "a.trec"
    path.write_text("".join(trec_lines(questions)))
    assert path.read_text().splitlines()[0] == "q1 Q0 d0 1 0.5 dynarag_jax"
    rows = {"d0": 0, "d1": 1, "d2": 2}
    found = read_run(path, rows.get)
    # Of q3 the scores rise: the order of the passages is what a run says.
    assert {q: p.tolist() for q, (p, _) in found.items()} == {"q1": [0, 1, 2], "q3": [2, 0]}
    # pytrec_eval reads the same.
    with path.open() as stream:
        theirs = pytrec_eval.parse_run(stream)
    assert {q: len(p) for q, (p, _) in found.items()} == {q: len(d) for q, d in theirs.items()}
    spaced = [Question("a b", "?", passages=(Passage("d 1", "t", score=1.0),))]
    path.write_text("".join(trec_lines(spaced)))
    assert read_run(path, {"d 1": 0}.get)["a b"][0].tolist() == [0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("q1 Q0 d0 1 0.5\n", ":1: has 5 fields; a line of a run is"),
        ("q1 Q0 d9 1 0.5 x\n", ":1: passage 'd9' is not in the corpus"),
        ("q1 Q0 d0 1 0.5 x\nq1 Q0 d0 2 0.4 x\n", ":2: question 'q1' has passage 'd0' twice"),
        ("q1 Q0 d0 1 nan x\n", ":1: field 'score' must be a finite number, found 'nan'"),
        ("q1 Q0 d0 1 0,5 x\n", ":1: field 'score' must be a finite number, found '0,5'"),
    ],
)
def test_a_bad_run_is_named(tmp_path, text, says):
    path = tmp_path / "r"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_run(path, {"d0": 0}.get)


def test_judgments_in_both_forms(tmp_path):
    (tmp_path / "trec").write_text("1 0 d1 1\n1 0 d2 0\n\n2 0 d1 2\n")
    (tmp_path / "beir").write_text("query-id\tcorpus-id\tscore\n1\td1\t1\n1\td2\t0\n2\td1\t2\n")
    expected = {"1": {"d1": 1.0, "d2": 0.0}, "2": {"d1": 2.0}}
    assert read_qrels(tmp_path / "trec") == read_qrels(tmp_path / "beir") == expected
    (tmp_path / "bad").write_text("1 0 d1 1\n1 0 d1 2\n")
    with pytest.raises(InputError, match=r":2: judges passage 'd1' of '1' a second time"):
        read_qrels(tmp_path / "bad")
    (tmp_path / "bad").write_text("1 d1\n")
    with pytest.raises(InputError, match=r":1: has 2 fields"):
        read_qrels(tmp_path / "bad")


def test_retrieval_scores_are_trec_evals():
    rng = random.Random(0)
    docs = [Passage(f"d{i}", f"word{i} x{i % 7}", score=0.0) for i in range(60)]
    questions, judged, run = [], {}, {}
    for q in range(200):
        order = rng.sample(docs, rng.randint(0, 60))
        name = f"q{q}"
        questions.append(Question(name, "?", (f"x{q % 9}",), passages=tuple(order)))
        judged[name] = {d.id: rng.choice([0, 0, 1, 2]) for d in rng.sample(docs, 8)}
        run[name] = {d.id: 100.0 - i for i, d in enumerate(order)}
    known = {q for q, grades in judged.items() if any(grades.values())}
    scores = retrieval_scores(questions, 60, judged)
    measures = {"recall_5", "recall_50", "ndcg_cut_10", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    for ours, name in (("recall@5", "recall_5"), ("recall@50", "recall_50"),
                       ("ndcg@10", "ndcg_cut_10"), ("mrr", "recip_rank")):  # fmt: skip
        expected = np.mean([theirs.get(q, {name: 0.0})[name] for q in known])
        assert scores[ours].mean == pytest.approx(expected) and scores[ours].n == len(known)
    assert "recall@100" not in scores
    by_hand = [any(p.text.split()[1] == q.answers[0] for p in q.passages[:10]) for q in questions]
    assert scores["answer_recall@10"].mean == pytest.approx(np.mean(by_hand))
    assert "ndcg@10" in scores_table(scores)
    gold = [Question("a", "?", passages=tuple(docs[:3]), gold=("d2",)), Question("b", "?", gold=())]
    assert retrieval_scores(gold, 5)["mrr"].mean == pytest.approx(1 / 3)
