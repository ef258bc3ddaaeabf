"""What clients send, replayed to the letter, and what each reads of the reply.

Recorded from the packages named, so that this is tested where they are not installed;
``test_clients`` runs the packages themselves.
"""

from __future__ import annotations

import pytest

import dynarag_jax

QUERY = "where is port 7?"
TEXTS = [f"port {i} lies on the river {i * 7 % 10} é" for i in range(7)]

COHERE = {"model": "m", "query": QUERY, "documents": TEXTS}
SENT = {
    "cohere 5.21, v1": ("/v1/rerank", COHERE),
    "cohere 5.21, v1 with documents": (
        "/v1/rerank", COHERE | {"top_n": 1, "return_documents": True}
    ),
    "cohere 5.21, v2": ("/v2/rerank", COHERE),
    "langchain-cohere 0.6": ("/v2/rerank", COHERE | {"top_n": None, "max_tokens_per_doc": None}),
    "langchain-cohere 0.6, top_n": (
        "/v2/rerank", COHERE | {"top_n": 3, "max_tokens_per_doc": None}
    ),
    "llama-index cohere-rerank 0.10": ("/v2/rerank", COHERE | {"top_n": 2}),
    "cohere-haystack 11.0": ("/v2/rerank", COHERE | {"top_n": 2, "max_tokens_per_doc": 4096}),
    "rerankers 0.10, cohere and jina": (
        "/v1/rerank", COHERE | {"top_n": len(TEXTS), "return_documents": True}
    ),
    "open webui, external": ("/v1/rerank", COHERE | {"top_n": len(TEXTS)}),
    "dify, openai_api_compatible": (
        "/rerank", COHERE | {"top_n": len(TEXTS), "return_documents": True}
    ),
    "vllm": ("/rerank", {"query": QUERY, "documents": TEXTS, "top_n": 0}),
    "jina": ("/v1/rerank", COHERE | {"top_n": 3, "return_documents": False}),
}  # fmt: skip
VOYAGE = COHERE | {"top_k": None, "truncation": True}


@pytest.fixture(scope="module")
def own(language_model, one_device):
    reranker = dynarag_jax.Reranker(language_model, devices=one_device, batch=4)
    return [row["corpus_id"] for row in reranker.rank(QUERY, TEXTS)]


@pytest.mark.parametrize("client", SENT)
def test_a_client_reads_its_list(server, own, client):
    path, body = SENT[client]
    status, found = server.post(path, body, Authorization="Bearer k")
    assert status == 200
    assert own and len(own) < len(TEXTS)
    assert [r["index"] for r in found["results"]] == own[: body.get("top_n") or None]
    for row in found["results"]:
        assert 0 <= row["relevance_score"] <= 1
        wanted = body.get("return_documents", path == "/rerank")
        # LiteLLM breaks on document: null; it is there with its text, or not at all.
        assert row.get("document", "none") == ({"text": TEXTS[row["index"]]} if wanted else "none")
    assert found["meta"]["billed_units"]["search_units"] == 1
    assert isinstance(found["usage"]["total_tokens"], int)


def test_voyageai_reads_data(server, own):
    for top_k in (None, 2):
        status, found = server.post("/v1/rerank", VOYAGE | {"top_k": top_k})
        assert status == 200
        assert [TEXTS[d["index"]] for d in found["data"]] == [TEXTS[i] for i in own[:top_k]]
        assert found["usage"]["total_tokens"] > 0 and found["object"] == "list"
    # LiteLLM's Voyage sends no top_k, and reads data all the same.
    _, found = server.post("/v1/rerank", COHERE | {"return_documents": True})
    assert [d["index"] for d in found["data"]] == own
    # The rerankers package sends return_documents, and reads texts.
    body = COHERE | {"top_k": len(TEXTS), "return_documents": True}
    _, found = server.post("/v1/rerank", body)
    assert [d["document"] for d in found["data"]] == [TEXTS[i] for i in own]


def test_tei_clients_read_every_text(server, own):
    """LlamaIndex's asserts as many as it sent; rerankers sends a model and top_n, too."""
    for more in ({"raw_scores": False, "truncate": True},
                 {"model": "m", "top_n": len(TEXTS)}):  # fmt: skip
        body = {"query": QUERY, "texts": TEXTS, "return_text": True} | more
        status, found = server.post("/tei/rerank", body)
        assert status == 200 and len(found) == len(TEXTS)
        assert [r["index"] for r in found][: len(own)] == own
        assert all(r["text"] == TEXTS[r["index"]] for r in found)


def test_open_webui_and_dify_get_exactly_the_list_from_a_server_of_all(start, language_model, own):
    everything = start(language_model, mode="all", name="all")
    body = COHERE | {"top_n": len(TEXTS)}
    _, found = everything.post("/v1/rerank", body)
    # Open WebUI sorts by index and zips with its documents; wrong wherever one is left out.
    scores = [r["relevance_score"] for r in sorted(found["results"], key=lambda r: r["index"])]
    kept = sorted(
        ((score, text) for score, text in zip(scores, TEXTS, strict=True) if score >= 0.5),
        reverse=True,
    )
    assert [text for _, text in kept] == [TEXTS[i] for i in own]
    # Dify drops what scores below its threshold, in the order of the results.
    found = everything.post("/rerank", body | {"return_documents": True})[1]["results"]
    assert [r["document"]["text"] for r in found if r["relevance_score"] >= 0.5] == [
        TEXTS[i] for i in own
    ]
    # A request may still ask for the list alone.
    _, found = everything.post("/v1/rerank", body | {"mode": "list"})
    assert [r["index"] for r in found["results"]] == own
