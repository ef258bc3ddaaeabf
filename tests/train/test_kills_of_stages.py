"""Every stage killed by SIGKILL in its midst, and the same files in the end as if nothing was."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dynarag_jax.facts.world import make_world
from dynarag_jax.files import read_json
from dynarag_jax.launch.cli import main
from dynarag_jax.launch.options import load_config
from tests.small_quickstart import needs_encoder

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

HEAD = """
from dynarag_jax.config import Run
from dynarag_jax.facts.world import WorldConfig
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.stages import *

prompts = PromptConfig(
    style="compact", ids=4, max_list=4, rerank_tokens=80, answer_prompt_tokens=80, answer_tokens=4
)
run = Run(directory="runs/a", prompts=prompts)
model = DecoderConfig(width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=16)
# A model that knows nothing answers nothing: say that shorter lists are better.
reward = RewardWeights(em=0.0, passages=0.0, length=1.0, price=0.1)
world = WorldConfig(
    train_questions=48, evaluation_questions=24, workers=40, companies=20, cities=12, countries=6,
    evaluation_workers=16, evaluation_companies=8, evaluation_cities=6, evaluation_countries=4,
)
trained = dict(
    questions="{run}/label/train.jsonl", model=model, generator=Stream(batch=8), steps=12,
    checkpoint_every=4, log_every=1, lengths=1,
)
files = ("{run}/facts/train.jsonl", "{run}/facts/evaluation.jsonl")
asked = "{run}/retrieve/evaluation.jsonl"
corpus = CorpusConfig(files=("{run}/facts/corpus.jsonl",))
dpo = Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0))
"""

WITHOUT_MODELS = """
stages = {
    "facts": Facts(world=world),
    "tokenizer": TrainTokenizer(corpus="{run}/facts/corpus.jsonl", questions=files, vocabulary=320),
    "retrieve": Retrieve(
        corpus=corpus, questions=files, passages=4, source="bm25", evaluate=True, batch=8
    ),
    "gather": Gather(source="{run}/retrieve/train.jsonl"),
    "label": Label(questions=("{run}/retrieve/train.jsonl",), source="gold"),
    "contrast": Contrast(),
    "pairs": Pairs(rollouts="{run}/contrast/rollouts.jsonl", style="compact"),
    "score": Score(questions=(asked,), predictions=("answers.jsonl",)),
    "compare": Compare(questions=(asked,), predictions=("answers.jsonl", "silence.jsonl")),
}
"""

WITH_MODELS = """
stages = {
    "facts": Facts(world=world),
    "tokenizer": TrainTokenizer(corpus="{run}/facts/corpus.jsonl", questions=files, vocabulary=320),
    "embed": Embed(corpus=corpus, shard=50),
    "index": BuildIndex(),
    "update": Update(add=("more.jsonl",)),
    "retrieve": Retrieve(
        embedded="{run}/update", indexed="{run}/update", questions=files, passages=4,
        source="hybrid", evaluate=True, batch=8,
    ),
    "whole": Retrieve(corpus=corpus, questions=files[1:], passages=2),
    "gather": Gather(source="{run}/retrieve/train.jsonl"),
    "label": Label(questions=("{run}/retrieve/train.jsonl",), source="gold"),
    "sft": Sft(tokenizer="{run}/facts/tokenizer", reranker=Stream(batch=8), **trained),
    "rollout": SampleRollouts(reward=reward, batch=8, samples=4),
    "reference": Reference(batch=8),
    "feedback": Feedback(
        init="{run}/sft/model", reranker=Stream(batch=8, objectives=dpo), **trained
    ),
    "evaluate": Evaluate(
        models={"behavior cloning": "{run}/sft/model", "after feedback": "{run}/feedback/model"},
        questions=asked, top_k=(1, 2), examples=2, samples=2, reward=reward, batch=8,
    ),
    "rerank": Rerank(questions=(asked,), batch=4),
    "answer": Answer(batch=4),
    "score": Score(questions=(asked,), predictions=("{run}/answer/evaluation.jsonl",)),
    "compare": Compare(
        questions=(asked,), predictions=("{run}/evaluate/predictions.jsonl",), baseline="top-1"
    ),
    "bench": Bench(datasets={"nq": asked}, baselines=("none", "top-k"), top_k=(1,), batch=4),
    "pairs": Pairs(style="compact"),
    "contrast": Contrast(),
    "export": Export(dtype="float32"),
    "report": Report(),
}
"""

OF_THE_CLOCK = {
    *("time", "seconds", "waiting", "tokens_per_second", "host_memory_gib", "prompts_per_second"),
    *("started", "finished", "starts", "peak_memory_bytes", "command", "status"),
    *("build_seconds", "queries_per_second", "milliseconds", "seconds_total"),
}
"""what a record says about this machine, hour and attempt"""

RECORDS = {"run.json", "done.json", "manifest.json", "summary.json"}
"""files that say how the others were made, and when"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A config file with every stage, a file of passages to add, and work going on there."""
    (tmp_path / "light.py").write_text(HEAD + WITHOUT_MODELS)
    (tmp_path / "heavy.py").write_text(HEAD + WITH_MODELS)
    more = [{"id": f"m{i}", "title": "", "text": f"Port {i} is a city."} for i in range(30)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(one) + "\n" for one in more))
    monkeypatch.chdir(tmp_path)
    asked = make_world(load_config("light.py")[1]["facts"].world, 0).evaluation
    for name, answers in (
        ("answers", [q.answers[0] for q in asked]),
        ("silence", [""] * len(asked)),
    ):
        rows = [{"id": q.id, "answer": a} for q, a in zip(asked, answers, strict=True)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def start(monkeypatch):
    """Starts ``dynarag`` in a process forked from one that has imported everything, but no more."""
    for name in [name for name in os.environ if name.startswith(("JAX_NUM", "XLA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dynarag_jax.launch.pipeline", "dynarag_jax.stages"])

    def start(*arguments: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=main, args=(arguments,))
        process.start()
        return process

    return start


def finish(start: Callable, *arguments: str) -> None:
    process = start(*arguments)
    process.join(3600)  # a machine may be busy
    assert process.exitcode == 0, arguments


def kill_when(begun: Callable[[], bool], delay: float, start: Callable, *arguments: str) -> None:
    """Start, and send SIGKILL ``delay`` seconds after it has ``begun``; it may have ended."""
    process = start(*arguments)
    try:
        until = time.monotonic() + 1800
        while not begun() and process.is_alive() and time.monotonic() < until:
            time.sleep(0.001)
        process.join(delay)
    finally:
        process.kill()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)


def without_clock(value):
    """A record without what differs from one attempt to the next."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in OF_THE_CLOCK}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def content(path: Path):
    """What a file holds, without the clock."""
    if path.name == "metrics.jsonl":
        if path.parent.name not in ("sft", "feedback"):
            return None  # means since the last report, and an attempt reports at its own moments
        return [without_clock(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "report.html" or (path.parent.name == "report" and path.name in RECORDS):
        return None  # tells how long everything took, and what its files hash to
    if path.name in RECORDS:
        return without_clock(json.loads(path.read_text()))
    return path.read_bytes()


def made(root: Path) -> dict[str, object]:
    """Everything a run holds but caches and locks; of checkpoints, which there are."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if inside.parts[0].startswith("."):
            continue
        if "checkpoints" in inside.parts:
            found["/".join(inside.parts[:3])] = None
        elif path.is_file():
            found[str(inside)] = content(path)
    return found


def assert_same(one: Path, other: Path) -> None:
    """Both runs hold the same files."""
    first, second = made(one), made(other)
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def kill_every_stage(config: str, start: Callable) -> None:
    """Run a config straight, and once more with every stage killed in its midst; compare.

    Both runs have the same name: models say what made them, with paths, and others hash models.
    """
    finish(start, "run", config)
    straight, disturbed = Path("runs/straight"), Path("runs/a")
    disturbed.rename(straight)
    seconds = {p.parent.name: read_json(p)["seconds"] for p in straight.glob("*/done.json")}
    order = list(load_config(config)[1])
    assert set(seconds) == set(order)
    command = ("run", config)
    rng = random.Random(0)
    for name in order:
        record, done = disturbed / name / "run.json", disturbed / name / "done.json"

        def begun(record=record) -> bool:
            return record.exists()

        for share in (1.0, 0.5, 0.0, 0.0):
            kill_when(begun, rng.uniform(0, share) * seconds[name], start, *command)
            if not done.exists():
                break  # in its midst
            shutil.rmtree(done.parent)  # it was faster
        else:
            # Some are over before a signal comes.
            assert seconds[name] < 0.1, f"{name} was never hit"
    finish(start, *command)
    again = [name for name in order if len(read_json(disturbed / name / "run.json")["starts"]) > 1]
    assert len(again) > len(order) / 2
    assert_same(straight, disturbed)


def test_every_stage_without_a_model_is_killed_and_the_run_ends_as_if_nothing_was(place, start):
    kill_every_stage("light.py", start)


@needs_encoder
def test_every_stage_with_a_model_is_killed_and_the_run_ends_as_if_nothing_was(place, start):
    kill_every_stage("heavy.py", start)


def programs(place: Path) -> dict[str, Sequence[str]]:
    """Programs over plain files, by the file or directory each one makes."""
    rows = [
        {"id": f"q{i}", "question": f"Who is number {i}?", "answers": [f"n{i}"]}
        for i in range(20_000)
    ]
    (place / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "out.jsonl": ("convert_data", "q.jsonl", "out.jsonl"),
        "out.trec.gz": ("convert_data", "q.jsonl", "out.trec.gz", "--to", "flashrag"),
        "sets/mine/1.0.0": (
            *("prepare", "mine", "--from", "validation=q.jsonl", "--task", "short"),
            *("--directory", "sets"),
        ),
        "copy": ("convert", "runs/tiny", "copy", "--dtype", "float32"),
    }


def test_a_killed_conversion_leaves_its_target_whole_or_not_there(place, start):
    pytest.importorskip("array_record", reason="prepare needs the extra data")
    import jax

    from dynarag_jax.exchange.decoders import save_decoder
    from dynarag_jax.exchange.tokenizers import train_bpe
    from dynarag_jax.models import decoder

    tokenizer = train_bpe(["[1], [2] None : Question Passages Answer"], place / "tokens", 300)
    cfg = decoder.DecoderConfig(
        vocab=320, width=256, layers=8, heads=4, kv_heads=2, head_size=64, mlp=1024
    )
    save_decoder(place / "runs/tiny", cfg, decoder.init_params(cfg, jax.random.key(0)), tokenizer)
    rng = random.Random(0)

    def names(directory: Path) -> set[str]:
        return {path.name for path in directory.glob("*")}

    def remove(target: Path) -> None:
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()

    def files(target: Path) -> dict[str, bytes]:
        inside = sorted(target.rglob("*")) if target.is_dir() else [target]
        return {str(p.relative_to(target)): p.read_bytes() for p in inside if p.is_file()}

    for made_there, command in programs(place).items():
        target = place / made_there
        before = names(target.parent)
        finish(start, *command)
        whole = files(target)
        for number in range(4):
            remove(target)

            def begun(target=target, before=before) -> bool:
                return bool(names(target.parent) - before)

            kill_when(begun, rng.uniform(0, 0.1 * number), start, *command)
            if target.exists():
                assert files(target) == whole
                remove(target)
            finish(start, *command)
            assert files(target) == whole
        left = names(target.parent) - before
        assert left == {target.name}, f"{command}: left behind {left}"
