"""The clients that people have, against a running server; those that are not installed skip.

What each of them sends stands in ``test_client_requests`` as well, for environments without them.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

import dynarag_jax

QUERY = "where is port 7? 🙂"

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")


def texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"port {rng.integers(10)} lies on the river {rng.integers(10)} é" for _ in range(n)]


def need(package: str):
    return pytest.importorskip(package, reason=f"the client package {package} is not installed")


@pytest.fixture(scope="module")
def own(language_model, one_device):
    """``own(n)``: the policy's list over the first n texts, as places."""
    reranker = dynarag_jax.Reranker(language_model, devices=one_device, batch=4)
    return lambda n: [row["corpus_id"] for row in reranker.rank(QUERY, texts(n))]


@pytest.fixture(scope="module")
def locked(start, language_model):
    return start(language_model, keys=("sesame",), name="tiny")


@pytest.mark.parametrize("n", [2, 6, 20])
def test_cohere(locked, own, n):
    cohere = need("cohere")
    for client in (
        cohere.Client(api_key="sesame", base_url=locked.url),
        cohere.ClientV2(api_key="sesame", base_url=locked.url),
    ):
        found = client.rerank(model="tiny", query=QUERY, documents=texts(n))
        assert [r.index for r in found.results] == own(n)
        scores = [r.relevance_score for r in found.results]
        assert scores == sorted(scores, reverse=True)
        assert found.meta is not None and found.meta.billed_units is not None
        found = client.rerank(model="tiny", query=QUERY, documents=texts(n), top_n=1)
        assert [r.index for r in found.results] == own(n)[:1]
        assert client.rerank(model="tiny", query=QUERY, documents=[]).results == []
    first = cohere.Client(api_key="sesame", base_url=locked.url)
    found = first.rerank(model="tiny", query=QUERY, documents=texts(n), return_documents=True)
    assert [r.document.text for r in found.results if r.document] == [texts(n)[i] for i in own(n)]


def test_cohere_errors(locked):
    cohere = need("cohere")
    client = cohere.ClientV2(api_key="sesame", base_url=locked.url)
    with pytest.raises(cohere.errors.BadRequestError) as caught:
        client.rerank(model="tiny", query=QUERY, documents=["a"] * 10_000)
    assert "holds 10000 documents" in str(caught.value.body)
    with pytest.raises(cohere.errors.UnauthorizedError):
        cohere.ClientV2(api_key="wrong", base_url=locked.url).rerank(
            model="tiny", query=QUERY, documents=["a"]
        )


def test_voyage(locked, own):
    voyageai = need("voyageai")
    client = voyageai.Client(api_key="sesame", base_url=f"{locked.url}/v1")
    for top_k in (None, 1):
        found = client.rerank(QUERY, texts(6), model="tiny", top_k=top_k)
        assert [r.index for r in found.results] == own(6)[:top_k]
        assert [r.document for r in found.results] == [texts(6)[i] for i in own(6)[:top_k]]
        assert found.total_tokens > 0
    with pytest.raises(voyageai.error.InvalidRequestError, match="holds 2000 documents"):
        client.rerank(QUERY, ["a"] * 2000, model="tiny")


@pytest.mark.parametrize(
    ("provider", "base"),
    [
        ("cohere", ""),
        ("cohere", "/v2/rerank"),
        ("hosted_vllm", ""),
        ("infinity", ""),
        ("jina_ai", ""),
        ("voyage", ""),
    ],
)
def test_litellm(locked, own, provider, base):
    litellm = need("litellm")
    found = litellm.rerank(
        model=f"{provider}/tiny", query=QUERY, documents=texts(6), api_key="sesame",
        api_base=locked.url + base,
        # It takes Infinity's documents for texts, where vLLM's and ours are objects.
        return_documents=provider != "infinity",
    )  # fmt: skip
    assert [r["index"] for r in found.results] == own(6)


def test_litellm_chat(locked):
    litellm = need("litellm")
    found = litellm.completion(
        model="openai/tiny", messages=[{"role": "user", "content": QUERY}], api_key="sesame",
        api_base=f"{locked.url}/v1", extra_body={"documents": texts(4)},
    )  # fmt: skip
    assert found.choices[0].finish_reason in ("stop", "length")
    assert isinstance(found.choices[0].message.content, str)


@pytest.mark.parametrize("top_n", [None, 1, 3])
def test_langchain(locked, own, top_n):
    langchain = need("langchain_cohere")
    cohere = need("cohere")
    from langchain_core.documents import Document

    client = cohere.ClientV2(api_key="sesame", base_url=locked.url)
    compressor = langchain.CohereRerank(client=client, model="tiny", top_n=top_n)
    documents = [Document(page_content=t, metadata={"place": i}) for i, t in enumerate(texts(6))]
    found = compressor.compress_documents(documents, QUERY)
    assert [d.metadata["place"] for d in found] == own(6)[:top_n]
    assert [d.page_content for d in found] == [texts(6)[i] for i in own(6)[:top_n]]


def test_llama_index(locked, own):
    module = need("llama_index.postprocessor.cohere_rerank")
    from llama_index.core.schema import NodeWithScore, TextNode

    ranker = module.CohereRerank(api_key="sesame", model="tiny", base_url=locked.url, top_n=6)
    nodes = [NodeWithScore(node=TextNode(text=t, id_=str(i))) for i, t in enumerate(texts(6))]
    found = ranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node.node_id for node in found] == [str(i) for i in own(6)]


def test_haystack(locked, own):
    module = need("haystack_integrations.components.rankers.cohere")
    from haystack import Document
    from haystack.utils import Secret

    ranker = module.CohereRanker(
        model="tiny", api_key=Secret.from_token("sesame"), api_base_url=locked.url, top_k=6
    )
    documents = [Document(content=t, meta={"place": i}) for i, t in enumerate(texts(6))]
    found = ranker.run(query=QUERY, documents=documents)["documents"]
    assert [d.meta["place"] for d in found] == own(6)


@pytest.mark.parametrize("provider", ["cohere", "jina", "voyage", "text-embeddings-inference"])
def test_rerankers(locked, own, provider):
    rerankers = need("rerankers")
    path = "/tei/rerank" if provider.startswith("text") else "/v1/rerank"
    ranker = rerankers.Reranker(
        "tiny",
        model_type="APIRanker",
        api_provider=provider,
        api_key="sesame",
        url=locked.url + path,
    )
    found = ranker.rank(query=QUERY, docs=texts(6), doc_ids=list(range(6)))
    order = [r.document.doc_id for r in found.results]
    assert order[: len(own(6))] == own(6)
    assert len(order) == (6 if provider.startswith("text") else len(own(6)))


def test_openai(locked):
    openai = need("openai")
    client = openai.OpenAI(api_key="sesame", base_url=f"{locked.url}/v1")
    messages = [{"role": "user", "content": QUERY}]
    extra = {"documents": [{"id": f"d{i}", "text": t} for i, t in enumerate(texts(6))]}
    whole = client.chat.completions.create(model="tiny", messages=messages, extra_body=extra)
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens > 0
    assert all(p["id"].startswith("d") for p in whole.passages)
    stream = client.chat.completions.create(
        model="tiny", messages=messages, extra_body=extra, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    (cited,) = [c.passages for c in chunks if getattr(c, "passages", None)]
    assert cited == whole.passages
    assert [m.id for m in client.models.list()] == ["tiny"]


def test_openai_errors(locked):
    openai = need("openai")
    messages = [{"role": "user", "content": QUERY}]
    wrong = openai.OpenAI(api_key="wrong", base_url=f"{locked.url}/v1")
    with pytest.raises(openai.AuthenticationError) as caught:
        wrong.chat.completions.create(model="tiny", messages=messages)
    assert caught.value.code == "invalid_api_key"
    client = openai.OpenAI(api_key="sesame", base_url=f"{locked.url}/v1", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model="tiny", messages=messages, n=3)
    assert caught.value.param == "n"


def test_openai_raises_where_a_stream_fails(locked, monkeypatch):
    openai = need("openai")
    from dynarag_jax.serving.answering import AnswerPart
    from dynarag_jax.serving.work import ServingFailure

    async def failing(self, asked):
        yield AnswerPart("por")
        raise ServingFailure("broken")

    monkeypatch.setattr(type(locked.served.work), "answer", failing)
    client = openai.OpenAI(api_key="sesame", base_url=f"{locked.url}/v1")
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": QUERY}], stream=True
    )
    with pytest.raises(openai.APIError, match="the server failed on this request"):
        list(stream)


def test_openai_leaves_in_the_middle_of_a_stream(locked):
    """The work of a stream that its client closes stops."""
    openai = need("openai")
    client = openai.OpenAI(api_key="sesame", base_url=f"{locked.url}/v1")
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": QUERY}], stream=True
    )
    next(iter(stream))
    stream.close()
    again = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": QUERY}]
    )
    assert again.choices[0].finish_reason
    deadline = time.monotonic() + 20
    while locked.served.work.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert locked.served.work.waiting == 0
