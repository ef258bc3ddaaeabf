"""The explorer's server over a real run: what it tells, what it refuses, hostile texts."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from dynarag_jax.evaluation.lists import shuffled_name
from dynarag_jax.explore import server as explore_server
from dynarag_jax.files import read_jsonl
from dynarag_jax.records import read_questions
from dynarag_jax.rollout_records import read_rollouts

from .conftest import HOSTILE, HOSTILE_TITLE


@pytest.fixture
def client(made, serve):
    """A client of the run's server."""
    return serve(made)[1]


def test_a_run_and_its_questions(made, client):
    status, run = client.json("/api/run")
    assert (status, run["reading"], run["failed"]) == (200, None, "")
    train, evaluation = run["sets"]
    assert (train["name"], train["questions"], train["a"], train["b"]) == (
        "train", 12, "rollout", ""
    )  # fmt: skip
    assert (evaluation["a"], evaluation["b"]) == ("before", "after")
    names = [side["name"] for side in evaluation["sides"]]
    assert names[:2] == ["before", shuffled_name("before")]
    assert {"no retrieval", "top-1", "oracle passages", "evaluate, examples"} <= set(names)
    rows = {(r["system"], r["id"]): r for _, r in read_jsonl(made / "evaluate/predictions.jsonl")}
    status, found = client.json("/api/questions", set="evaluation", a="before", b="after")
    assert (status, found["total"]) == (200, 10)
    for row in found["rows"]:
        one, other = rows["before", row["id"]], rows["after", row["id"]]
        assert (row["a"]["k"], row["b"]["k"]) == (one["k"], other["k"])
        assert (row["a"]["value"], row["b"]["value"]) == (one["score"], other["score"])
        assert row["changed"] == (one["list"] != other["list"])
        assert row["needed"] == one["needed"]
    assert found["overview"]["compared"]["list_changed"] == sum(r["changed"] for r in found["rows"])


def test_a_question_in_full(made, client):
    rollouts = {r.id: r for r in read_rollouts(made / "rollout/rollouts.jsonl")}
    questions = {q.id: q for q in read_questions(made / "train.jsonl")}
    for name, rollout in rollouts.items():
        status, one = client.json("/api/question", set="train", id=name)
        assert status == 200
        (sampled,) = one["rollouts"]
        told = {tuple(t["list"]): t for t in sampled["lists"]}
        assert told.keys() == {t.list for t in rollout.trajectories}
        for t in rollout.trajectories:
            mine = told[t.list]
            assert (mine["answer"], mine["terms"], mine["reward"]) == (t.answer, t.terms, t.reward)
            assert (mine["count"], mine["logp"], tuple(mine["logps"])) == (t.count, t.logp, t.logps)
        question = questions[name]
        assert [p["text"] for p in one["question"]["passages"]] == [
            p.text for p in question.passages
        ]
        assert one["question"]["needed"] == list(question.gold_list() or ())
        assert one["question"]["expert"] == {"list": [1], "source": "gold"}


def test_steps_are_computed_by_the_runs_models(made, client):
    """The product of what is taken is the list's probability as the rollout recorded it."""
    asked = {"X-Explore": "1"}
    rollout = next(
        r for r in read_rollouts(made / "rollout/rollouts.jsonl")
        if any(len(t.list) == 2 for t in r.trajectories)
    )  # fmt: skip
    for t in rollout.trajectories:
        chosen = ",".join(map(str, t.list))
        status, value = client.json(
            "/api/steps", asked, set="train", id=rollout.id, side="rollout", list=chosen
        )
        assert status == 200, value
        assert value["policy"] == rollout.policy
        assert value["logp"] == pytest.approx(t.logp, abs=1e-4)
        taken = [
            step["stop"] if step["taken"] is None else dict(step["ids"])[step["taken"]]
            for step in value["steps"]
        ]
        assert sum(map(math.log, taken)) == pytest.approx(t.logp, abs=1e-3)
    of = {"set": "evaluation", "id": "e1", "list": ""}
    before, after = (
        client.json("/api/steps", asked, side=side, **of)[1] for side in ("before", "after")
    )
    assert before["policy"] != after["policy"]
    assert (before["model"], after["model"]) == ("sft", "feedback")
    for side, said in (
        ("top-1", "no model of this run"), ("before, shuffled", "random order"), ("", "side")
    ):  # fmt: skip
        status, value = client.json("/api/steps", asked, side=side, **of)
        assert status == 400
        assert said in value["error"]
    for chosen, said in (
        ("9", "outside"),
        ("1,1", "twice"),
        ("x", "posi"),
        ("1" * 9, "posit"),
    ):
        status, value = client.json("/api/steps", asked, **of | {"list": chosen}, side="before")
        assert (status, said in value["error"]) == (400, True), value
    # Only the page itself may have a model loaded.
    assert client.json("/api/steps", side="before", **of)[0] == 403


def test_without_its_model_a_run_says_so(copied, serve):
    import shutil

    shutil.rmtree(copied / "sft")
    _, client = serve(copied)
    one = client.json("/api/question", set="train", id="t1")[1]["rollouts"][0]
    assert not one["model"]
    assert "is not there any more" in one["why"]
    given = {"set": "train", "id": "t1", "side": "rollout", "list": "1"}
    status, value = client.json("/api/steps", {"X-Explore": "1"}, **given)
    assert (status, "is not there any more" in value["error"]) == (400, True)


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "path",
    [
        "/../setup.py", "/page/../server.py", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "//[",
        "/page.js/", "/.explore", "/api", "/api/questions/", "/index.html\x00", "/..%5cserver.py",
    ],
)  # fmt: skip
def test_nothing_but_the_page_is_served(client, path):
    host, port = re.search(r"//(.+):(\d+)/", client.url).groups()
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400")
    assert b"root:" not in answer
    assert b"import" not in answer


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "[::1", ""])
def test_a_host_it_is_not_known_by_gets_nothing(client, host):
    """A page elsewhere whose name was made to point here cannot read the records."""
    for path in ("/", "/api/run", "/api/questions"):
        status, _, content = client.get(path, {"Host": host})
        assert status == 421
        assert b"train" not in content
    for known in ("localhost:1", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert client.get("/", {"Host": known})[0] == 200


def test_wrong_requests_are_refused_in_a_line(client):
    for given, said in (
        ({"set": "tran"}, "did you mean 'train'"),
        ({"set": "train", "a": "rolout"}, "did you mean 'rollout'"),
        ({"set": "train", "type": "brige"}, "did you mean 'bridge'"),
        ({"set": "train", "nedded": "1"}, "did you mean 'needed'"),
        ({"set": "train", "change": "list"}, "compares two sides"),
        ({"set": "evaluation", "a": "before", "b": "evaluate, examples", "change": "better"},
         "scores with scores"),
        ({"set": "evaluation", "a": "before", "sort": "a.spread"}, "sampled lists"),
    ):  # fmt: skip
        status, value = client.json("/api/questions", **given)
        assert status == 400
        assert said in value["error"]
        assert "\n" not in value["error"]
    for given in ({"id": "nobody"}, {"id": ""}, {"id": "t1", "x": "1"}, {}):
        assert client.json("/api/question", set="train", **given)[0] == 400
    assert client.get("/api/questions", set="train", q="x" * 9000)[0] == 414
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert client.get("/api/run", method=method)[0] == 501


def test_heads_bodies_and_packing(client):
    status, headers, content = client.get("/api/run", method="HEAD")
    assert (status, content) == (200, b"")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in explore_server.FILES:
        status, headers, content = client.get(path)
        assert status == 200
        assert headers["X-Content-Type-Options"] == "nosniff"
        # Nothing comes from elsewhere, and nothing is run that stands in the page itself.
        assert not re.search(rb"https?://(?!www\.w3\.org/)|//cdn|@import|innerHTML|eval\(", content)
        assert not re.search(rb"<script(?! type=\"module\" src=)|\son\w+=", content)
    with urllib.request.urlopen(
        urllib.request.Request(client.url + "page.js", headers={"Accept-Encoding": "gzip"}),
        timeout=30,
    ) as packed:
        assert packed.headers["Content-Encoding"] == "gzip"


def test_hostile_texts_arrive_as_they_are(client):
    """The page puts them in as text: it is JSON, and no browser takes it for a page."""
    status, headers, content = client.get("/api/question", set="train", id="t3")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    one = json.loads(content)
    assert one["text"] == HOSTILE
    assert one["question"]["passages"][0]["title"] == HOSTILE_TITLE
    status, headers, content = client.get("/api/questions", set="train", a=HOSTILE)
    assert (status, headers["Content-Type"]) == (400, "application/json; charset=utf-8")
    assert client.json("/api/questions", set="train", q="<script>")[1]["total"] == 1


# ---------------------------------------------------------------------------- files that change


def test_records_that_change_are_read_again(copied, serve, monkeypatch):
    monkeypatch.setattr("dynarag_jax.explore.run_records.LOOK_EVERY", 0.0)
    records, client = serve(copied)
    path = copied / "rollout" / "rollouts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    before = client.json("/api/run")[1]["version"]
    # In place and of the same length, so that the places in it are of other records now.
    with path.open("r+") as stream:
        stream.write("".join(reversed(lines)))
    os.utime(path, ns=(1, 1))
    records._looked = math.inf  # no look meanwhile: what was read is told, and what moved is not
    statuses = {client.json("/api/question", set="train", id=f"t{i}")[0] for i in range(12)}
    assert 409 in statuses
    records.wait()
    assert client.json("/api/run")[1]["version"] == before + 1
    assert all(client.json("/api/question", set="train", id=f"t{i}")[0] == 200 for i in range(12))
    path.write_text("".join(lines[:4]))
    records.wait()
    state = client.json("/api/run")[1]
    assert state["sets"][0]["questions"] == 4
    assert "reading" in state


def test_the_program_serves_until_it_is_told_to_stop(made):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    # A shell that runs the tests in the background would have its children ignore Ctrl-C.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from dynarag_jax.launch.program import main\nmain('explore', sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, str(made), "--port", "0"]
    for kind in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as running:
            line = running.stdout.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+/", line).group()
            with urllib.request.urlopen(url, timeout=30) as page:
                assert b"dynarag explore" in page.read()
            running.send_signal(kind)
            assert running.wait(timeout=60) == 0
            assert "stopped" in running.stderr.read()


def test_mistakes_at_the_command_line_are_a_line(made, tmp_path, capsys):
    from dynarag_jax.launch.program import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, said in (
            ([str(tmp_path / "nowhere")], "no such run"),
            ([str(tmp_path)], "no stage has run here"),
            ([str(made), "--port", "70000"], "port = 70000 must be from 0 to 65535"),
            ([str(made), "--port", port], f"cannot listen on 127.0.0.1, port {port}"),
            ([str(made), "--host", "no.such.host.invalid"], "cannot listen on no.such.host"),
            (["--port", "0"], "name the run"),
        ):
            with pytest.raises(SystemExit) as stop:
                main("explore", arguments)
            assert stop.value.code == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert said in error, error
