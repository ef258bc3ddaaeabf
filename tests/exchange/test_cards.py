"""The model card: what it shows is run, and what made the model stands beside it."""

from __future__ import annotations

import re

import jax
import pytest

from dynarag_jax.exchange.cards import model_card
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_word_level
from dynarag_jax.files import read_json
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.prompts import COMPACT_WORDS


@pytest.mark.parametrize("style", ["", "compact", "instruct"])
def test_the_usage_with_transformers_runs(tmp_path, style, capsys, monkeypatch):
    pytest.importorskip("torch")
    train_word_level([*COMPACT_WORDS, "what", "bern"], tmp_path / "tokenizer", 5)
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    cfg = DecoderConfig(
        vocab=len(tokenizer), width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp=24,
        positions=512,
    )  # fmt: skip
    manifest = {"seed": 0, "stages": {"sft": {"config": {"steps": 3}}, "feedback": {}}}
    card = model_card("A title", "About it.", "float32", manifest, "org/base", style)
    params = decoder.init_params(cfg, jax.random.key(0))
    save_decoder(tmp_path / "model", cfg, params, tokenizer, card=card)
    assert read_json(tmp_path / "model" / "manifest.json") == manifest
    page = (tmp_path / "model" / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: transformers\n") and "base_model: org/base" in page
    assert "(sft, feedback)" in page and len(page) < 3000
    first, second = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    compile(second, "vllm", "exec")
    monkeypatch.chdir(tmp_path / "model")
    scope: dict = {}
    exec(first, scope)
    assert scope["written"].shape[1] > len(scope["prompt"])
