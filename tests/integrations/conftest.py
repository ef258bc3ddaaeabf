"""A real reranker, and the same behind a server's address."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import pytest

from dynarag_jax import Reranker
from dynarag_jax.errors import InputError
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from tests.serving.conftest import Running
from tests.small_model import save_small_model

IDS = 6
PROMPTS = PromptConfig(
    style="compact", ids=IDS, max_list=4, rerank_tokens=64, answer_prompt_tokens=64, answer_tokens=3
)
WORDS = "ada arlo lives in bern rome oslo kyiv works where who founded what".split()
QUERY = "who founded arlo"
TEXTS = [
    "ada founded arlo", "arlo lives in bern", "kyiv works", "rome oslo", "where ada works", "what",
    "oslo founded rome", "who lives in kyiv",
]  # fmt: skip
"""More than a prompt shows, so that windows are read."""


class Told:
    """A reranker that remembers what it was asked."""

    def __init__(self, reranker: Reranker):
        self.reranker = reranker
        self.asked: list[tuple] = []

    def rank_all(self, queries, documents, top_k=None):
        self.asked.append((list(queries), [list(own) for own in documents], top_k))
        return self.reranker.rank_all(queries, documents, top_k)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A small language model that writes lists, as a run leaves it."""
    stage = tmp_path_factory.mktemp("run") / "feedback"
    path = save_small_model(stage, [*WORDS, *COMPACT_WORDS], IDS)
    (stage / "run.json").write_text(json.dumps({"config": {"prompts": asdict(PROMPTS)}}))
    return path


@pytest.fixture(scope="session")
def reranker(model) -> Reranker:
    """It, loaded."""
    return Reranker(model, devices=jax.devices()[:1])


@pytest.fixture
def told(reranker) -> Told:
    """It, remembering."""
    return Told(reranker)


@pytest.fixture(scope="session")
def expected(reranker):
    """``expected(texts, query, top_k)``: places and scores as the reranker itself gives them."""

    def ask(texts, query=QUERY, top_k=None):
        rows = reranker.rank(query, texts, top_k)
        return [(row["corpus_id"], row["score"]) for row in rows]

    found = ask(TEXTS)
    assert 0 < len(found) < len(TEXTS), "the model should choose some of them"
    return ask


@pytest.fixture(scope="session")
def address(model):
    """The address of ``dynarag serve`` over it."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [serve])")
    from dynarag_jax.launch.console import Console
    from dynarag_jax.serving.http.building import build_served
    from dynarag_jax.serving.limits import Limits
    from dynarag_jax.serving.loading import ServedModel

    limits = Limits(drain_seconds=0, request_seconds=600)
    console = Console("serve", primary=False)
    devices = jax.devices()[:1]
    running = Running(
        build_served(str(model), ServedModel(batch=4), limits, console, devices=devices)
    )
    yield running.url
    running.stop()


class RerankServer(ThreadingHTTPServer):
    """Speaks ``/v1/rerank`` over a reranker, and gives answers before that no good server gives.

    Attributes:
      replies: (status, headers, content) to give before it begins to answer.
      bodies: what it was asked, with the headers.
    """

    daemon_threads = True

    def __init__(self, reranker):
        self.reranker, self.lock = reranker, threading.Lock()
        self.replies: list[tuple[int, dict[str, str], bytes]] = []
        self.bodies: list[tuple[dict, dict]] = []
        super().__init__(("127.0.0.1", 0), RerankHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class RerankHandler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: RerankServer

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((body, dict(self.headers)))
        status, headers, content = 200, {}, b""
        if self.path != "/v1/rerank":
            status = 404
        elif self.server.replies:
            status, headers, content = self.server.replies.pop(0)
        else:
            try:
                with self.server.lock:
                    rows = self.server.reranker.rank(
                        body["query"], body["documents"], body.get("top_n") or None
                    )
            except InputError as error:
                status, content = 400, json.dumps({"message": str(error)}).encode()
            else:
                results = [
                    {"index": row["corpus_id"], "relevance_score": row["score"]} for row in rows
                ]
                content = json.dumps({"results": results}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(reranker):
    """A server that may fail and lie."""
    with RerankServer(reranker) as one:
        threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
        yield one
        one.shutdown()
