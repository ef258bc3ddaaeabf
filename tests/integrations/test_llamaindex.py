"""The LlamaIndex postprocessor with LlamaIndex itself, in this process and by address."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from dynarag_jax.errors import InputError
from dynarag_jax.integrations.llamaindex import DynamicPostprocessor

from .conftest import QUERY, TEXTS

NODES = [NodeWithScore(node=TextNode(text=t, id_=str(i)), score=0.1) for i, t in enumerate(TEXTS)]


def seen(nodes):
    return [(int(n.node.node_id), n.score) for n in nodes]


@pytest.mark.parametrize("where", ["here", "by address"])
def test_nodes_are_those_of_the_reranker(reranker, request, expected, where):
    source = reranker if where == "here" else request.getfixturevalue("address")
    postprocessor = DynamicPostprocessor(reranker=source)
    assert seen(postprocessor.postprocess_nodes(NODES, query_str=QUERY)) == expected(TEXTS)
    assert {n.score for n in NODES} == {0.1}
    one = DynamicPostprocessor(reranker=source, top_n=1)
    assert seen(one.postprocess_nodes(NODES, query_str=QUERY)) == expected(TEXTS, top_k=1)
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []

    async def many():
        return await asyncio.gather(
            *(postprocessor.apostprocess_nodes(NODES[:n], query_str=QUERY) for n in range(1, 6))
        )

    assert [seen(d) for d in asyncio.run(many())] == [expected(TEXTS[:n]) for n in range(1, 6)]


def test_titles_are_read_and_other_metadata_is_not(told):
    nodes = [
        NodeWithScore(node=TextNode(text="ada", metadata={"title": "arlo", "file": "x.pdf"})),
        NodeWithScore(node=TextNode(text="rome")),
    ]
    DynamicPostprocessor(reranker=told, top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    assert told.asked == [([QUERY], [[{"text": "ada", "title": "arlo"}, {"text": "rome"}]], 3)]


def test_it_works_in_a_query_engine(reranker, expected):
    class Fixed(BaseRetriever):
        def _retrieve(self, query_bundle):
            return NODES

    engine = RetrieverQueryEngine(
        Fixed(),
        response_synthesizer=NoText(llm=MockLLM()),
        node_postprocessors=[DynamicPostprocessor(reranker=reranker)],
    )
    assert seen(engine.query(QUERY).source_nodes) == expected(TEXTS)


def test_mistakes_are_said(reranker, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        DynamicPostprocessor(reranker=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="there is no query"):
        DynamicPostprocessor(reranker=reranker).postprocess_nodes(NODES)
