"""A tiny BERT with random weights, saved as transformers and sentence-transformers save theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from dynarag_jax.exchange.encoders import LoadedEncoder, load_encoder

WORDS = (
    "the a cat dog sat ran on in mat park red blue green who where what fast slow new old".split()
)


def write_tokenizer(directory: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = [*special, *WORDS, *(f"##{c}" for c in "abcdefghij"), *"abcdefghij"]
    tokenizer = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(vocabulary))}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As published tokenizers often come: padding and truncation left switched on.
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(16)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_bert(directory: Path, seed: int = 0, **changes: int) -> Path:
    """Random weights of a scale at which every part of the model matters."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 48,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    sizes |= {"intermediate_size": 40, "max_position_embeddings": 64} | changes
    model = BertModel(BertConfig(**sizes, initializer_range=0.4))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn_like(p))
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def write_modules(directory: Path, pooling: dict, *, normalize: bool = True, **limits) -> None:
    """The files that sentence-transformers adds."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (directory / "sentence_bert_config.json").write_text(json.dumps(limits))


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny(bert_directory: Path) -> LoadedEncoder:
    return load_encoder(bert_directory, normalize=True)
