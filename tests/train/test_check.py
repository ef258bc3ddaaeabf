"""``dynarag check``: each check by itself, and what every command asks before it begins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from dynarag_jax.config import Mesh, Run, inherit
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.gguf_out import save_gguf
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.tokenizers import train_bpe, train_word_level
from dynarag_jax.launch import check, checks
from dynarag_jax.launch.checks import Subject
from dynarag_jax.launch.cli import main
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.objectives.terms import ListMle, Objectives
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.judge import JudgeConfig
from dynarag_jax.stages import (
    Evaluate,
    Export,
    Feedback,
    Gather,
    Label,
    Pairs,
    Retrieve,
    SampleRollouts,
    Sft,
    Stream,
)
from dynarag_jax.training.optimizer import OptimizerConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("[a-z]*.py"))
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a corpus, questions, and an 8B of which there are config.json and names."""
    for name in ("corpus.jsonl", "train.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "model" / "tokenizer.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stages(**more):
    """A whole run of an 8B, with the stages named in ``more`` changed."""
    numerics = DecoderConfig(dtype="bfloat16", remat="full")
    return {
        "retrieve": Retrieve(
            corpus=CorpusConfig(files=("corpus.jsonl",)), questions=("train.jsonl",), source="bm25"
        ),
        "label": Label(),
        "sft": Sft(init="model", model=numerics),
        "rollout": SampleRollouts(),
        "feedback": Feedback(init="{run}/sft/model", model=numerics),
        "evaluate": Evaluate(questions="{run}/label/train.jsonl"),
        "export": Export(),
    } | more


def subject(run=Run(directory="runs/a", dtype="bfloat16"), devices="h100:8", **more):
    filled = {name: inherit(run, stage) for name, stage in stages(**more).items()}
    return Subject(run, filled, devices=check.parse_devices(devices))


def problems(found):
    return [f"{f.stage}: {f.text}" for f in found if f.level == "problem"]


def test_a_whole_run_has_nothing_wrong(place):
    run = Run(directory="runs/a", mesh=Mesh(data=1, fsdp=-1), dtype="bfloat16")
    prompts = PromptConfig(rerank_tokens=8000)
    found = check.check(replace(subject(replace(run, prompts=prompts)), here=False))
    assert problems(found) == []
    assert [f.text for f in found if f.level == "note"] == []


def test_a_packed_model_is_looked_into_once_it_is_unpacked(place, monkeypatch):
    pytest.importorskip("gguf", reason="packed models need the extra gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    tokenizer = train_bpe(["[1], [2] None : Question Passages Answer"] * 4, place / "tokens", 280)
    cfg = DecoderConfig(
        vocab=320, width=64, layers=1, heads=2, kv_heads=1, head_size=32, mlp=64, positions=128
    )
    save_decoder(place / "tiny", cfg, decoder.init_params(cfg, jax.random.key(0)), tokenizer)
    save_gguf(place / "tiny", place / "tiny.gguf", "f16")
    packed = subject(sft=Sft(init="tiny.gguf"), devices="cpu:1")

    def said(one):
        return [f for f in one(packed) if f.stage == "sft"]

    assert said(checks.check_memory) == said(checks.check_lengths) == []
    model_directory("tiny.gguf")
    (fits,) = said(checks.check_memory)
    assert "GiB a device by the plan" in fits.text
    (long, _) = said(checks.check_lengths)
    assert long.level == "problem" and "the model has 128 positions" in long.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"label": Label(questions=("train.json",))}, "train.json': no such file"),
        ({"sft": Sft(init="modl")}, "sft: init 'modl': no such file or directory (did you mean"),
        (
            {"label": Label(questions=("{run}/retrieve/trian.jsonl",))},
            "stage 'retrieve' makes train.jsonl, train.trec (did you mean 'train.jsonl'?)",
        ),
        (
            {"label": Label(questions=("{run}/feedback/model",))},
            "is not there yet, and the stage that makes it, 'feedback', comes later; put it first",
        ),
        (
            {"sft": Sft(init="model", questions="{run}/lable/train.jsonl")},
            "is not there, and no stage makes it (did you mean 'label'?)",
        ),
        ({"gather": Gather()}, "gather: source '': is empty; name the file to read"),
        (
            {"label": Label(source="scores", scorer="monot5")},
            "label: scorer 'monot5': no such file or directory",
        ),
        (
            {"retrieve": Retrieve(questions=("train.jsonl",), encoder="package:no_such_one")},
            "retrieve: encoder 'package:no_such_one': is not installed; install it with: pip",
        ),
        (
            {"retrieve": Retrieve(
                questions=("train.jsonl",), source="bm25", corpus=CorpusConfig(files=("x/*.gz",))
            )},
            "retrieve: corpus.files 'x/*.gz': no file fits this pattern",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_mend(place, more, message):
    (changed,) = more
    found = checks.check_paths(replace(subject(**more), names=(changed,)))
    assert len(problems(found)) == 1 and message in problems(found)[0], found


def test_an_incomplete_model_is_named_by_what_it_lacks(place):
    lacks = {
        "tokenizer.json": "no tokenizer in it",
        "model.safetensors": "no weights in it",
        "config.json": "no config.json in it",
    }
    for name, text in lacks.items():
        (place / "model" / name).unlink()
        assert text in problems(checks.check_paths(subject()))[0]
    # A tokenizer of its own is named in the configuration.
    (place / "other").mkdir()
    own = Sft(init="model", tokenizer="other")
    assert "no config.json" in problems(checks.check_paths(subject(sft=own)))[0]


def test_hub_ids_come_from_the_hub_unless_it_is_off(place, monkeypatch):
    import huggingface_hub.constants as constants

    own = subject(sft=Sft(init="owner/name"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = checks.check_paths(own)
    assert problems(found) == []
    assert "init owner/name (from the hub, when it runs)" in [f.text for f in found]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the hub's cache" in problems(checks.check_paths(own))[0]


def test_packages_are_those_that_the_configuration_needs(place, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    absent = {"scann", "rax", "bm25s", "wandb"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in absent else real(name, *a)
    )
    run = Run(directory="runs/a", wandb="mine")
    terms = Objectives(list_mle=ListMle(weight=1.0))
    found = problems(
        checks.check_packages(
            subject(
                run,
                sft=Sft(init="model", reranker=Stream(objectives=terms)),
                again=Retrieve(index=IndexConfig(kind="scann")),
            )
        )
    )
    assert len(found) == 4
    for package, extra in (("wandb", "watch"), ("bm25s", "retrieval"), ("rax", "listwise")):
        assert any(f"'{package}'" in f and f"dynarag_jax[{extra}]" in f for f in found)
    # ``auto`` does without ScaNN, and a stream without a batch trains nothing.
    silent = Sft(init="model", reranker=Stream(batch=0, objectives=terms))
    own = subject(sft=silent, retrieve=Retrieve(questions=("train.jsonl",)))
    assert problems(checks.check_packages(own)) == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_no_config_compares_log_probabilities_of_two_types(config):
    run, stages = read_config(config)
    stages = {name: inherit(run, stage) for name, stage in stages.items()}
    assert checks.check_logps(replace(subject(), run=run, stages=stages)) == []


def test_log_probabilities_of_another_type_are_a_problem():
    """What the stage refuses once it has read the rollouts is said before any is sampled."""
    rollout, feedback = SampleRollouts(dtype="float32"), Feedback(model=DecoderConfig())
    assert checks.check_logps(subject(rollout=rollout, feedback=feedback)) == []
    rounded = replace(feedback, model=DecoderConfig(dtype="bfloat16"))
    (found,) = checks.check_logps(subject(rollout=rollout, feedback=rounded))
    assert (found.level, found.stage, found.sure) == ("problem", "feedback", True)
    assert "model.dtype is bfloat16, and 'rollout' computes" in found.text
    assert "in float32: their difference would be rounding" in found.text
    # Where no log-probability on record is read, types may differ.
    alone = replace(rounded, reranker=Stream(batch=8, objectives=Objectives()))
    assert checks.check_logps(subject(rollout=rollout, feedback=alone)) == []


def test_servers_without_a_key_are_noted_and_judges_without_a_url_refused(place, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    weighed = RewardWeights(judge=1.0)
    found = checks.check_keys(subject(rollout=SampleRollouts(reward=weighed)))
    assert "set judge.url and judge.model" in problems(found)[0]
    for url, level in (("https://host/v1", "note"), ("http://localhost:8000/v1", "ok")):
        judge = JudgeConfig(url=url, model="m")
        one = checks.check_keys(subject(rollout=SampleRollouts(reward=weighed, judge=judge)))
        assert [f.level for f in one] == [level]
    assert checks.check_keys(subject()) == []
    assert checks.check_keys(subject(sft=Sft())) == []  # its generator is a stream, not a server


def test_stages_that_disagree_are_noted(place):
    other = PromptConfig(style="compact", ids=10)
    found = checks.check_agreement(
        subject(evaluate=Evaluate(prompts=other, dtype="float32"), pairs=Pairs(style="instruct"))
    )
    said = sorted(f.text.partition(",")[0] for f in found)
    assert {f.stage for f in found} == {"evaluate"}
    assert said == ["dtype is float32", "prompts.ids is 10", "prompts.style is compact"]


@pytest.mark.parametrize(
    ("tokens", "level"), [(8000, "ok"), (8192, "note"), (9000, "problem")]
)  # fmt: skip
def test_prompts_are_compared_with_the_models_positions(place, tokens, level):
    run = Run(directory="runs/a", prompts=PromptConfig(rerank_tokens=tokens))
    found = checks.check_lengths(subject(run))
    # The list's 15 ids and its end: 77 tokens where no tokenizer counts them.
    assert {f.stage for f in found} == {"sft", "rollout", "feedback", "evaluate"}
    assert {f.level for f in found} == {level}
    if level == "note":
        assert f"rerank_tokens = {8192 - 77} leaves room" in found[0].text


def test_a_tokenizer_counts_what_a_passage_gets(place):
    """A word-level tokenizer: instruction, question and list are so many words."""
    from dynarag_jax.prompts import rerank_messages
    from dynarag_jax.records import Question

    words = " ".join(m["content"] for m in rerank_messages(Question("", "?"), (), "compact"))
    train_word_level([words, *COMPACT_WORDS], place / "words", 4)
    prompts = PromptConfig(
        style="compact", ids=4, max_list=4, rerank_tokens=100, answer_prompt_tokens=100
    )
    own = subject(
        Run(directory="runs/a", prompts=prompts), sft=Sft(tokenizer="words", model=DecoderConfig())
    )
    bare = len(words.split())
    found = checks.check_lengths(replace(own, tokenizers=True, names=("sft",)))
    assert f"4 passages of {(100 - bare) // 4} tokens" in found[0].text


def test_more_candidates_than_a_prompt_shows_are_noted(place):
    found = checks.check_candidates(subject(retrieve=Retrieve(passages=100)))
    assert {f.stage for f in found} == {"sft", "rollout", "feedback", "evaluate"}
    assert all("finds 100 passages a question, and a prompt shows 45; " in f.text for f in found)
    said = {f.stage: f.text.split("; ")[1] for f in found}
    assert said.pop("evaluate") == "windows go over all of them (more_passages = windows)"
    assert set(said.values()) == {"the first ones are shown (more_passages = windows)"}
    assert checks.check_candidates(subject()) == []


def test_memory_is_the_plans(place):
    whole = OptimizerConfig()
    fit = subject(Run(directory="runs/a", mesh=Mesh(data=1, fsdp=-1)))
    assert problems(checks.check_memory(fit)) == []
    tight = checks.check_memory(subject(devices="h100:1"))
    assert len(problems(tight)) == 2 and "does not fit" in tight[0].text
    assert all(f.sure for f in tight)  # weights and moments alone exceed it
    small = Sft(
        init="model",
        model=DecoderConfig(dtype="bfloat16", param_dtype="bfloat16"),
        lora=LoraConfig(rank=8),
        optimizer=whole,
    )
    only = checks.check_memory(replace(subject(devices="h100:1", sft=small), names=("sft",)))
    # Weights fit, activations do not: an estimate, which is said and ends nothing.
    assert [(f.level, f.sure) for f in only] == [("problem", False)]
    odd = Sft(init="model", reranker=Stream(batch=6))
    found = checks.check_memory(replace(subject(sft=odd), names=("sft",)))
    assert "reranker.batch = 6 does not divide over 8 batch shards" in problems(found)[0]


def test_disk_counts_checkpoints_that_are_kept(place, monkeypatch):
    import shutil
    from collections import namedtuple

    parameters = 8_030_261_248
    # Whole weights and two moments in float32, two kept and one in writing; then the model.
    least = 2 * (3 * 12 + 4) * parameters
    usage = namedtuple("usage", "total used free")
    for free, level in ((least * 1.01, "ok"), (least * 0.99, "problem")):
        monkeypatch.setattr(shutil, "disk_usage", lambda p, free=free: usage(0, 0, int(free)))
        own = subject(Run(directory="runs/a", mesh=Mesh(data=1, fsdp=-1)))
        assert [f.level for f in checks.check_disk(own)] == [level]
    elsewhere = checks.check_disk(replace(own, here=False))
    assert [f.level for f in elsewhere] == ["ok"]


def test_the_quick_form_ends_only_what_is_certain_to_fail(place, capsys):
    run = Run(directory="runs/a", dtype="bfloat16")
    retrieve = Retrieve(
        questions=("train.jsonl",), corpus=CorpusConfig(files=("corpus.jsonl",)), encoder="nowhere"
    )
    own = {"retrieve": inherit(run, retrieve), "label": Label()}
    with pytest.raises(InputError, match="retrieve: encoder 'nowhere': no such file"):
        check.require(run, own)
    with pytest.raises(InputError, match="encoder 'nowhere'"):
        check.require(run, own, ["retrieve"], alone=True)
    # Alone, a stage says itself what the ones before it have not made.
    check.require(run, own, ["label"], alone=True)
    # What stands is not asked for.
    (place / "runs/a/retrieve").mkdir(parents=True)
    (place / "runs/a/retrieve/done.json").touch()
    check.require(run, own)
    # Several are said, a line each, and the first ends it.
    more = {"one": retrieve, "two": replace(retrieve, encoder="elsewhere")}
    capsys.readouterr()
    with pytest.raises(InputError, match="2 problems, and nothing was begun; the first: one"):
        check.require(run, more)
    assert capsys.readouterr().err.count("problem: ") == 2


CONFIG = """
from dynarag_jax.config import Run
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.stages import Label, Retrieve

run = Run(directory="runs/a")
stages = {
    "retrieve": Retrieve(
        corpus=CorpusConfig(files=("corpus.jsonl",)), questions=("train.jsonl",), source="bm25"
    ),
    "label": Label(),
}
"""


def test_the_command_prints_a_line_a_finding_and_ends_with_2_on_problems(place, capsys):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    (place / "mine.py").write_text(CONFIG)

    def ended(*arguments):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    code, out, _ = ended("check", "mine.py")
    assert code == 0
    assert "ok       label: questions from 'retrieve'\n" in out
    code, out, err = ended("check", "mine.py", "--retrieve.questions", "gone.jsonl")
    assert code == 2 and err == "error: mine.py: 2 problems, see above\n"
    assert "problem  retrieve: questions 'gone.jsonl': no such file or directory" in out
    assert "problem  label: questions '{run}/retrieve/train.jsonl': stage 'retrieve' makes" in out
    code, _, err = ended("run", "mine.py", "--retrieve.questions", "gone.jsonl")
    assert code == 2 and "2 problems, and nothing was begun" in err
    assert not Path("runs/a/retrieve").exists()
    code, _, err = ended("check", "--devices", "h100:many", "mine.py")
    assert code == 2 and "'many' is no number" in err
