"""Exports under transformers 4, which serving engines pin, in an environment of its own.

The environment is made once, below .cache, by pip; where pip gets nothing, the test is skipped.
PyTorch comes from the environment of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from dynarag_jax.exchange.convert import Convert, convert
from dynarag_jax.exchange.tokenizers import load_tokenizer, save_tokenizer, train_bpe

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

VERSION = "4.57.6"
SHAPE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.15, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
FAMILIES = {
    "LlamaConfig": {"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 500.0}},
    "MistralConfig": {"sliding_window": 7, "head_dim": 8},
    "Qwen2Config": {"tie_word_embeddings": True},
    "Qwen3Config": {"head_dim": 16},
    "Gemma2Config": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24},
    "Gemma3TextConfig": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24},
    "SmolLM3Config": {"no_rope_layers": [1, 0]},
    "Olmo2Config": {},
    "GraniteConfig": {"attention_multiplier": 0.2, "embedding_multiplier": 3.0},
    "Phi3Config": {
        "sliding_window": 9, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5], "long_factor": [4.0, 5.0]}},
}  # fmt: skip
READ = """
import json, sys, numpy as np, torch, transformers
assert transformers.__version__ == sys.argv[1]
out = {}
for name, directory in json.loads(sys.argv[2]).items():
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    model.set_attn_implementation("eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("is [2] needed? <extra>")["input_ids"]
    with torch.no_grad():
        logits = model.float().eval()(torch.arange(40)[None]).logits.numpy()
    out |= {name + "/logits": logits, name + "/ids": np.array(ids)}
    out[name + "/ends"] = np.array(model.generation_config.eos_token_id)
np.savez(sys.argv[3], **out)
"""


@pytest.fixture(scope="module")
def python4() -> Path:
    """A Python with transformers 4."""
    where = Path(__file__).parents[2] / ".cache" / f"transformers-{VERSION}"
    python = where / "bin" / "python"
    if not (where / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", where], check=True)
        wanted = [f"transformers=={VERSION}", "protobuf", "sentencepiece", "jinja2"]
        done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True)
        if done.returncode:
            pytest.skip(f"pip cannot install transformers {VERSION} here")
        site = next(where.glob("lib/python*/site-packages"))
        # Behind the environment's own packages: PyTorch is found there, transformers is not.
        (site / "zz_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (where / "made").write_text(VERSION)
    return python


def test_transformers_4_reads_what_is_exported(python4, tmp_path):
    train_bpe(["is [1], [2] needed? None"] * 4, tmp_path / "tokenizer", 280)
    exports, expected = {}, {}
    for kind, fields in FAMILIES.items():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**{**SHAPE, **fields})
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        model.float().eval().save_pretrained(tmp_path / kind)
        source, target = tmp_path / kind, tmp_path / f"{kind}-out"
        convert(Convert(str(source), str(target), tokenizer=str(tmp_path / "tokenizer")))
        exports[kind] = str(target)
        with torch.no_grad():
            expected[kind] = model(torch.arange(40)[None]).logits.numpy()
    # A tokenizer with a token of its own, written by the installed release.
    changed = load_tokenizer(tmp_path / "tokenizer")
    changed.add_tokens(["<extra>"], special_tokens=True)
    changed.chat_template = "{{ messages[0].content }}"
    exports["changed"] = exports["LlamaConfig"] + "-changed"
    subprocess.run(["cp", "-r", exports["LlamaConfig"], exports["changed"]], check=True)
    save_tokenizer(changed, Path(exports["changed"]))
    out = tmp_path / "read.npz"
    subprocess.run([python4, "-c", READ, VERSION, json.dumps(exports), out], check=True)
    read = np.load(out)
    plain = load_tokenizer(tmp_path / "tokenizer")
    for name in exports:
        ours = changed if name == "changed" else plain
        logits = expected["LlamaConfig" if name == "changed" else name]
        np.testing.assert_allclose(read[f"{name}/logits"], logits, atol=1e-5, err_msg=name)
        assert read[f"{name}/ids"].tolist() == ours("is [2] needed? <extra>")["input_ids"]
        assert read[f"{name}/ends"].tolist() == plain.eos_token_id
        assert (Path(exports[name]) / "generation_config.json").is_file()
