"""Lists by a judge behind a server: its grades, what is missing, and going on without asking."""

from __future__ import annotations

import re

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
from tests.local_server import JsonHandler, serving

GRADES = {"good": "Score: 9", "best": "10/10", "fair": "Score: 8", "poor": "0", "prose": "Useful!"}


class Handler(JsonHandler):
    """Grades a passage by its first word."""

    def do_POST(self) -> None:
        body = self.body()
        found = re.search(r"Passage: T (\w+)", body["messages"][-1]["content"])
        assert found is not None
        self.server.asked.append(found[1])  # type: ignore[attr-defined]
        self.say(GRADES[found[1]])


@pytest.fixture
def server():
    with serving(Handler, asked=[]) as server:
        yield server


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
    url = server.url
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
