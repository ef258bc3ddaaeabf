"""The Haystack component with Haystack itself, in this process and by address."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("haystack", reason="haystack-ai is not installed")

from haystack import Document, Pipeline

from dynarag_jax.errors import InputError
from dynarag_jax.integrations.haystack import DynamicRanker

from .conftest import QUERY, TEXTS

DOCUMENTS = [Document(content=t, id=str(i), score=0.1) for i, t in enumerate(TEXTS)]


def seen(output):
    return [(int(d.id), d.score) for d in output["documents"]]


@pytest.mark.parametrize("where", ["here", "by address"])
def test_documents_are_those_of_the_reranker(reranker, request, expected, where):
    source = reranker if where == "here" else request.getfixturevalue("address")
    ranker = DynamicRanker(source)
    assert seen(ranker.run(QUERY, DOCUMENTS)) == expected(TEXTS)
    assert {d.score for d in DOCUMENTS} == {0.1}
    assert seen(DynamicRanker(source, top_k=1).run(QUERY, DOCUMENTS)) == expected(TEXTS, top_k=1)
    assert seen(DynamicRanker(source, top_k=1).run(QUERY, DOCUMENTS, top_k=2)) == (
        expected(TEXTS, top_k=2)
    )
    assert ranker.run(QUERY, []) == {"documents": []}

    async def many():
        return await asyncio.gather(*(ranker.run_async(QUERY, DOCUMENTS[:n]) for n in range(1, 6)))

    assert [seen(d) for d in asyncio.run(many())] == [expected(TEXTS[:n]) for n in range(1, 6)]


def test_it_works_in_a_pipeline_and_survives_saving(address, expected):
    pipeline = Pipeline()
    pipeline.add_component("ranker", DynamicRanker(address, top_k=3))
    asked = {"ranker": {"query": QUERY, "documents": DOCUMENTS}}
    assert seen(pipeline.run(asked)["ranker"]) == expected(TEXTS, top_k=3)
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["dynarag_jax.integrations.haystack"])
    assert again.get_component("ranker").to_dict() == pipeline.get_component("ranker").to_dict()
    assert seen(again.run(asked)["ranker"]) == expected(TEXTS, top_k=3)


def test_titles_are_read_from_metadata(told):
    documents = [Document(content="ada", meta={"title": "arlo"}), Document(content=None)]
    DynamicRanker(told).run(QUERY, documents)
    assert told.asked == [([QUERY], [[{"text": "ada", "title": "arlo"}, {"text": ""}]], None)]


def test_mistakes_are_said(reranker, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        DynamicRanker(str(tmp_path / "nowhere")).warm_up()
    with pytest.raises(InputError, match="was given an object"):
        DynamicRanker(reranker).to_dict()
    with pytest.raises(InputError, match="not blank"):
        DynamicRanker(reranker).run(" ", DOCUMENTS)
