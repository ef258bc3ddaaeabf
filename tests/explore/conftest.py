"""A small real run: lists sampled, two models evaluated, by the stages themselves."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest

from dynarag_jax.config import Run, inherit
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_word_level
from dynarag_jax.explore.run_records import RunRecords
from dynarag_jax.explore.server import ExploreServer
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import Passage, Question, write_questions
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages.evaluate import Evaluate
from dynarag_jax.stages.rollout import SampleRollouts

IDS = 4
PROMPTS = PromptConfig(
    style="compact",
    ids=IDS,
    max_list=3,
    rerank_tokens=64,
    answer_prompt_tokens=64,
    answer_tokens=3,
)
WORDS = "ada arlo lives in bern rome oslo kyiv works where who founded what".split()
HOSTILE = "<script>window.hacked=1</script>"
HOSTILE_TITLE = "<img src=x onerror=window.hacked=2>\u202e"


def ask(name: str, number: int, **fields) -> Question:
    """A question of a few words over some passages."""
    rng = np.random.default_rng(number)
    shown = tuple(
        Passage(f"{name}p{i}", " ".join(rng.choice(WORDS, 3)), score=1 / i)
        for i in range(1, 2 + number % 4)
    )
    question = Question(
        name,
        " ".join(rng.choice(WORDS, 3)),
        answers=(str(rng.choice(WORDS)),),
        task=("short", "paragraph")[number % 2],
        type=("bridge", "comparison")[number % 3 > 0],
        passages=shown,
        gold=tuple(p.id for p in shown[: number % 3]),
    )
    return dataclasses.replace(question, **fields)


def save_model(where: Path, seed: int) -> None:
    """A model directory with random weights, larger than at the start of training."""
    tokenizer = load_tokenizer(where.parent.parent / "tokenizer")
    cfg = DecoderConfig(
        vocab=len(tokenizer), width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp=24,
        positions=128,
    )  # fmt: skip
    params = jax.tree.map(lambda x: 3 * x, decoder.init_params(cfg, jax.random.key(seed)))
    save_decoder(where, cfg, params, tokenizer)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """The run; nobody changes it."""
    root = tmp_path_factory.mktemp("explored") / "run"
    train_word_level([*WORDS, *COMPACT_WORDS], root / "tokenizer", IDS)
    for seed, name in enumerate(("sft", "feedback")):
        (root / name).mkdir()
        save_model(root / name / "model", seed)
    train = [ask(f"t{i}", i, expert=(1,), expert_source="gold") for i in range(12)]
    train[3] = dataclasses.replace(train[3], text=HOSTILE)
    train[3] = dataclasses.replace(
        train[3],
        passages=(dataclasses.replace(train[3].passages[0], text=HOSTILE, title=HOSTILE_TITLE),),
    )
    write_questions(root / "train.jsonl", train)
    write_questions(root / "evaluation.jsonl", [ask(f"e{i}", i + 40) for i in range(10)])
    run = Run(directory=str(root), prompts=PROMPTS, cpu_devices=1)
    stages = {
        "rollout": SampleRollouts(
            questions="{run}/train.jsonl", samples=4, sampling=Sampling(temperature=1.0),
            reward=RewardWeights(em=1.0, f1=0.5, passages=0.5), batch=8,
        ),
        "evaluate": Evaluate(
            models={"before": "{run}/sft/model", "after": "{run}/feedback/model"},
            questions="{run}/evaluation.jsonl", top_k=(1,), shuffled=True, examples=2, samples=2,
            batch=8,
        ),
    }  # fmt: skip
    stages = {name: inherit(run, stage) for name, stage in stages.items()}
    for name, stage in stages.items():
        assert run_stage(Context(run, stages, name), program_of(name, stage).run)
    return root


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """A copy of the run, to be changed; without what an explorer of the run has kept."""
    shutil.copytree(made, tmp_path / "copy", ignore=shutil.ignore_patterns(".explore"))
    return tmp_path / "copy"


class Client:
    """Asks a server."""

    def __init__(self, url: str):
        self.url = url

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET", **given):
        """Status, headers and content; given parameters are quoted."""
        query = f"?{urllib.parse.urlencode(given)}" if given else ""
        request = urllib.request.Request(
            self.url.rstrip("/") + path + query, headers=headers or {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def json(self, path: str, headers: dict[str, str] | None = None, **given):
        """Status and value."""
        status, _, content = self.get(path, headers, **given)
        return status, json.loads(content)


@pytest.fixture
def serve():
    """``serve(root)`` serves a run and gives its records and a client."""
    running = []

    def start(root: Path):
        records = RunRecords(root)
        records.wait()
        server = ExploreServer(records, "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        running.append((server, thread))
        return records, Client(server.url)

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
