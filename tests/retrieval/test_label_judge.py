"""Lists by a judge behind a server: its grades, what is missing, and going on without asking."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.records import Passage, Question, read_questions, write_questions
from dynarag_jax.retrieval.labels import RELEVANCE
from dynarag_jax.rewards.judge import JudgeConfig
from dynarag_jax.stages import label
from dynarag_jax.stages.label import Label

GRADES = {"good": "Score: 9", "best": "10/10", "fair": "Score: 8", "poor": "0", "prose": "Useful!"}


class Handler(BaseHTTPRequestHandler):
    """Grades a passage by its first word."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = re.search(r"Passage: T (\w+)", body["messages"][-1]["content"])
        assert found is not None
        self.server.asked.append(found[1])  # type: ignore[attr-defined]
        reply = {"choices": [{"message": {"content": GRADES[found[1]]}}]}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def question(name: str, *grades: str) -> Question:
    passages = tuple(Passage(f"{name}{i}", f"{g} {name}{i}", "T") for i, g in enumerate(grades))
    return Question(name, f"What is {name}?", ("x",), passages=passages, expert=(1,))


def test_grades_make_the_list(tmp_path, server, capsys):
    asked = [
        question("a", "poor", "good", "best", "fair"),
        question("b", "poor", "poor"),
        question("c", "best", "prose"),
        question("d", "good", "best", "good", "good"),
    ]
    write_questions(tmp_path / "q.jsonl", asked)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    judge = JudgeConfig(url, "m", prompt=RELEVANCE, highest=10.0, parallel=4)

    def go(run: str, **more) -> list[Question]:
        fields = {"source": "judge", "limit": 3, "judge": judge} | more
        stage = Label((str(tmp_path / "q.jsonl"),), **fields)
        context = Context(Run(str(tmp_path / run)), {"label": stage}, "label")
        run_stage(context, label.run)
        return read_questions(context.stage_directory / "q.jsonl")

    a, b, c, d = go("run")
    # Above 0.8, which "fair" is not; best first, ties as given, three at most.
    assert [a.expert, b.expert, c.expert, d.expert] == [(3, 2), (), None, (2, 1, 3)]
    assert a.expert_source == "judge m, above 0.8" and c.expert_source == ""
    assert len(server.asked) == 12
    said = capsys.readouterr().err
    assert "1 questions have no list, since grades are missing" in said
    assert "3 lists, 1.67 passages on average" in said
    # Another threshold asks again what nobody could read; the other replies are on disk.
    a, *_ = go("run", threshold=0.95)
    assert a.expert == (3,) and server.asked[12:] == ["prose"]
    with pytest.raises(InputError, match="source 'judge' needs a server"):
        Label(source="judge")
