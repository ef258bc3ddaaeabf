"""A benchmark that is killed again and again ends with the records of one that was not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynarag_jax.files import read_json
from dynarag_jax.records import write_questions

from .conftest import ask

CONFIG = """
from dynarag_jax.config import Run
from dynarag_jax.stages.bench import Bench
from dynarag_jax.prompts import PromptConfig

run = Run(directory="runs/a", cpu_devices=1)
prompts = PromptConfig(
    style="compact", ids=6, max_list=3, rerank_tokens=64, answer_prompt_tokens=64, answer_tokens=3
)
stages = {
    "bench": Bench(
        datasets={"nq": "nq.jsonl", "hotpotqa": "hotpotqa.jsonl"},
        models={"DynamicRAG": "MODEL"}, top_k=(2,), scorer="SCORER", prompts=prompts, batch=16,
    )
}
"""


def start(directory: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "eval.bench", "config.py", "--run.directory", directory],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def records(directory: str) -> list[str]:
    files = sorted(Path(directory).glob("bench/predictions-*.jsonl"))
    return [line for file in files for line in file.read_text().splitlines(keepends=True)]


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing(model, scorer, tmp_path, monkeypatch):
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.chdir(tmp_path)
    Path("config.py").write_text(CONFIG.replace("MODEL", str(model)).replace("SCORER", str(scorer)))
    for name in ("nq", "hotpotqa"):
        write_questions(f"{name}.jsonl", [ask(i, 3 + i % 5) for i in range(200)])
    assert start("runs/whole").wait() == 0
    whole = records("runs/whole")
    assert len(whole) == 2 * 200 * 5
    kills = 0
    for wanted in range(150, 1900, 350):
        process = start("runs/cut")
        while process.poll() is None and len(records("runs/cut")) < wanted:
            time.sleep(0.05)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == 5
    assert start("runs/cut").wait() == 0
    assert sorted(records("runs/cut")) == sorted(whole)
    assert len(read_json("runs/cut/bench/run.json")["starts"]) == kills + 1
    for name in ("bench.md", "scores.json", "rows.jsonl"):
        assert (
            Path("runs/cut/bench", name).read_text() == Path("runs/whole/bench", name).read_text()
        )
