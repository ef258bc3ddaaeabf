"""The PyTerrier transformer in PyTerrier's pipelines; its Terrier, and Java, are not needed."""

from __future__ import annotations

import pytest

pytest.importorskip("pyterrier", reason="pyterrier is not installed")

import pandas as pd
import pyterrier as pt

from dynarag_jax.errors import InputError
from dynarag_jax.integrations.pyterrier import DynamicTransformer

from .conftest import QUERY, TEXTS


def frame(qid, query, texts):
    rows = [
        {"qid": qid, "query": query, "docno": f"d{i}", "text": t, "score": -i, "rank": i, "x": i}
        for i, t in enumerate(texts)
    ]
    return pd.DataFrame(rows)


def seen(rows, qid):
    own = rows[rows["qid"] == qid]
    assert own["rank"].tolist() == list(range(len(own)))
    assert own["docno"].tolist() == [f"d{x}" for x in own["x"]]
    return list(zip(own["x"], own["score"], strict=True))


BOTH = pd.concat([frame("b", QUERY, TEXTS), frame("a", "what works", TEXTS[:3])])


@pytest.mark.parametrize("where", ["here", "by address"])
def test_rows_are_those_of_the_reranker(reranker, request, expected, where):
    source = reranker if where == "here" else request.getfixturevalue("address")
    before = BOTH.copy()
    found = DynamicTransformer(source)(BOTH)
    assert seen(found, "b") == expected(TEXTS)
    assert seen(found, "a") == expected(TEXTS[:3], "what works")
    assert found["qid"].tolist() == sorted(found["qid"], reverse=True)  # as they came
    pd.testing.assert_frame_equal(BOTH, before)
    one = DynamicTransformer(source, top_k=1)(BOTH)
    assert seen(one, "b") == expected(TEXTS, top_k=1)
    # Read in the order of their ranks, however the rows stand.
    mixed = BOTH.sample(frac=1, random_state=0)
    again = DynamicTransformer(source)(mixed)
    assert seen(again, "b") == expected(TEXTS)
    nothing = DynamicTransformer(source, top_k=0)(BOTH)
    assert len(nothing) == 0
    assert set(nothing.columns) == set(BOTH.columns)
    assert len(DynamicTransformer(source)(BOTH.iloc[:0])) == 0


def test_it_works_in_a_pipeline(reranker, expected):
    """Behind a retriever's cut and before another transformer, and measured in an experiment."""
    retriever = pt.Transformer.from_df(BOTH)
    pipeline = retriever % 5 >> DynamicTransformer(reranker)
    topics = BOTH[["qid", "query"]].drop_duplicates()
    found = pipeline(topics)
    assert seen(found, "b") == expected(TEXTS[:5])
    cut = (pipeline % 1)(topics)
    assert seen(cut, "b") == expected(TEXTS[:5])[:1]
    qrels = pd.DataFrame([{"qid": "b", "docno": f"d{expected(TEXTS[:5])[0][0]}", "label": 1}])
    measured = pt.Experiment([pipeline], topics[topics["qid"] == "b"], qrels, ["recip_rank"])
    assert measured["recip_rank"].tolist() == [1.0]


def test_titles_and_missing_texts(told):
    rows = pd.DataFrame(
        [
            {"qid": 1, "query": QUERY, "docno": "a", "body": "ada", "title": "arlo"},
            {"qid": 1, "query": QUERY, "docno": "b", "body": None, "title": None},
        ]
    )
    DynamicTransformer(told, text="body")(rows)
    assert told.asked == [([QUERY], [[{"text": "ada", "title": "arlo"}, {"text": ""}]], None)]


def test_mistakes_are_said(reranker, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        DynamicTransformer(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no column 'text'; it has qid, query, docno"):
        DynamicTransformer(reranker)(BOTH[["qid", "query", "docno"]])
    with pytest.raises(InputError, match="text must be a string, found 7"):
        DynamicTransformer(reranker, text="x")(BOTH.iloc[7:8])
    two = BOTH.assign(qid="b")
    with pytest.raises(InputError, match="qid 'b' have several queries"):
        DynamicTransformer(reranker)(two)
