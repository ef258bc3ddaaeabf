"""Small real models to serve: one that writes lists and answers, one that scores pairs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.prompts import PromptConfig

IDS = 12
PROMPTS = PromptConfig(
    style="compact", ids=IDS, max_list=3, rerank_tokens=400, answer_prompt_tokens=200,
    answer_tokens=8,
)  # fmt: skip
WORDS = "where is port q river lies on the sea of arlo bex ada founded who what 0 1 2 3 4 5 6 7 8 9"


@pytest.fixture(scope="session")
def one_device():
    return jax.devices()[:1]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A model directory as a run leaves it: what trained it stands in run.json beside it."""
    stage = tmp_path_factory.mktemp("run") / "feedback"
    text = f"question : {WORDS}? passages : [1], [2], [10] None answer :"
    train_bpe([text] * 3, stage / "tokenizer", 300)
    tokenizer = load_tokenizer(str(stage / "tokenizer"))
    cfg = DecoderConfig(
        vocab=-(-len(tokenizer) // 8) * 8, width=16, layers=1, heads=2, kv_heads=2, head_size=8,
        mlp=24, positions=512,
    )  # fmt: skip
    params = decoder.init_params(cfg, jax.random.key(0))
    # Larger than at the start of training, so that lists differ from question to question.
    params = jax.tree.map(lambda x: x * (4.0 if x.ndim > 1 else 1.0), params)
    save_decoder(stage / "model", cfg, params, tokenizer)
    recorded = {"class": "PromptConfig", **dataclasses.asdict(PROMPTS)}
    (stage / "run.json").write_text(json.dumps({"config": {"prompts": recorded}}))
    return stage / "model"


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory) -> Path:
    """A directory of a cross-encoder with one logit, made by transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    where = tmp_path_factory.mktemp("cross")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    table = {word: i for i, word in enumerate([*special, *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", table["[CLS]"]), ("[SEP]", table["[SEP]"])],
    )
    tokenizer.save(str(where / "tokenizer.json"))
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(table), hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=64, num_labels=1, initializer_range=0.4,
        )
    )  # fmt: skip
    model.save_pretrained(where)
    return where
