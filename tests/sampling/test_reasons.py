"""Reasons for lists from a server: a real one on this machine, read, checked, kept, and learned."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.lists import format_list
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.model import list_grammar
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import read_questions, write_questions
from dynarag_jax.sampling.reason_server import ReasonConfig, read_reasons
from dynarag_jax.stages import reasons, sft
from dynarag_jax.stages.reasons import CollectReasons
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.config import Stream
from tests.local_server import JsonHandler, serving

ROOT = Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------------------- one reply


@pytest.mark.parametrize(
    "text",
    [
        "[2] names it.\nNeeded passages: [2], [1]",
        "[2] names it.\n\n**Needed passages:** [2], [1]",
        "[2] names it. needed passages: [2], [1].",
        "[2] names it.\n`[2], [1]`",
        "[2] names it.\n[2, 1]",
        "[2] names it.\nNeeded passages: 2, 1\n",
    ],
)
def test_reasons_that_end_in_their_list(text):
    assert read_reasons(text, (2, 1), 3) == ("[2] names it.", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[2] names it.\nNeeded passages: [1], [2]", "another list at its end: '[1], [2]', not"),
        ("[2] names it.\nNeeded passages: [2]", "another list"),
        ("[2] names it.\nNeeded passages: [2], [1], [3]", "another list"),
        ("[2] names it.\nNeeded passages: None", "another list"),
        ("[2] names it.\nNeeded passages: [2], [1], [1]", "another list"),
        ("[2] names it.\nNeeded passages: [2], [1], [9]", "another list"),
        ("[2] names it, and so does [1].", "no list at its end"),
        ("[2] names it.\nNeeded passages:", "no list at its end"),
        ("[2] names it.\nNeeded passages: [2], [1] because they do.", "no list at its end"),
        ("[2] names it.\nNeeded passages: [2], [1]\nThat is all.", "no list at its end"),
        ("Needed passages: [2], [1]", "no reasons before the list"),
        ("[2], [1]", "no reasons before the list"),
        ("---\nNeeded passages: [2], [1]", "no reasons before the list"),
        ("[4] names it.\nNeeded passages: [2], [1]", "a passage that is not there: [4] of 3"),
        (
            "Needed passages: [2], [1]\n[2] names it.\nNeeded passages: [2], [1]",
            "'Needed passages:' more than once",
        ),
    ],
)
def test_reasons_of_another_list_or_none_are_refused(text, says):
    found, wrong = read_reasons(text, (2, 1), 3)
    assert found == "" and wrong.startswith(says), wrong


LISTS = st.lists(st.integers(1, 5), unique=True, max_size=5).map(tuple)


@given(st.text("ab [1]2.\n,:", max_size=40), LISTS, LISTS)
def test_a_reply_is_read_for_its_own_list_and_for_no_other(before, chosen, other):
    reply = f"{before}\nNeeded passages: {format_list(chosen)}"
    found, wrong = read_reasons(reply, chosen, 5)
    named = {int(i) for i in re.findall(r"\[(\d+)\]", before)}
    if not re.search(r"\w", before) or named - {*range(1, 6)}:
        assert wrong and not found
    else:
        assert (found, wrong) == (before.strip(), "")
    if other != chosen:
        assert read_reasons(reply, other, 5)[1].startswith("another list")


# ---------------------------------------------------------------------------- the stage

PROMPTS = PromptConfig(
    style="compact", ids=4, max_list=3, rerank_tokens=200, answer_prompt_tokens=200,
    answer_tokens=5, thought_tokens=24,
)  # fmt: skip


class Teacher(JsonHandler):
    """Gives reasons for the list that it is shown, as the port's name says, and as it is told."""

    def do_POST(self) -> None:
        body = self.body()
        text = body["messages"][-1]["content"]
        name = re.findall(r"where is port (\w+)\?", text)[0]
        asked = re.findall(r"most useful passage first: (.*)", text)[0]
        told = text.partition("could not be used:\n")[2].splitlines()
        with self.server.lock:  # type: ignore[attr-defined]
            self.server.log.append((name, body))  # type: ignore[attr-defined]
        time.sleep(self.server.pause)  # type: ignore[attr-defined]
        says, reason = "river 2", "stop"
        if name == "broken":
            return self.reply(500, b"oops")
        if name == "cut" and not told:
            reason = "length"
        if name == "wrong" or (name == "learns" and len(told) < 2):
            asked = "[3]"
        if name == "long":
            says = "river 2." if told else "river 2. port lies on river. " * 3
        if name == "prolix":
            says = "river 2. port lies on river. " * 3
        if name == "thinks":
            says = f"<think>What now?</think>{says}"
        message = {"content": f"{says}\nNeeded passages: {asked}"}
        choices = [{"message": message, "finish_reason": reason}]
        return self.reply(200, {"choices": choices, "usage": {"total_tokens": 10}})


@pytest.fixture
def server():
    with serving(Teacher, log=[], lock=threading.Lock(), pause=0.0) as server:
        yield server


def settings(server, **more) -> ReasonConfig:
    fields = {"timeout": 5.0, "retries": 1, "backoff": 0.02, "parallel": 4, "model": "m"} | more
    return ReasonConfig(server.url, **fields)


def asked_of(server) -> Counter[str]:
    return Counter(name for name, _ in server.log)


@pytest.fixture
def collect(tmp_path, tiny_model):
    """``collect(questions, server, **fields)``: what the stage makes of questions."""

    def go(questions, config: ReasonConfig, run: str = "run", **fields):
        write_questions(tmp_path / "q.jsonl", questions)
        stage = CollectReasons(
            (str(tmp_path / "q.jsonl"),), str(tiny_model), server=config, prompts=PROMPTS, **fields
        )
        context = Context(Run(str(tmp_path / run)), {"reasons": stage}, "reasons")
        run_stage(context, reasons.run)
        return {q.id: q for q in read_questions(context.stage_directory / "q.jsonl")}

    return go


def test_replies_become_thoughts_where_they_end_in_the_very_list(server, collect, question, capsys):
    names = ("good", "thinks", "learns", "wrong", "long", "prolix", "cut", "broken")
    asked = [question(name, expert=(2, 1), expert_source="gold") for name in names]
    bare = question("bare")
    nothing = question("nothing", expert=())
    had = question("had", expert=(1,), expert_thought="river 1")
    wide = question("wide", passages=6, expert=(6, 1), expert_source="gold")
    every = [*asked, bare, nothing, had, wide]
    made = collect(every, settings(server))
    assert list(made) == [q.id for q in every]
    good = {"good", "thinks", "learns", "cut", "nothing"}
    assert {name for name, q in made.items() if q.expert_thought == "river 2"} == good
    assert made["long"].expert_thought == "river 2."
    for name in ("wrong", "prolix", "broken", "wide"):
        assert made[name] == next(q for q in every if q.id == name)
    assert made["bare"] == bare and made["had"] == had
    for name in (*good, "long"):
        before = next(q for q in every if q.id == name)
        assert (made[name].expert, made[name].passages) == (before.expert, before.passages)
    assert made["good"].expert_source == "gold, reasons by m"
    assert made["nothing"].expert_source == "reasons by m"
    said = capsys.readouterr().err
    assert "6 of 10 lists have reasons" in said and "3 after another try" in said
    assert "4 have their list alone; 1 questions have no list; 1 had a thought before" in said
    for why in ("another list at its end (1)", "too long (1)", "no reply (1)"):
        assert why in said
    assert "its list does not fit the prompt (1)" in said
    assert asked_of(server) == {
        "good": 1, "thinks": 1, "learns": 3, "wrong": 3, "long": 2, "prolix": 3, "cut": 2,
        "broken": 2, "nothing": 1,
    }  # fmt: skip
    (_, first), *_, (_, last) = [entry for entry in server.log if entry[0] == "wrong"]
    prompt = first["messages"][0]["content"]
    assert "[2] port wrong lies on river 1" in prompt and "At most" not in prompt
    assert "In at most 14 words" in prompt and "not be used" not in prompt
    told = last["messages"][0]["content"]
    assert told.startswith(prompt) and told.count("- another list at its end: '[3]', not") == 2
    nobody = next(body for name, body in server.log if name == "nothing")
    assert "Needed passages: None" in nobody["messages"][0]["content"]


def test_sentences_that_fit_are_kept_and_questions_without_reasons_left_out(
    server, collect, question, tiny_model, capsys
):
    from dynarag_jax.exchange.tokenizers import load_tokenizer

    asked = [question(name, expert=(1,)) for name in ("good", "prolix", "wrong")]
    asked.append(question("bare"))
    made = collect(asked, settings(server, too_long="cut"), failed="leave_out")
    assert list(made) == ["good", "prolix", "bare"]
    assert asked_of(server)["prolix"] == 1
    kept = made["prolix"].expert_thought
    tokenizer = load_tokenizer(str(tiny_model))
    maker = ExampleMaker(tokenizer, list_grammar(tokenizer, PROMPTS)[0], PROMPTS)
    whole = "river 2. port lies on river. " * 3
    assert whole.startswith(kept) and kept.endswith(".")
    # One more sentence is one too many.
    more = whole[: whole.index(".", len(kept)) + 1]
    assert not maker.thought("q", kept)[1] and maker.thought("q", more)[1]
    said = capsys.readouterr().err
    assert "1 without their last sentences; 1 are left out; 1 questions have no list" in said


def test_what_was_paid_for_is_kept_whatever_ends_the_run(
    server, collect, question, tmp_path, capsys
):
    asked = [question(f"q{i}", expert=(1,)) for i in range(8)] + [question("wrong", expert=(1,))]
    limited = settings(server, request_limit=5, parallel=1)
    with pytest.raises(InputError, match=r"server: the limit of 5 requests .* is spent"):
        collect(asked, limited)
    assert len(server.log) == 5
    with (tmp_path / "run" / "reasons.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # a kill in mid-write
    made = collect(asked, settings(server))
    assert sum(q.expert_thought == "river 2" for q in made.values()) == 8
    assert asked_of(server) == {f"q{i}": 1 for i in range(8)} | {"wrong": 3}
    assert "reasons: asked 6, cached 5, missing 1" in capsys.readouterr().err
    # Another stage of the run, and of the wrong one the replies that could not be used, too.
    collect(asked, settings(server), failed="leave_out")
    assert len(server.log) == 11
    assert "reasons: asked 0, cached 11, missing 1" in capsys.readouterr().err


def test_wrong_settings_are_named(server, collect, question):
    asked = [question("good", expert=(1,))]
    with pytest.raises(InputError, match="reasons need a server: set server"):
        collect(asked, ReasonConfig())
    with pytest.raises(InputError, match=r"q\.jsonl: no question has a list .* label stage"):
        collect([question("good")], settings(server))
    with pytest.raises(InputError, match=r"server: 'prompt' has no \{list\}"):
        settings(server, prompt="{question} {passages}?")
    with pytest.raises(InputError, match="attempts = 0 must be positive"):
        settings(server, attempts=0)
    plain = dataclasses.replace(PROMPTS, thought_tokens=0)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"prompts": plain, "tokenizer": "m"}, r"prompts\.thought_tokens = 0"),
        ({"prompts": PROMPTS}, "'tokenizer' is empty"),
    )
    for wrong, says in cases:
        stage = CollectReasons(("q.jsonl",), server=settings(server), **wrong)
        with pytest.raises(InputError, match=says):
            reasons.run(Context(Run("run"), {"reasons": stage}, "reasons"), stage)
    assert not server.log


@pytest.mark.slow  # trains
def test_a_policy_learns_the_reasons(server, collect, question, tiny_model, tmp_path, capsys):
    """Behavior cloning of them: no list is behind an empty thought, and their loss falls."""
    asked = [question(f"q{i}", expert=(2, 1)) for i in range(8)]
    collect(asked, settings(server))
    words = DecoderConfig(width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp=24)
    stage = Sft(
        tokenizer=str(tiny_model), questions="{run}/reasons/q.jsonl", prompts=PROMPTS, model=words,
        reranker=Stream(batch=8), generator=Stream(batch=0), steps=6, log_every=1, lengths=1,
        checkpoint_every=6,
    )  # fmt: skip
    stage = dataclasses.replace(
        stage, optimizer=dataclasses.replace(stage.optimizer, learning_rate=0.05)
    )
    context = Context(Run(str(tmp_path / "run"), cpu_devices=1), {"sft": stage}, "sft")
    run_stage(context, sft.run)
    said = capsys.readouterr().err
    assert "without a thought" not in said and "cut to fit" not in said
    losses = [float(x) for x in re.findall(r'"loss": ([0-9.]+)', metrics(context))]
    assert len(losses) == 6 and losses[-1] < losses[0] / 1.5


def metrics(context: Context) -> str:
    return (context.stage_directory / "metrics.jsonl").read_text()


CONFIG = """
from dynarag_jax.config import Run
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.reason_server import ReasonConfig
from dynarag_jax.stages import CollectReasons

prompts = {prompts}
run = Run(directory="run", prompts=prompts, cpu_devices=1)
stages = {{
    "reasons": CollectReasons(
        ("q.jsonl",), {model!r}, server=ReasonConfig({url!r}, "m", parallel=2)
    ),
}}
"""


@pytest.mark.slow  # starts programs
def test_killed_and_continued_nothing_is_asked_twice(server, question, tiny_model, tmp_path):
    server.pause = 0.1
    asked = [question(f"q{i}", expert=(1,)) for i in range(90)]
    write_questions(tmp_path / "q.jsonl", asked)
    config = CONFIG.format(prompts=repr(PROMPTS), model=str(tiny_model), url=server.url)
    (tmp_path / "c.py").write_text(config)
    command = [sys.executable, "-m", "train.reasons", "c.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)

    for standing in (10, 75):  # in the first group of questions, and in the second
        process = start()
        until = time.monotonic() + 600
        while len(server.log) < standing and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start()
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    made = read_questions(tmp_path / "run" / "reasons" / "q.jsonl")
    assert [q.id for q in made] == [q.id for q in asked]
    assert all(q.expert_thought == "river 2" for q in made)
    counts = asked_of(server)
    # Only what was under way when it was killed, two at a time, is asked once more.
    assert set(counts) == {q.id for q in asked} and sum(counts.values()) <= 90 + 2 * 2
    assert "cached" in said.decode()
