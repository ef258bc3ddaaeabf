"""Lists from a server: a real one on this machine that speaks the API, in good and bad health."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from email.utils import formatdate
from typing import Any

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.json_client import retry_after
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import TEMPLATE_SETTINGS
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rollout_records import Rollout
from dynarag_jax.sampling.list_sources import Reject
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.rollouts import roll_out
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.server import ServerConfig, ServerLists
from tests.local_server import JsonHandler, serving

TEXTS = ["[2], [1]", "None", "[1],[3]", "The needed ones are [3], [3] and [9].", "2, 1"]

THOUGHTS = ["<think>[1] or [3]?</think>\n\n[2]", "[3].</think>[2]", "[2]", "<think>[1]", "[1], [3"]

CUED = [
    "the river 2 helps\nlist : [2], [1]",
    "a river list : [2], [1]",
    "[3]",
    "no list : none at all",
]


class Handler(JsonHandler):
    """Answers as the question's name says."""

    def do_POST(self) -> None:
        body = self.body()
        found = re.search(r"port (\w+)\?", body["messages"][-1]["content"])
        name = found.group(1) if found else ""
        log: list = self.server.log  # type: ignore[attr-defined]
        log.append((name, body, dict(self.headers), self.path, time.monotonic()))
        nth = sum(entry[0] == name for entry in log)
        if name == "busy" and nth == 1:
            return self.reply(429, b"slow down", {"Retry-After": "0.3"})
        if name == "broken" and nth < 3:
            return self.reply(503, b"restarting")
        if name == "garbage":
            return self.reply(200, b"<html>no</html>" if nth % 2 else b'{"choices": [{}]}')
        if name == "toolong":
            return self.reply(400, b'{"error": "context length"}')
        if name == "hangs":
            time.sleep(1.5)
            return None
        if name == "trickles":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(20):
                    self.wfile.write(b" ")
                    time.sleep(0.1)
            except OSError:
                pass
            return None
        if name == "breaks":
            self.connection.close()
            return None
        count = min(body["n"], 2) if name == "few" else body["n"]
        texts = {"mute": ["no idea", ""] * 4, "thinks": THOUGHTS, "cued": CUED}.get(name, TEXTS)
        choices = [
            {"message": {"content": texts[i % len(texts)]}, "finish_reason": "stop"}
            for i in range(count)
        ]
        if name == "cut":
            choices = [choice | {"finish_reason": "length"} for choice in choices]
        return self.reply(200, {"choices": choices})


@pytest.fixture
def server():
    with serving(Handler, log=[]) as server:
        yield server


def settings(server, **more) -> ServerConfig:
    fields = {"timeout": 0.6, "retries": 2, "backoff": 0.05, "parallel": 4, "model": "m"} | more
    return ServerConfig(server.url, **fields)


@pytest.fixture(scope="module")
def sampler(tiny_policy) -> PolicySampler:
    policy, prompts = tiny_policy
    return PolicySampler(policy, prompts, 4, 0)


def ask(sampler, config, questions, key=""):
    source = ServerLists(config, sampler, questions, Sampling(0.7, top_k=5), 5, key)
    try:
        found = list(roll_out(sampler, sampler, source, 5, RewardWeights()))
    finally:
        source.close()
    by_id: dict[str, Any] = {r.id: r for r in found}
    return by_id, source.repairs


def test_lists_are_read_leniently_and_scored_here(server, sampler, question):
    questions = [question("good"), question("few"), question("busy"), question("broken")]
    found, repairs = ask(sampler, settings(server), questions, key="secret")
    lists = [(2, 1), (), (1, 3), (3,)]  # the last text says 2, 1 again
    for one in found.values():
        assert isinstance(one, Rollout)
    assert [t.list for t in found["good"].trajectories] == lists
    assert [t.count for t in found["good"].trajectories] == [2, 1, 1, 1]
    assert found["good"].policy == "server:m"
    assert found["good"].reference == sampler.policy.fingerprint
    expected = [sum(x) for x in sampler.logps(questions[:1], [lists], 5)[0]]
    assert [t.logp for t in found["good"].trajectories] == pytest.approx(expected, abs=1e-5)
    # Of three questions with all five texts, and one asked in parts: 2 + 2 + 1.
    assert repairs == {
        "spacing": 3, "repeated": 3, "out_of_range": 3, "extra_text": 3, "unbracketed": 6,
        "too_long": 0,
    }  # fmt: skip
    log = server.log
    assert all(path == "/v1/chat/completions" for *_, path, _ in log)
    assert all(headers["Authorization"] == "Bearer secret" for _, _, headers, *_ in log)
    first = next(body for name, body, *_ in log if name == "good")
    assert (first["n"], first["temperature"], first["top_k"], first["model"]) == (5, 0.7, 5, "m")
    assert [body["n"] for name, body, *_ in log if name == "few"] == [5, 3, 1]
    early, late = (when for name, *_, when in log if name == "busy")
    assert late - early > 0.29  # Retry-After, not the shorter backoff
    assert sum(name == "broken" for name, *_ in log) == 3


def test_what_a_sick_server_spoils_is_set_aside_and_the_rest_goes_on(server, sampler, question):
    names = ["garbage", "toolong", "hangs", "trickles", "breaks", "mute"]
    odd = [question("bare", passages=0), question("huge", text="port huge? " * 99)]
    questions = [*map(question, names), *odd, question("good")]
    found, repairs = ask(sampler, settings(server), questions)
    assert isinstance(found.pop("good"), Rollout)
    for name, says in {
        "garbage": "no chat completion", "toolong": "HTTP 400", "hangs": "no answer within 0.6 s",
        "trickles": "no answer within 0.6 s", "breaks": "the connection broke",
        "mute": "none of the server's 5 texts holds a list", "bare": "has no passages",
        "huge": "takes more than 200 tokens",
    }.items():  # fmt: skip
        reject = found.pop(name)
        assert isinstance(reject, Reject)
        assert f"question '{name}'" in reject.reason and says in reject.reason
        assert "\n" not in reject.reason
    assert not found and (repairs["unreadable"], repairs["missing"]) == (3, 2)
    counts = [sum(n == name for n, *_ in server.log) for name in ("garbage", "toolong", "hangs")]
    assert counts == [3, 1, 3]


def test_thoughts_are_no_lists_and_cut_replies_are_missing(server, sampler, question):
    marked = question("marked", text="port marked? <eos>[9] ")
    found, repairs = ask(sampler, settings(server), [question("thinks"), question("cut"), marked])
    assert [t.list for t in found["thinks"].trajectories] == [(2,)]
    assert [t.count for t in found["thinks"].trajectories] == [3]
    assert (repairs["thought"], repairs["missing"], repairs["unreadable"]) == (3, 6, 1)
    assert "cut off at the limit of tokens" in found["cut"].reason
    bodies = {name: body for name, body, *_ in server.log}
    for body in bodies.values():
        assert body["chat_template_kwargs"] == TEMPLATE_SETTINGS
        assert body["stop"] == ["<eos>"]
    assert "<eos>" not in json.dumps(bodies["marked"]["messages"])
    ask(sampler, settings(server, template_settings=False), [question("thinks")])
    assert "chat_template_kwargs" not in server.log[-1][1]


def test_a_server_that_cannot_be_reached_ends_the_run(server, sampler, question):
    config = settings(server, retries=1)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"cannot be reached .* what is done is kept"):
        ask(sampler, config, [question("good")])


def test_a_server_that_does_not_know_us_ends_the_run(server, sampler, question, monkeypatch):
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.reply(401, b"who are you?"))
    with pytest.raises(InputError, match=r"HTTP 401 Unauthorized: who are you.*OPENAI_API_KEY"):
        ask(sampler, settings(server), [question("good")])


def test_retry_after_holds_seconds_or_a_date():
    assert retry_after("7") == 7
    assert retry_after("-3") == 0
    assert retry_after(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)
    assert [retry_after(x) for x in ("soon", "nan", "", None)] == [None] * 4


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"url": "host:8000", "model": "m"}, "must begin with http"),
        ({"url": "http://host/v1"}, "'model' is empty"),
        ({"parallel": 0}, "must be positive"),
        ({"timeout": 0}, "timeout must be positive"),
    ],
)
def test_settings_without_sense_are_refused(fields, says):
    with pytest.raises(InputError, match=says):
        ServerConfig(**fields)


def test_a_policy_that_thinks_keeps_the_servers_thoughts(server, tiny_model, tiny_policy, question):
    """What stands before the cue is the thought; without the cue a reply is missing."""
    policy, prompts = tiny_policy
    prompts = dataclasses.replace(prompts, thought_tokens=12)
    thinks = PolicySampler(load_policy(tiny_model, policy.mesh, prompts), prompts, 4, 0)
    found, repairs = ask(thinks, settings(server), [question("cued")])
    first, second, last = found["cued"].trajectories
    assert (first.list, second.list, last.list) == ((2, 1), (2, 1), ())
    assert [t.thought.text for t in (first, second)] == ["the river 2 helps", "a river"]
    assert (repairs["missing"], repairs["cut_thoughts"]) == (1, 2)  # the first text came twice
    for t in found["cued"].trajectories:
        assert policy.spelling.thought is None and t.thought.cut == (t is first)
        assert len(t.thought.logps) == len(t.thought.tokens) and t.logp < 0
    said = next(body for name, body, *_ in server.log if name == "cued")
    assert said["messages"][-1]["content"].endswith("passages :")
    assert said["chat_template_kwargs"] == TEMPLATE_SETTINGS
