"""Every endpoint of a running server: what it gives, in each API's shape, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
import socket
import threading
import time

import numpy as np
import pytest

import dynarag_jax

QUERY = "where is port 7?"


def texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"port {rng.integers(10)} lies on the river {rng.integers(10)}" for _ in range(n)]


@pytest.fixture(scope="module")
def reranker(language_model, one_device):
    return dynarag_jax.Reranker(language_model, devices=one_device, batch=4)


def body(n=6, **more):
    return {"query": QUERY, "documents": texts(n), "model": "any"} | more


RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")


@pytest.mark.parametrize("path", RERANK)
def test_the_reply_is_the_policys_list(server, reranker, path):
    for n in (1, 6, 12, 30):
        status, found = server.post(path, body(n))
        assert status == 200
        expected = reranker.rank(QUERY, texts(n))
        assert [(r["index"], r["relevance_score"]) for r in found["results"]] == [
            (r["corpus_id"], r["score"]) for r in expected
        ]
        assert found["model"] == "tiny" and found["id"]
        assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 0
        assert found["meta"]["api_version"]["version"] == ("2" if "v2" in path else "1")
        documents = [r.get("document") for r in found["results"]]
        whole = [{"text": texts(n)[r["index"]]} for r in found["results"]]
        assert documents == (whole if path == "/rerank" else [None] * len(documents))


def test_a_whole_number_is_an_integer_however_it_is_written(server):
    """JSON has numbers and no types; some clients write every number with a point."""
    plain = server.post("/v1/rerank", body(top_n=1))
    assert plain[0] == 200
    assert server.post("/v1/rerank", body(top_n=1.0))[1]["results"] == plain[1]["results"]
    assert server.post("/v1/rerank", body(top_n=1.5))[0] == 422
    for wrong in (b"1e999", b"true", b'"1"'):
        sent = b'{"query": "a", "documents": ["b"], "top_n": ' + wrong + b"}"
        assert server.post("/v1/rerank", sent)[0] in (400, 422)


def test_top_n_bounds_and_never_adds(server, reranker):
    own = [r["corpus_id"] for r in reranker.rank(QUERY, texts(6))]
    for top_n in (1, 2, 6, 100):
        _, found = server.post("/v1/rerank", body(top_n=top_n))
        assert [r["index"] for r in found["results"]] == own[:top_n]
    for nothing in (0, None):  # vLLM's 0, LangChain's null
        _, found = server.post("/v1/rerank", body(top_n=nothing, max_tokens_per_doc=None))
        assert [r["index"] for r in found["results"]] == own


def test_all_documents_with_the_chosen_above_a_half(server, reranker):
    own = [r["corpus_id"] for r in reranker.rank(QUERY, texts(9))]
    _, found = server.post("/rerank", body(9, mode="all", top_n=9))
    scores = {r["index"]: r["relevance_score"] for r in found["results"]}
    assert set(scores) == set(range(9))
    assert [r["index"] for r in found["results"]][: len(own)] == own
    falling = [r["relevance_score"] for r in found["results"]]
    assert all(a > b for a, b in itertools.pairwise(falling))
    # Open WebUI: sort by index, zip scores with its documents, sort by score, drop below 0.5.
    by_place = sorted(found["results"], key=lambda r: r["index"])
    zipped = [(d, r["relevance_score"]) for d, r in zip(texts(9), by_place, strict=True)]
    kept = sorted((p for p in zipped if p[1] >= 0.5), key=lambda p: -p[1])
    assert [d for d, _ in kept] == [texts(9)[i] for i in own]


def test_a_scorers_own_scores(scoring_server, cross_encoder, one_device):
    from dynarag_jax.serving.rules import CutOff

    local = dynarag_jax.Reranker(cross_encoder, rule=CutOff(k=3), devices=one_device)
    _, found = scoring_server.post("/v1/rerank", body(9))
    expected = local.rank(QUERY, texts(9))
    assert [r["index"] for r in found["results"]] == [r["corpus_id"] for r in expected]
    assert [r["relevance_score"] for r in found["results"]] == pytest.approx(
        [r["score"] for r in expected], abs=1e-5
    )
    _, found = scoring_server.post("/v1/rerank", body(9, mode="all"))
    assert len(found["results"]) == 9
    assert [r["index"] for r in found["results"]][:3] == [r["corpus_id"] for r in expected]
    status, found = scoring_server.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": QUERY}]}
    )
    assert status == 404 and "writes no answers" in found["error"]["message"]


def test_documents_as_objects(server, reranker):
    plain = [{"text": t} for t in texts(6)]
    _, found = server.post("/v1/rerank", body(documents=plain, return_documents=True))
    own = reranker.rank(QUERY, texts(6))
    assert [r["index"] for r in found["results"]] == [r["corpus_id"] for r in own]
    assert found["results"][0]["document"] == plain[found["results"][0]["index"]]
    titled = [{"title": f"port {i}", "text": t, "page": 3} for i, t in enumerate(texts(6))]
    _, found = server.post("/v1/rerank", body(documents=titled))
    local = [{"title": d["title"], "text": d["text"]} for d in titled]
    assert [r["index"] for r in found["results"]] == [
        r["corpus_id"] for r in reranker.rank(QUERY, local)
    ]
    fields = [{"name": t, "other": "x"} for t in texts(6)]
    _, found = server.post("/v1/rerank", body(documents=fields, rank_fields=["name"]))
    assert [r["index"] for r in found["results"]] == [r["corpus_id"] for r in own]
    status, found = server.post("/v1/rerank", body(documents=fields))
    assert status == 422 and "documents.0.text' is missing" in found["message"]


def test_voyages_shape(server, reranker):
    request = body(top_k=None, truncation=True)
    status, found = server.post("/v1/rerank", request)
    own = reranker.rank(QUERY, texts(6))
    assert status == 200 and found["object"] == "list"
    assert [(r["index"], r["relevance_score"]) for r in found["data"]] == [
        (r["corpus_id"], r["score"]) for r in own
    ]
    assert found["usage"]["total_tokens"] > 0
    _, found = server.post("/v1/rerank", request | {"return_documents": True, "top_k": 1})
    assert [r["document"] for r in found["data"]] == [texts(6)[own[0]["corpus_id"]]]


def test_teis_shape(server, reranker):
    asked = {"query": QUERY, "texts": texts(6), "return_text": True}
    status, found = server.post("/tei/rerank", asked)
    own = [r["corpus_id"] for r in reranker.rank(QUERY, texts(6))]
    assert status == 200 and len(found) == 6
    assert [r["index"] for r in found][: len(own)] == own
    assert [r["text"] for r in found] == [texts(6)[r["index"]] for r in found]
    _, raw = server.post("/tei/rerank", asked | {"raw_scores": True, "return_text": False})
    assert [1 / (1 + math.exp(-r["score"])) for r in raw] == pytest.approx(
        [r["score"] for r in found]
    )
    assert "text" not in raw[0]
    status, found = server.post("/tei/rerank", {"query": QUERY, "texts": []})
    assert status == 400 and found == {
        "error": "field 'texts' is empty", "error_type": "Empty",
    }  # fmt: skip
    status, found = server.post("/tei/rerank", {"query": QUERY})
    assert status == 422 and found["error_type"] == "Validation"


def test_no_documents_and_any_text(server):
    status, found = server.post("/v2/rerank", body(0))
    assert status == 200 and found["results"] == []
    odd = ["", "\u0000", "naïve 日本語 🙂", "a\nb\tc", "\u202e", "x" * 20_000]
    status, found = server.post("/v2/rerank", body(documents=odd, query="日本語 🙂?", mode="all"))
    assert status == 200 and {r["index"] for r in found["results"]} == set(range(6))
    assert found["meta"]["warnings"] == ["1 documents were longer than the limit and were cut"]
    status, found = server.post("/v2/rerank", body(documents=odd, truncation=False))
    assert status == 413 and "longer than" in found["message"]


def test_what_has_no_effect_is_said(server):
    _, found = server.post("/v1/rerank", body(max_chunks_per_doc=3, instruction="pick"))
    assert found["meta"]["warnings"] == [
        "'instruction' has no effect here", "'max_chunks_per_doc' has no effect here",
    ]  # fmt: skip


def test_a_list_is_explained(server, reranker):
    status, found = server.post("/score", {"query": QUERY, "documents": texts(5), "list": [2, 0]})
    expected = reranker.explain(QUERY, texts(5), [2, 0])
    assert status == 200 and found["list"] == [2, 0]
    assert found["log_probability"] == pytest.approx(expected.logp, rel=1e-5)
    assert [s["index"] for s in found["steps"]] == [2, 0, None]
    for step, own in zip(found["steps"], expected.steps, strict=True):
        total = sum(math.exp(a["log_probability"]) for a in step["alternatives"])
        assert total == pytest.approx(1, abs=1e-3)
        falling = [a["log_probability"] for a in step["alternatives"]]
        assert falling == sorted(falling, reverse=True)
        assert step["log_probability"] == pytest.approx(own.logps[own.chosen], abs=1e-4)
    _, own = server.post("/score", {"query": QUERY, "documents": texts(5), "alternatives": 2})
    assert own["list"] == [r["corpus_id"] for r in reranker.rank(QUERY, texts(5))]
    assert {len(step["alternatives"]) for step in own["steps"]} <= {1, 2}
    for wrong, message in (([9], "holds 9, outside 0..4"), ([1, 1], "holds a place twice")):
        status, found = server.post(
            "/score", {"query": QUERY, "documents": texts(5), "list": wrong}
        )
        assert status == 422 and message in found["message"]


def chat(**more):
    return {"model": "tiny", "messages": [{"role": "user", "content": QUERY}]} | more


def events(raw: bytes) -> list:
    lines = [line for line in raw.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) if line != "data: [DONE]" else None for line in lines]


def test_chat_answers_from_the_list(server, reranker):
    documents = [{"id": f"d{i}", "text": t} for i, t in enumerate(texts(6))]
    status, found = server.post("/v1/chat/completions", chat(documents=documents))
    own = reranker.answer(QUERY, texts(6))
    choice = found["choices"][0]
    assert status == 200 and found["object"] == "chat.completion"
    assert choice["message"]["content"] == own.answer
    assert choice["finish_reason"] in ("stop", "length")
    assert [p["id"] for p in found["passages"]] == [f"d{i}" for i in own.corpus_ids]
    usage = found["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    _, bounded = server.post("/v1/chat/completions", chat(documents=documents, top_n=1))
    assert len(bounded["passages"]) == min(1, len(own.corpus_ids))
    _, alone = server.post("/v1/chat/completions", chat())
    assert alone["passages"] == []
    assert alone["choices"][0]["message"]["content"] == reranker.answer(QUERY).answer
    _, short = server.post("/v1/chat/completions", chat(documents=documents, max_tokens=2))
    assert short["usage"]["completion_tokens"] <= 2


def test_a_stream_puts_together_the_same_answer(server):
    documents = texts(6)
    _, whole = server.post("/v1/chat/completions", chat(documents=documents))
    asked = chat(documents=documents, stream=True, stream_options={"include_usage": True})
    status, headers, raw = server.call("POST", "/v1/chat/completions", asked)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    chunks = events(raw)
    assert chunks[-1] is None
    assert all(c["object"] == "chat.completion.chunk" for c in chunks[:-1])
    deltas = [c["choices"][0] for c in chunks[:-1] if c["choices"]]
    text = "".join(d["delta"].get("content") or "" for d in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    finishes = [d["finish_reason"] for d in deltas]
    assert finishes[-1] == whole["choices"][0]["finish_reason"] and not any(finishes[:-1])
    usage = chunks[-2]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert all(c["usage"] is None for c in chunks[:-2])
    (cited,) = [c["passages"] for c in chunks[:-1] if "passages" in c]
    assert cited == whole["passages"]
    plain = events(server.call("POST", "/v1/chat/completions", chat(stream=True))[2])
    assert all("usage" not in c for c in plain[:-1])


@pytest.fixture(scope="module")
def patient(start, language_model):
    """A server that tells every two tokens."""
    from dynarag_jax.sampling.requests import EngineConfig
    from dynarag_jax.serving.loading import ServedModel

    return start(language_model, ServedModel(batch=2, engine=EngineConfig(turn=2)), name="patient")


def test_a_stream_tells_what_is_written_while_it_is(patient):
    """Whatever the bytes of characters that are not all there yet."""
    for seed in range(6):
        asked = chat(documents=texts(5), temperature=1.3, seed=seed)
        _, whole = patient.post("/v1/chat/completions", asked)
        chunks = events(patient.call("POST", "/v1/chat/completions", asked | {"stream": True})[2])
        pieces = [c["choices"][0]["delta"].get("content") for c in chunks[:-1]]
        text = whole["choices"][0]["message"]["content"]
        assert "".join(piece or "" for piece in pieces) == text
        if seed == 0:
            assert sum(bool(piece) for piece in pieces) > 1


def test_a_stream_that_fails_says_so_and_claims_no_end(patient, monkeypatch):
    from dynarag_jax.serving.answering import AnswerWorker

    real, steps = AnswerWorker.step, []

    def step(self):
        steps.append(1)
        if len(steps) > 1:
            raise ZeroDivisionError
        return real(self)

    monkeypatch.setattr(AnswerWorker, "step", step)
    asked = chat(documents=texts(5), stream=True)
    status, _, raw = patient.call("POST", "/v1/chat/completions", asked)
    chunks = events(raw)
    assert status == 200 and chunks[-1] == {
        "error": {
            "message": "the server failed on this request", "type": "internal_error",
            "param": None, "code": None,
        }
    }  # fmt: skip
    assert not any(c["choices"][0]["finish_reason"] for c in chunks[:-1])
    monkeypatch.setattr(AnswerWorker, "step", real)
    assert patient.post("/v1/chat/completions", chat())[0] == 200


def test_drawn_answers_follow_their_seed(server):
    drawn = [
        server.post("/v1/chat/completions", chat(temperature=1.5, seed=seed))[1]["choices"][0]
        for seed in (1, 1, 2, 3)
    ]
    said = [c["message"]["content"] for c in drawn]
    assert said[0] == said[1] and len(set(said)) > 1


def test_a_conversation_asks_its_last_question(server):
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "ada"},
        {"role": "user", "content": [{"type": "text", "text": QUERY}]},
    ]
    _, alone = server.post("/v1/chat/completions", chat(documents=texts(4)))
    _, found = server.post("/v1/chat/completions", chat(messages=turns, documents=texts(4)))
    assert found["choices"] == alone["choices"]
    assert found["notes"] == ["3 messages before the last question are not read"]


WRONG = [
    ("/v1/rerank", body(topn=3), 422, "unknown field 'topn' (did you mean 'top_n'?)"),
    ("/v1/rerank", {"documents": []}, 422, "field 'query' is missing"),
    ("/v1/rerank", {"query": "a"}, 422, "field 'documents' is missing"),
    ("/v1/rerank", body(documents="abc"), 422, "field 'documents'"),
    ("/v1/rerank", body(documents=["a", 3]), 422, "field 'documents.1"),
    ("/v1/rerank", body(top_n=-1), 422, "field 'top_n'"),
    ("/v1/rerank", body(top_n="3"), 422, "field 'top_n'"),
    ("/v1/rerank", body(mode="some"), 422, "field 'mode'"),
    ("/v1/rerank", body(query=" "), 400, "field 'query' is blank"),
    ("/v1/rerank", body(query=""), 422, "field 'query'"),
    ("/v1/rerank", body(query="port " * 5000), 400, "'query' is longer than"),
    ("/v1/rerank", body(documents=["a"] * 10_000), 400, "holds 10000 documents, and this server"),
    ("/v1/rerank", body(truncate_prompt_tokens=5), 422, "field 'truncate_prompt_tokens'"),
    ("/v1/rerank", b"", 400, "the body is empty"),
    ("/v1/rerank", b"{", 400, "no JSON that can be read"),
    ("/v1/rerank", b"[1]", 422, "must be a JSON object"),
    ("/v1/rerank", b'{"query": "\xff\xfe"}', 400, "no JSON that can be read"),
    ("/v1/rerank", b'{"query": "\\ud800", "documents": []}', 400, "no JSON that can be read"),
    ("/v1/rerank", b'{"query": ' + b"[" * 100_000, 400, "no JSON that can be read"),
    ("/v1/rerank", b'{"query": "a", "documents": [], "top_n": ' + b"9" * 5000 + b"}", 400, "JSON"),
    ("/v1/chat/completions", {}, 422, "field 'messages' is missing"),
    ("/v1/chat/completions", chat(messages=[]), 422, "field 'messages'"),
    ("/v1/chat/completions", chat(n=2), 422, "field 'n'"),
    ("/v1/chat/completions", chat(tools=[{}]), 422, "field 'tools'"),
    ("/v1/chat/completions", chat(logprobs=True), 422, "field 'logprobs'"),
    ("/v1/chat/completions", chat(temperature=3), 422, "field 'temperature'"),
    ("/v1/chat/completions", chat(frequency_penalty=0.5), 422, "field 'frequency_penalty'"),
    ("/v1/chat/completions", chat(messages=[{"role": "user", "content": ""}]), 400, "is blank"),
    (
        "/v1/chat/completions",
        chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        422,
        "field 'messages.0.content",
    ),
    (
        "/v1/chat/completions",
        chat(messages=[{"role": "assistant", "content": "a"}]),
        400,
        "must be the user's question",
    ),
]


@pytest.mark.parametrize(("path", "sent", "status", "message"), WRONG)
def test_what_is_wrong_is_said_in_the_apis_own_shape(server, path, sent, status, message):
    found_status, found = server.post(path, sent)
    if "rerank" in path:
        said = found["message"]
        assert set(found) == {"id", "message", "detail", "error"}
        assert found["detail"] == said == found["error"]["message"]
        assert found["error"]["code"] == status
    else:
        assert set(found) == {"error"}
        said = found["error"]["message"]
        assert set(found["error"]) == {"message", "type", "param", "code"}
    assert (found_status, message in said) == (status, True), found
    assert "\n" not in said and len(said) < 700 and "Traceback" not in said


def test_what_openai_clients_send_and_changes_nothing_is_taken(server):
    harmless = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "tools": [],
        "tool_choice": "auto", "parallel_tool_calls": True, "stop": None, "user": "u",
        "metadata": {"a": 1}, "store": False, "seed": 3, "top_p": 1, "temperature": 0,
    }  # fmt: skip
    status, found = server.post("/v1/chat/completions", chat(**harmless))
    assert status == 200, found


def test_pages(server):
    status, _, found = server.call("GET", "/v1/models")
    assert status == 200 and found["object"] == "list"
    assert set(found["data"][0]) == {"id", "object", "created", "owned_by", "max_model_len"}
    assert found["data"][0]["id"] == "tiny" and found["data"][0]["max_model_len"] == 400
    assert server.call("GET", "/health")[0] == 200
    assert server.call("GET", "/ready")[2] == {"status": "ready"}
    assert server.call("GET", "/nothing")[0] == 404
    status, headers, _ = server.call("GET", "/v1/rerank")
    assert status == 405 and headers["allow"] == "POST"
    status, _, found = server.call("GET", "/openapi.json")
    assert status == 200 and set(found["paths"]) >= {*RERANK, "/score", "/v1/chat/completions"}


def test_metrics_count_what_was_served(server):
    from prometheus_client.parser import text_string_to_metric_families

    def read():
        _, headers, raw = server.call("GET", "/metrics")
        assert headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(raw.decode())
        samples = [sample for family in families for sample in family.samples]
        # The path first, then what else there is: Prometheus sorts labels by name.
        order = {"path": 0}
        return {
            (s.name, *(s.labels[n] for n in sorted(s.labels, key=lambda n: (order.get(n, 1), n)))):
            s.value
            for s in samples
        }  # fmt: skip

    before = read()
    server.post("/v1/rerank", body())
    server.post("/v1/rerank", body(topn=1))
    server.post("/v1/chat/completions", chat(documents=texts(3)))

    def grew(*name):
        return after.get(name, 0) - before.get(name, 0)

    # A request is counted when its reply has gone, which its client may hear of first.
    after, deadline = read(), time.monotonic() + 60
    while time.monotonic() < deadline:
        if grew("dynarag_request_duration_seconds_count", "/v1/chat/completions") == 1:
            break
        time.sleep(0.05)
        after = read()

    assert grew("dynarag_request_count_total", "/v1/rerank") == 2
    assert grew("dynarag_request_success_total", "/v1/rerank", "stop") == 1
    assert grew("dynarag_request_failure_total", "/v1/rerank", "422") == 1
    assert grew("dynarag_request_duration_seconds_count", "/v1/rerank") == 2
    assert grew("dynarag_time_to_first_token_seconds_count") == 1
    assert grew("dynarag_e2e_request_latency_seconds_count") == 1
    assert grew("dynarag_request_queue_time_seconds_count") == 2
    assert grew("dynarag_generation_tokens_total") > 0
    assert after["dynarag_queue_size",] == 0 and after["dynarag_body_bytes",] == 0


def test_nothing_is_served_without_a_key(start, language_model):
    locked = start(language_model, keys=("sesame", "öffne"), name="locked")
    paths = [("POST", p) for p in (*RERANK, "/tei/rerank", "/score", "/v1/chat/completions")]
    paths += [("GET", p) for p in ("/v1/models", "/metrics", "/openapi.json", "/nothing")]
    wrong = [{}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"},
             {"Authorization": "Basic sesame"}, {"x-api-key": ""}]  # fmt: skip
    for method, path in paths:
        for headers in wrong:
            status, _, found = locked.call(method, path, body() if method == "POST" else None,
                                           headers)  # fmt: skip
            assert status == 401, (path, headers, found)
            assert set(found) <= {"id", "message", "detail", "error", "error_type"}
    assert locked.call("GET", "/health")[0] == locked.call("GET", "/ready")[0] == 200
    for headers in ({"Authorization": "Bearer sesame"}, {"X-API-Key": "sesame"},
                    {"api-key": "sesame"}):  # fmt: skip
        assert locked.call("POST", "/rerank", body(), headers)[0] == 200


def test_a_strict_server_refuses_other_names(start, cross_encoder):
    strict = start(cross_encoder, name="mine", names=("alias",), strict=True)
    for name, status in (("mine", 200), ("alias", 200), (None, 200), ("gpt", 404)):
        assert strict.post("/rerank", body(model=name))[0] == status


def test_clients_share_batches_and_get_what_each_gets_alone(server, reranker):
    expected = {
        n: [r["corpus_id"] for r in reranker.rank(QUERY, texts(n, n))] for n in range(1, 17)
    }
    found: dict[int, list[int]] = {}

    def ask(n):
        _, reply = server.post("/v1/rerank", body(documents=texts(n, n)))
        found[n] = [r["index"] for r in reply["results"]]

    threads = [threading.Thread(target=ask, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_when_a_client_has_gone_its_work_stops(server):
    """The connection is cut while the request waits; the queue is empty soon after."""
    many = json.dumps(body(900, documents=texts(900))).encode()
    head = f"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: {len(many)}\r\n\r\n".encode()
    done = server.served.work.counts.jobs
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    for one in sockets:
        one.sendall(head + many)
    while server.served.work.waiting < 6:
        time.sleep(0.005)
    for one in sockets:
        one.close()
    deadline = time.monotonic() + 30
    while server.served.work.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.served.work.waiting == 0
    assert server.served.work.counts.jobs - done < 6
    assert server.post("/rerank", body())[0] == 200
