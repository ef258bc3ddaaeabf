"""Stages that label, rerank, answer and evaluate: two processes leave the files of one."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dynarag_jax.prompts import COMPACT_WORDS
from dynarag_jax.records import write_questions
from tests.hosts import assert_alike, contents, ended, start
from tests.local_server import JsonHandler, serving
from tests.small_model import save_small_model

from .conftest import IDS, WORDS, ask

CONFIG = """
from dynarag_jax.config import Mesh, Run
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.retrieval.labels import RELEVANCE
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.judge import JudgeConfig
from dynarag_jax.rewards.scorer import BertScoreConfig
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.sampling.reason_server import ReasonConfig
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.server import ServerConfig
from dynarag_jax.stages import (
    Answer, Bench, CollectReasons, Compare, Contrast, Evaluate, Label, Mix, Pairs, Reference,
    Rerank, SampleRollouts, Score,
)

run = Run(
    directory="{directory}", mesh=Mesh({mesh}), cpu_devices=1,
    prompts=PromptConfig(
        style="compact", ids=6, max_list=3, rerank_tokens=64, answer_prompt_tokens=64,
        answer_tokens=3,
    ),
)
model = {model!r}
stages = {{
{stages}
}}
"""

FAST = """
    "label": Label(questions=("asked.jsonl",), source="scores", scorer={scorer!r}, threshold=0.5),
    "rerank": Rerank(model=model, questions=("asked.jsonl",), batch=8),
    "answer": Answer(model=model, questions=("{{run}}/rerank/asked.jsonl",), batch=8),
    "evaluate": Evaluate(
        models={{"ours": model}}, questions="asked.jsonl", top_k=(2,), examples=0, batch=8,
    ),
"""

MORE = """
    "noisy": Label(questions=("asked.jsonl",), source="noisy"),
    "minimal": Label(questions=("asked.jsonl",), source="minimal", reader=model, limit=4),
    "shuffled": Evaluate(
        models={{"one": model, "two": model}}, questions="asked.jsonl", top_k=(2,), shuffled=True,
        examples=2, samples=2, batch=8, more_passages="set_aside",
    ),
    "beam": Rerank(
        model=model, questions=("asked.jsonl",), batch=8, sampling=Sampling(method="beam", width=8)
    ),
    "bench": Bench(
        datasets={{"nq": "asked.jsonl", "hotpotqa": "others.jsonl"}}, models={{"ours": model}},
        scorer={scorer!r}, top_k=(2,), batch=8,
    ),
    "rollout": SampleRollouts(
        model=model, questions="asked.jsonl", samples=3, batch=8, answers=True,
        sampling=Sampling(method="distinct"), reward=RewardWeights(likelihood=1.0),
    ),
    "similar": SampleRollouts(
        model=model, questions="asked.jsonl", samples=2, batch=8,
        reward=RewardWeights(bertscore=1.0), bertscore=BertScoreConfig({scorer!r}, layer=1),
    ),
    "reference": Reference(
        model=model, policy=model, questions="asked.jsonl", batch=8, answers=True,
        rollouts="{{run}}/rollout/rollouts.jsonl",
    ),
    "pairs": Pairs(questions="asked.jsonl", rollouts="{{run}}/reference/rollouts.jsonl"),
    "contrast": Contrast(questions="asked.jsonl"),
    "mix": Mix(train={{"a": "asked.jsonl"}}, held_out={{"b": "others.jsonl"}}),
    "score": Score(questions=("asked.jsonl",), predictions=("{{run}}/answer/asked.jsonl",)),
    "compare": Compare(
        questions=("asked.jsonl",), predictions=("{{run}}/evaluate/predictions.jsonl",),
        baseline="top-2",
    ),
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """As all of these tests', with some words more: two devices can divide its vocabulary."""
    words = [*WORDS, *COMPACT_WORDS, "made", "by", "whom"]
    return save_small_model(tmp_path_factory.mktemp("even"), words, IDS)


def written(model: Path, name: str, stages: str, mesh: str = "-1, 1, 1", **more: Any) -> str:
    """A config file of its own."""
    config = CONFIG.format(
        directory=f"runs/{name}", mesh=mesh, model=str(model), stages=stages.format(**more)
    )
    Path(f"{name}.py").write_text(config)
    return f"{name}.py"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Questions with few and many candidates, with none, and too long to be asked."""
    counts = [5, 3, 9, 1, 5, 6, 14, 2, 4, 6, 8]
    asked = [ask(i, passages) for i, passages in enumerate(counts)]
    long = ask(len(counts), text="what " * 80)
    write_questions(tmp_path / "asked.jsonl", [*asked[:3], long, *asked[3:]])
    write_questions(tmp_path / "others.jsonl", [ask(20 + i, 4) for i in range(5)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
def test_two_processes_label_rerank_answer_and_evaluate_as_one(place, model, scorer):
    ended(start([written(model, "one", FAST, scorer=str(scorer))], 1))
    said = ended(start([written(model, "two", FAST, scorer=str(scorer))], 2))
    one, two = (contents(place / "runs" / name) for name in ("one", "two"))
    assert_alike(one, two, "runs")
    lines = two["evaluate/predictions.jsonl"]
    assert [(r["system"], r["id"]) for r in lines][:12] == [
        ("ours", f"q{i}") for i in (0, 1, 2, 11, *range(3, 11))
    ]
    assert [r["id"] for r in lines if r["system"] == "ours" and "failed" in r] == ["q11"]
    assert any(len(r["list"]) > 1 for r in two["rerank/asked.jsonl"])
    assert any(r["calls"] > 1 for r in two["rerank/asked.jsonl"])
    # One of them speaks.
    assert "done" in said[0] and "[label]" not in said[1]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["-1, 1, 1", "1, 2, 1", "1, 1, 2"])
def test_two_processes_do_every_stage_as_one(place, model, scorer, mesh):
    """Rows divided, weights divided, or both processes at work on the same rows."""
    stages = FAST + MORE
    ended(start([written(model, "one", stages, scorer=str(scorer))], 1))
    ended(start([written(model, "two", stages, mesh, scorer=str(scorer))], 2))
    one, two = (contents(place / "runs" / name) for name in ("one", "two"))
    assert len(two["rollout/rollouts.jsonl"]) == 11 and len(two["pairs/lists.jsonl"]) > 0
    written_lists = [t for r in two["similar/rollouts.jsonl"] for t in r["trajectories"]]
    assert len({t["terms"]["bertscore"] for t in written_lists}) > 3
    # Which of two lists is better would be up to rounding where they are as good; none are here.
    for rollout in one["rollout/rollouts.jsonl"]:
        rewards = sorted({trajectory["reward"] for trajectory in rollout["trajectories"]})
        assert all(b - a > 1e-3 * b for a, b in itertools.pairwise(rewards)), rollout["id"]
    assert_alike(one, two, "runs")


class Handler(JsonHandler):
    """Writes lists where several are asked for, grades where a grade is, else answers."""

    def do_POST(self) -> None:
        body = self.body()
        self.server.log.append(json.dumps(body, sort_keys=True))  # type: ignore[attr-defined]
        text = body["messages"][-1]["content"]
        says = "Score: 50" if "Score:" in text else "bern"
        if "Needed passages:" in text:
            says = f"ada works\n{text.splitlines()[-1].partition(': ')[2]}"
        if "n" in body:
            says = ("[1]", "[2], [1]", "None")[body["seed"] % 3]
        choices = [{"message": {"content": says}} for _ in range(body.get("n", 1))]
        self.reply(200, {"choices": choices, "usage": {"total_tokens": 3}})


SERVED = """
    "rollout": SampleRollouts(
        model=model, questions="asked.jsonl", samples=3, batch=8, more_passages="show_first",
        server=ServerConfig({url!r}, "m"), generator=GeneratorConfig({url!r}, "m"),
        judge=JudgeConfig({url!r}, "m"), reward=RewardWeights(judge=1.0),
    ),
    "label": Label(
        questions=("others.jsonl",), source="judge",
        judge=JudgeConfig({url!r}, "m", prompt=RELEVANCE, request_limit=300),
    ),
    "reasons": CollectReasons(
        ("{{run}}/label/others.jsonl",), model, server=ReasonConfig({url!r}, "m"),
        prompts=PromptConfig(
            style="compact", ids=6, max_list=3, rerank_tokens=64, thought_tokens=12
        ),
    ),
    "evaluate": Evaluate(
        models={{"ours": model}}, questions="asked.jsonl", top_k=(2,), examples=1, samples=2,
        batch=8, generator=GeneratorConfig({url!r}, "m"),
    ),
"""


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["-1, 1, 1", "1, 1, 2"])
def test_two_processes_ask_servers_what_one_asks(place, model, mesh):
    """Each asks of its own questions; of processes that share them, one asks."""
    asked = []
    for name, own, count in (("one", "-1, 1, 1", 1), ("two", mesh, 2)):
        with serving(Handler, log=[]) as server:
            ended(start([written(model, name, SERVED, own, url=server.url)], count))
            asked.append(Counter(text.replace(server.url, "") for text in server.log))
    assert asked[0] == asked[1] and max(asked[0].values()) == 1
    one, two = (contents(place / "runs" / name) for name in ("one", "two"))
    thoughts = [q["expert"].get("thought") for q in two["reasons/others.jsonl"]]
    assert thoughts == ["ada works"] * 5
    for each in (one, two):
        for name in [name for name in each if re.match(r"reasons(\.part-\d)?\.jsonl", name)]:
            del each[name]
    replies = {name for name in two if "judge" in name or "generator" in name}
    # Labels are asked for by each process, whatever the mesh: no model of ours is in it.
    parts = ["generator.part-0", "judge.part-0", "judge.part-1"]
    parts += [] if mesh == "1, 1, 2" else ["generator.part-1"]
    assert replies == {f"{part}.jsonl" for part in parts}
    for each in (one, two):
        for name in [name for name in each if "judge" in name or "generator" in name]:
            del each[name]
    assert_alike(one, two, "runs", ["url"])
