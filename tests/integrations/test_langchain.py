"""The LangChain compressor with LangChain itself, in this process and by address."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain_core", reason="langchain-core is not installed")

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from dynarag_jax.errors import InputError
from dynarag_jax.integrations.langchain import DynamicCompressor

from .conftest import QUERY, TEXTS

DOCUMENTS = [Document(page_content=t, metadata={"n": i}, id=str(i)) for i, t in enumerate(TEXTS)]


class Fixed(BaseRetriever):
    """Finds the same documents for every query."""

    def _get_relevant_documents(self, query, *, run_manager):
        return DOCUMENTS


def seen(documents):
    return [(d.metadata["n"], d.metadata["relevance_score"]) for d in documents]


@pytest.mark.parametrize("where", ["here", "by address"])
def test_documents_are_those_of_the_reranker(reranker, request, expected, where):
    source = reranker if where == "here" else request.getfixturevalue("address")
    compressor = DynamicCompressor(reranker=source)
    kept = compressor.compress_documents(DOCUMENTS, QUERY)
    assert seen(kept) == expected(TEXTS)
    assert [d.page_content for d in kept] == [TEXTS[i] for i, _ in expected(TEXTS)]
    assert [d.id for d in kept] == [str(i) for i, _ in expected(TEXTS)]
    assert all("relevance_score" not in d.metadata for d in DOCUMENTS)
    one = DynamicCompressor(reranker=source, top_n=1)
    assert seen(one.compress_documents(DOCUMENTS, QUERY)) == expected(TEXTS, top_k=1)
    assert compressor.compress_documents([], QUERY) == []

    async def many():
        return await asyncio.gather(
            *(compressor.acompress_documents(DOCUMENTS[:n], QUERY) for n in range(1, 6))
        )

    assert [seen(d) for d in asyncio.run(many())] == [expected(TEXTS[:n]) for n in range(1, 6)]


def test_titles_are_read_from_metadata(told):
    compressor = DynamicCompressor(reranker=told, title="heading")
    documents = [
        Document(page_content="ada", metadata={"heading": "arlo"}),
        Document(page_content="rome", metadata={"heading": 7, "title": "other"}),
    ]
    compressor.compress_documents(documents, QUERY)
    assert told.asked == [([QUERY], [[{"text": "ada", "title": "arlo"}, {"text": "rome"}]], None)]


def test_it_works_in_a_compressing_retriever(reranker, expected):
    retrievers = pytest.importorskip(
        "langchain_classic.retrievers", reason="langchain-classic is not installed"
    )
    retriever = retrievers.ContextualCompressionRetriever(
        base_compressor=DynamicCompressor(reranker=reranker), base_retriever=Fixed()
    )
    assert seen(retriever.invoke(QUERY)) == expected(TEXTS)
    assert seen(asyncio.run(retriever.ainvoke(QUERY))) == expected(TEXTS)


def test_mistakes_are_said(reranker, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        DynamicCompressor(reranker=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="not blank"):
        DynamicCompressor(reranker=reranker).compress_documents(DOCUMENTS, "")
