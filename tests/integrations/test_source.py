"""What integrations are given: models, addresses, rerankers; a server that fails, or lies."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.integrations.source import (
    KEY_VARIABLE,
    RemoteReranker,
    SharedReranker,
    open_reranker,
)

from .conftest import PROMPTS, QUERY, TEXTS


def places(rows):
    return [(row["corpus_id"], row["score"]) for row in rows]


def test_a_server_gives_what_the_model_gives(address, expected):
    remote = open_reranker(address + "/")
    documents = [{"text": text} for text in TEXTS]
    for top_k in (None, 1, 2, 50):
        (found,) = remote.rank_all([QUERY], [documents], top_k)
        assert places(found) == expected(TEXTS, top_k=top_k)
    titled = [{"text": "ada", "title": "arlo"}, {"text": ""}, {"text": "Ünïcode 🜁"}]
    (found,) = remote.rank_all([QUERY], [titled])
    assert places(found) == expected(titled)
    with pytest.raises(InputError, match=r"HTTP 400 Bad Request: .*query"):
        remote.rank_all([" "], [documents])


def test_what_is_sent(server, expected):
    remote = open_reranker(server.url + "/")
    assert isinstance(remote, RemoteReranker)
    documents = [{"text": text} for text in TEXTS]
    found = remote.rank_all([QUERY, "what works"], [documents, documents[:3]])
    assert places(found[0]) == expected(TEXTS)
    assert places(found[1]) == expected(TEXTS[:3], "what works")
    assert places(remote.rank_all([QUERY], [documents], 1)[0]) == expected(TEXTS, top_k=1)
    # Neither of these needs a server; and 0 would mean no bound to it.
    count = len(server.bodies)
    assert remote.rank_all([QUERY, QUERY], [[], documents], 0) == [[], []]
    assert len(server.bodies) == count
    titled = [{"text": "ada founded arlo", "title": "arlo"}]
    remote.rank_all(["Ünïcode 🜁"], [titled])
    body, _ = server.bodies[-1]
    assert body == {"query": "Ünïcode 🜁", "documents": titled, "mode": "list"}


def test_a_model_directory_and_any_reranker(model, reranker, expected, tmp_path):
    opened = open_reranker(reranker)
    assert isinstance(opened, SharedReranker)
    assert open_reranker(opened) is opened
    assert places(opened.rank_all([QUERY], [[{"text": t} for t in TEXTS]])[0]) == expected(TEXTS)
    loaded = open_reranker(model)
    assert places(loaded.rank_all([QUERY], [[{"text": t} for t in TEXTS]])[0]) == expected(TEXTS)
    with pytest.raises(InputError, match="nowhere"):
        open_reranker(tmp_path / "nowhere")
    for wrong in ("", None, 7):
        with pytest.raises(InputError, match="give a model directory"):
            open_reranker(wrong)
    with pytest.raises(InputError, match="must begin with http"):
        RemoteReranker("localhost:8000")


def test_threads_ask_one_model_one_at_a_time(reranker, expected):
    shared = [open_reranker(reranker) for _ in range(3)]  # of several integrations
    wanted = {n: expected(TEXTS[:n]) for n in range(1, len(TEXTS) + 1)}
    found, barrier = {}, threading.Barrier(len(wanted))

    def ask(n):
        barrier.wait()
        found[n] = places(shared[n % 3].rank_all([QUERY], [[{"text": t} for t in TEXTS[:n]]])[0])

    threads = [threading.Thread(target=ask, args=(n,)) for n in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_a_failure_that_passes_is_tried_again(server, expected):
    server.replies = [
        (503, {"Retry-After": "0"}, b"starting"),
        (429, {"Retry-After": "0.01"}, b""),
        (500, {}, b"oops"),
    ]
    remote = RemoteReranker(server.url, backoff=0.001)
    found = remote.rank_all([QUERY], [[{"text": t} for t in TEXTS]])
    assert places(found[0]) == expected(TEXTS)
    assert len(server.bodies) == 4
    server.replies = [(503, {"Retry-After": "0"}, b'{"message": "still starting"}')] * 9
    with pytest.raises(InputError, match=r'HTTP 503 .*"still starting"'):
        RemoteReranker(server.url, retries=1).rank_all([QUERY], [[{"text": "a"}]])
    assert len(server.bodies) == 6


def test_a_refusal_is_said_at_once(server):
    remote = RemoteReranker(server.url)
    with pytest.raises(InputError, match=r"HTTP 400.*query 0 must be a text that is not blank"):
        remote.rank_all([" "], [[{"text": "a"}]])
    assert len(server.bodies) == 1
    server.replies = [(401, {}, b'{"message": "no key"}')]
    with pytest.raises(InputError, match=r"HTTP 401.*no key"):
        remote.rank_all([QUERY], [[{"text": "a"}]])
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be reached"):
        RemoteReranker(server.url, retries=1, backoff=0.001).rank_all([QUERY], [[{"text": "a"}]])


@pytest.mark.parametrize(
    "reply",
    [
        {"results": [{"index": 2, "relevance_score": 0.5}]},
        {"results": [{"index": -1, "relevance_score": 0.5}]},
        {"results": [{"index": 0, "relevance_score": 0.5}] * 2},
        {"results": [{"index": "0", "relevance_score": 0.5}]},
        {"results": [{"index": True, "relevance_score": 0.5}]},
        {"results": [{"index": 0}]},
        {"results": None},
        {"data": []},
        [],
        None,
    ],
    ids=json.dumps,
)
def test_a_reply_that_is_no_reranking_is_refused(server, reply):
    server.replies = [(200, {}, json.dumps(reply).encode())]
    with pytest.raises(InputError, match="no reranking of 2 documents"):
        RemoteReranker(server.url).rank_all([QUERY], [[{"text": "a"}, {"text": "b"}]])


def test_no_json_is_refused(server):
    server.replies = [(200, {}, b"<html>")]
    with pytest.raises(InputError, match="no JSON"):
        RemoteReranker(server.url).rank_all([QUERY], [[{"text": "a"}]])


def test_keys(server, monkeypatch):
    def sent():
        return server.bodies[-1][1].get("Authorization")

    RemoteReranker(server.url).rank_all([QUERY], [[{"text": "a"}]])
    assert sent() is None
    monkeypatch.setenv(KEY_VARIABLE, "from the environment")
    RemoteReranker(server.url).rank_all([QUERY], [[{"text": "a"}]])
    assert sent() == "Bearer from the environment"
    RemoteReranker(server.url, key="given").rank_all([QUERY], [[{"text": "a"}]])
    assert sent() == "Bearer given"


def test_the_server_alone_needs_no_jax():
    """Who asks a server loads no model, and no JAX."""
    program = (
        "import sys\n"
        "from dynarag_jax.integrations.source import open_reranker\n"
        "open_reranker('http://localhost:1')\n"
        "print([m for m in ('jax', 'transformers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_absent_framework_is_named_with_its_extra():
    names = {
        "langchain": "langchain_core", "llamaindex": "llama_index", "haystack": "haystack",
        "pyterrier": "pyterrier",
    }  # fmt: skip
    for module, package in names.items():
        program = (
            f"import sys\nsys.modules[{package!r}] = None\n"
            "from dynarag_jax.errors import MissingExtra\n"
            f"try: import dynarag_jax.integrations.{module}\n"
            "except MissingExtra as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"dynarag_jax[{module}]" in done.stdout, done.stderr


assert PROMPTS.ids < len(TEXTS)  # windows are read
