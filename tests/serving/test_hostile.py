"""Input of strangers: no request makes the server fail, hang, or fill the memory."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynarag_jax.serving.limits import Limits

PATHS = (
    "/rerank", "/v1/rerank", "/v2/rerank", "/tei/rerank", "/score", "/v1/chat/completions",
)  # fmt: skip
SERVED = (200, 400, 401, 404, 405, 408, 413, 422, 429)

plain = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=20)
anything = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
documents = st.lists(
    st.text(max_size=40) | st.fixed_dictionaries({"text": st.text(max_size=20)}), max_size=6
)
NEARLY = {
    "query": st.text(min_size=1, max_size=30) | anything,
    "documents": documents | anything,
    "texts": st.lists(st.text(max_size=30), max_size=5) | anything,
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system", "assistant", "tool"]),
             "content": st.text(max_size=20) | anything}
        ),
        max_size=3,
    ) | anything,
    "list": st.lists(st.integers(-1, 8), max_size=4) | anything,
    "model": st.text(max_size=8) | anything,
    "top_n": st.integers(-1, 9) | anything,
    "top_k": st.integers(-1, 9) | anything,
    "mode": st.sampled_from(["list", "all", "none"]) | anything,
    "return_documents": anything, "return_text": anything, "raw_scores": anything,
    "stream": anything, "temperature": anything, "top_p": anything, "max_tokens": anything,
    "seed": anything, "n": anything, "rank_fields": anything, "alternatives": anything,
    "truncation": anything, "max_tokens_per_doc": st.integers(0, 9) | anything,
}  # fmt: skip
NEEDED = {
    "/tei/rerank": ("query", "texts"),
    "/score": ("query", "documents"),
    "/v1/chat/completions": ("messages",),
}


@st.composite
def requests(draw):
    path = draw(st.sampled_from(PATHS))
    needed = NEEDED.get(path, ("query", "documents"))
    more = draw(st.lists(st.sampled_from(sorted(NEARLY)), max_size=3, unique=True))
    return path, {name: draw(NEARLY[name]) for name in {*needed, *more}}


def sent_as(value) -> bytes:
    """JSON as Python writes it: NaN, halves of surrogate pairs and all."""
    return json.dumps(value).encode()


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(requests())
def test_any_request_has_a_reply_of_its_api(server, sent):
    path, value = sent
    status, _, found = server.call("POST", path, sent_as(value))
    assert status in SERVED, (path, value, found)
    if status != 200:
        assert isinstance(found, dict)


@pytest.mark.slow
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
@given(requests())
def test_ten_thousand_requests_have_replies_of_their_api(server, sent):
    path, value = sent
    status, _, found = server.call("POST", path, sent_as(value))
    assert status in SERVED, (path, value, found)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PATHS), st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_have_a_reply(server, path, raw):
    assert server.call("POST", path, raw)[0] in SERVED


def raw_reply(server, data: bytes, wait=10.0) -> bytes:
    """Everything that comes back for bytes of a connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as one:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            one.sendall(data)
        parts = []
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while part := one.recv(65536):
                parts.append(part)
        return b"".join(parts)


@pytest.fixture(scope="module")
def tight(start, language_model):
    """A server with small limits."""
    limits = Limits(
        body_mib=1, bodies_mib=3, header_seconds=0.7, documents=50, queue=4, connections=60,
        drain_seconds=0, request_seconds=600,
    )  # fmt: skip
    return start(language_model, limits=limits, name="tight")


ASK = {"query": "where is port 7?", "documents": ["port 7 lies on the river 1"] * 3}


def test_slow_clients_are_dropped_and_others_served_meanwhile(tight):
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", tight.port), timeout=20))
            for _ in range(40)
        ]
        for number, one in enumerate(slow):
            if number % 3 == 0:
                one.sendall(b"POST /rerank HTTP/1.1\r\nHost: a\r\nX-A: ")
            elif number % 3 == 1:
                one.sendall(b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n{")
        assert tight.post("/rerank", ASK)[0] == 200
        replies = []
        for one in slow:
            with contextlib.suppress(ConnectionResetError):
                replies.append(one.recv(65536))
        # Those that had sent their headers are told; the others' connections are closed.
        assert sum(b" 408 " in reply for reply in replies) >= 10
        assert sum(reply == b"" for reply in replies) >= 20
    assert tight.post("/rerank", ASK)[0] == 200


def test_a_header_that_drips_is_late_all_the_same(tight):
    with socket.create_connection(("127.0.0.1", tight.port), timeout=20) as one:
        one.sendall(b"GET /health HTTP/1.1\r\n")
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in range(200):
                one.sendall(f"x-{number}: a\r\n".encode())
                time.sleep(0.05)
        assert number < 199 and time.monotonic() - began < 9


def test_huge_bodies_are_refused_before_they_are_read(tight):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"
    assert b" 413 " in raw_reply(tight, head + b"x" * 100_000)
    chunked = b"POST /rerank HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in raw_reply(tight, chunked + b"10000\r\n" + b"x" * 65536 + b"\r\n" * 1
                                 + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 40)  # fmt: skip
    assert tight.served.bodies.held == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert tight.post("/rerank", ASK)[0] == 200


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
def test_header_floods_and_bad_http_are_refused(tight):
    flood = b"GET /health HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"a" * 100)
                                                  for i in range(20_000))  # fmt: skip
    assert b"200 OK" not in raw_reply(tight, flood)
    long = b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"
    assert b"200 OK" not in raw_reply(tight, long)
    for wrong in (b"\x00" * 500, b"GET / HTTP/9.9\r\n\r\n", b"POST /rerank HTTP/1.1\r\nHost: a\r\n"
                  b"Content-Length: -5\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" * 30):  # fmt: skip
        assert b"200 OK" not in raw_reply(tight, wrong)
    assert tight.post("/rerank", ASK)[0] == 200


def test_what_is_wrong_a_million_times_is_said_once(tight):
    """Errors are not collected: their memory would be a thousand times the body's."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bodies = [
        b'{"query": "a", "documents": [' + b"0," * 400_000 + b"0]}",
        b"{" + b",".join(b'"%d":0' % i for i in range(80_000)) + b"}",
        b'{"messages": [' + b"0," * 400_000 + b"0]}",
        b'{"query": "a", "documents": [{'
        + b",".join(b'"%d":0' % i for i in range(80_000))
        + b"}]}",
        b'{"query": "a", "documents": ["a"], "rank_fields": [' + b"0," * 400_000 + b"0]}",
    ]
    for body in bodies:
        for path in PATHS:
            status, _, found = tight.call("POST", path, body)
            assert status in (400, 422), found
            assert len(json.dumps(found)) < 3000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_too_many_at_once_are_told_to_come_again(tight):
    """The queue has four places; whoever finds none hears 429 and when to try again."""
    body = json.dumps(ASK | {"documents": [f"port {i} lies on the river" for i in range(50)]})
    found = []

    def ask():
        status, headers, reply = tight.call("POST", "/rerank", body.encode())
        found.append((status, headers.get("retry-after"), reply))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = {status for status, _, _ in found}
    assert statuses <= {200, 429, 503} and 200 in statuses and 429 in statuses
    for status, after, reply in found:
        if status == 429:
            assert 1 <= int(after) <= 60 and "busy" in reply["message"]
    # It recovers by itself.
    assert tight.post("/rerank", ASK)[0] == 200
    assert tight.served.work.waiting == 0


def test_a_request_that_takes_too_long_is_given_up(start, language_model):
    late = start(language_model, limits=Limits(request_seconds=0.001, drain_seconds=0))
    status, headers, found = late.call("POST", "/rerank", ASK)
    assert status == 503 and headers["retry-after"] == "1"
    assert "took more than 0.001 seconds" in found["message"]
    deadline = time.monotonic() + 20
    while late.served.work.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert late.served.work.waiting == 0


def test_a_bug_of_ours_shows_no_traceback(start, cross_encoder, caplog, monkeypatch):
    broken = start(cross_encoder)
    policy = broken.served.work.policy
    rank = type(policy).rank_lists
    monkeypatch.setattr(type(policy), "rank_lists", lambda *_: 1 / 0)
    status, found = broken.post("/rerank", ASK)
    assert status == 500 and found["message"] == "the server failed on this request; see its log"
    assert "ZeroDivisionError" not in json.dumps(found)
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(type(policy), "rank_lists", rank)
    assert broken.post("/rerank", ASK)[0] == 200


@pytest.fixture
def process(language_model):
    """``dynarag serve`` as a process of its own, ready."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [serve])")
    program = "import sys; from dynarag_jax.launch.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(language_model), "--port", "0",
               "--limits.drain_seconds", "0.3", "--how.batch", "2",
               "--limits.request_seconds", "600", "--limits.stop_seconds", "300"]  # fmt: skip
    one = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert one.stderr is not None
    lines: list[str] = []

    def read():
        for line in one.stderr:
            lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    deadline = time.monotonic() + 600
    while not any('"event": "ready"' in line for line in lines):
        assert one.poll() is None and time.monotonic() < deadline, "".join(lines)
        time.sleep(0.05)
    address = next(line for line in lines if "on http://" in line)
    one.port = int(address.split("http://127.0.0.1:")[1].split(";")[0])  # type: ignore[attr-defined]
    one.lines, one.reader = lines, reader  # type: ignore[attr-defined]
    yield one
    one.kill()
    one.wait()


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
def test_sigterm_under_load_loses_no_request_that_was_taken(process):
    """Sixteen clients ask without pause; SIGTERM comes; whoever was heard has a whole reply."""
    import http.client

    lost, served, refused = [], [], []
    told = threading.Event()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=600)
        body = json.dumps(ASK)
        while True:
            fresh = connection.sock is None
            try:
                if fresh:
                    connection.connect()
            except OSError:
                refused.append(told.is_set())
                return
            try:
                connection.request("POST", "/rerank", body)
                reply = connection.getresponse()
                raw = reply.read()
                (served if reply.status == 200 else lost).append(json.loads(raw))
            except (OSError, http.client.HTTPException) as error:
                # A new connection that nobody has taken from the system yet ends with the socket;
                # what the server did read stands in its log, and is counted below.
                (refused if fresh else lost).append(told.is_set() if fresh else repr(error))
                return

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    while len(served) < 30:
        time.sleep(0.01)
    told.set()
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(timeout=400)
    assert process.wait(timeout=400) == 0, "".join(process.lines)
    assert not lost and len(served) >= 30
    assert all(refused) and len(refused) == 16
    process.reader.join(timeout=10)
    logged = [json.loads(line) for line in process.lines if line.startswith("{")]
    requests = [line for line in logged if line["event"] == "request"]
    assert len(requests) == len(served) and {line["status"] for line in requests} == {200}
    # No text of users stands in a log that nobody asked to hold any.
    assert not any("port 7" in line for line in process.lines)
    assert "stopped; every request that was taken has its reply" in "".join(process.lines)
