"""Bad input at each program: one clear line, exit code 2, and nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
from dynarag_jax.launch.program import main
from dynarag_jax.launch.table import program
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.records import Passage, Question, question_to_json
from dynarag_jax.rollout_records import Rollout, Trajectory, rollout_to_json

PROGRAMS = (
    "gather tokenizer retrieve label sft rollout reference feedback evaluate rerank answer score "
    "compare bench export report"
).split()

CONFIG = """
from dynarag_jax.config import Run
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.stages import *

prompts = PromptConfig(
    style="compact", ids=4, max_list=3, rerank_tokens=200, answer_prompt_tokens=200, answer_tokens=5
)
run = Run(directory="runs/a", prompts=prompts)
train = dict(init="model", questions="questions.jsonl", steps=1)
stages = {
    "gather": Gather(source="questions.jsonl"),
    "tokenizer": TrainTokenizer(
        corpus="corpus.jsonl", questions=("questions.jsonl",), vocabulary=300
    ),
    "retrieve": Retrieve(
        corpus=CorpusConfig(files=("corpus.jsonl",)), questions=("questions.jsonl",), passages=2
    ),
    "label": Label(questions=("questions.jsonl",), source="gold"),
    "sft": Sft(**train),
    "rollout": SampleRollouts(model="model", questions="questions.jsonl", batch=8),
    "reference": Reference(
        model="model", rollouts="rollouts.jsonl", questions="questions.jsonl"
    ),
    "feedback": Feedback(rollouts="rollouts.jsonl", **train),
    "evaluate": Evaluate(
        models={"policy": "model"}, questions="questions.jsonl", top_k=(1,),
        batch=8,
    ),
    "rerank": Rerank(
        model="model", questions=("questions.jsonl",), batch=8,
        windows=Windows(window=4, budget=3),
    ),
    "answer": Answer(
        model="model", questions=("questions.jsonl",), lists="top-k", k=2, batch=8
    ),
    "score": Score(questions=("questions.jsonl",), predictions=("predictions.jsonl",)),
    "compare": Compare(
        questions=("questions.jsonl",), predictions=("predictions.jsonl", "b=predictions.jsonl")
    ),
    "bench": Bench(
        datasets={"nq": "questions.jsonl"}, models={"policy": "model"}, top_k=(2,),
        batch=8,
    ),
    "export": Export(model="model"),
    "report": Report(),
}
"""

TINY = DecoderConfig(vocab=304, width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp=24)


def asked(name: str, passages: int = 3) -> dict:
    found = tuple(Passage(f"{name}/{i}", f"port {name} lies on river {i}") for i in range(passages))
    gold = (f"{name}/0",) if passages else ()
    expert = (1,) if passages else ()
    return question_to_json(
        Question(
            name,
            f"where is port {name}?",
            answers=("here",),
            passages=found,
            gold=gold,
            expert=expert,
        )
    )


def jsonl(path: Path, *rows: object) -> None:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A directory with all the inputs, and a config over them."""
    place = tmp_path_factory.mktemp("good")
    text = "question : where is port q7? passages : port lies on river 2 [1], [2] None answer :"
    train_bpe([text] * 3, place / "tokens", 300)
    params = decoder.init_params(TINY, jax.random.key(0))
    save_decoder(place / "model", TINY, params, load_tokenizer(str(place / "tokens")))
    jsonl(place / "questions.jsonl", *(asked(f"q{i}") for i in range(8)))
    jsonl(place / "corpus.jsonl", *({"id": f"p{i}", "text": f"river {i}"} for i in range(4)))
    lists = (Trajectory((1,), reward=1.0), Trajectory((2,)))
    rolled = (Rollout(f"q{i}", 3, lists, policy="a", reference="b") for i in range(8))
    jsonl(place / "rollouts.jsonl", *map(rollout_to_json, rolled))
    jsonl(place / "predictions.jsonl", *({"id": f"q{i}", "answer": "here"} for i in range(8)))
    (place / "config.py").write_text(CONFIG)
    return place


@pytest.fixture
def place(good, tmp_path, monkeypatch) -> Path:
    """A copy to spoil, and the working directory."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(name: str, capsys, *options: str, config: str = "config.py") -> str:
    """The one line a program says."""
    with pytest.raises(SystemExit) as stop:
        main(name, [config, *options])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    # A log may come before it, an unfinished output may not stay.
    assert said.splitlines()[-1].startswith("error: "), said
    assert "Traceback" not in said
    left = Path("runs/a") / name
    # What is appended line by line may have been opened.
    written = {p.name for p in left.rglob("*") if p.is_file() and p.stat().st_size}
    assert written <= {"run.json", "rejects-questions.jsonl"}, written
    return said.splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_missing_config_and_an_unknown_key(name, place, capsys):
    assert "nowhere.py" in refused(name, capsys, config="nowhere.py")
    key = dataclasses.fields(program(name).config)[0].name
    with pytest.raises(SystemExit) as stop:
        main(name, ["config.py", f"--{key}x", "3"])
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"Unrecognized options: --{key}x, 3" in said, said
    assert not (place / "runs").exists()


READS = {
    "gather": ["questions.jsonl"],
    "tokenizer": ["corpus.jsonl", "questions.jsonl"],
    "retrieve": ["corpus.jsonl", "questions.jsonl"],
    "label": ["questions.jsonl"],
    "sft": ["questions.jsonl"],
    "rollout": ["questions.jsonl"],
    "reference": ["questions.jsonl", "rollouts.jsonl"],
    "feedback": ["questions.jsonl", "rollouts.jsonl"],
    "evaluate": ["questions.jsonl"],
    "rerank": ["questions.jsonl"],
    "answer": ["questions.jsonl"],
    "score": ["questions.jsonl", "predictions.jsonl"],
    "compare": ["questions.jsonl", "predictions.jsonl"],
    "bench": ["questions.jsonl"],
}
EACH = [(name, file) for name, files in READS.items() for file in files]


@pytest.mark.parametrize(("name", "file"), EACH)
def test_a_missing_file_and_a_broken_line(name, file, place, capsys):
    whole = (place / file).read_text()
    (place / file).unlink()
    assert file in refused(name, capsys)
    lines = whole.splitlines(keepends=True)
    (place / file).write_text("".join([*lines[:2], lines[2][:20] + "\n", *lines[3:]]))
    said = refused(name, capsys)
    assert f"{file}:3" in said or (file in said and "line 3" in said), said
    if name == "rollout":  # a record that can be read is set aside, and the rest goes on
        return
    # A field of the wrong kind: file, line and field.
    record = json.loads(lines[1])
    field = next(iter(set(record) & {"question", "text", "trajectories", "answer"}))
    jsonl(place / file, lines[0], record | {field: 7}, *lines[2:])
    said = refused(name, capsys)
    assert f"'{field}'" in said and file in said and "2" in said, said


@pytest.mark.parametrize(
    "name", ["label", "sft", "rollout", "evaluate", "rerank", "answer", "bench"]
)
def test_questions_without_passages(name, place, capsys):
    jsonl(place / "questions.jsonl", *(asked(f"q{i}", passages=0) for i in range(3)))
    said = refused(name, capsys)
    assert "passages" in said and "q0" in said, said


@pytest.mark.parametrize(
    "name",
    ["sft", "rollout", "reference", "feedback", "evaluate", "rerank", "answer", "bench", "export"],
)
def test_a_checkpoint_of_another_shape(name, place, capsys):
    config = json.loads((place / "model/config.json").read_text())
    config["intermediate_size"] = 40
    (place / "model/config.json").write_text(json.dumps(config))
    said = refused(name, capsys)
    assert "model" in said and "40" in said and "24" in said, said


@pytest.mark.parametrize(
    "name",
    ["sft", "rollout", "reference", "feedback", "evaluate", "rerank", "answer", "bench", "export"],
)
def test_a_missing_model(name, place, capsys):
    shutil.rmtree(place / "model")
    assert "model" in refused(name, capsys)


def test_a_report_before_its_stages(place, capsys):
    assert "evaluate" in refused("report", capsys)
