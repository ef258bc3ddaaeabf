"""A tiny policy with a tokenizer of its own, and questions for it."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Passage, Question
from dynarag_jax.sharding import make_mesh

PROMPTS = PromptConfig(
    style="compact", ids=4, max_list=3, rerank_tokens=200, answer_prompt_tokens=200, answer_tokens=5
)


def make_question(name: str, passages: int = 3, **fields) -> Question:
    texts = [f"port {name} lies on river {i}" for i in range(passages)]
    fields = {"text": f"where is port {name}?", "answers": ("here",)} | fields
    return Question(
        name, passages=tuple(Passage(f"{name}/{i}", t) for i, t in enumerate(texts)), **fields
    )


@pytest.fixture(scope="session")
def question():
    """``question(name, passages=3, **fields)``."""
    return make_question


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model directory."""
    where = tmp_path_factory.mktemp("tiny") / "model"
    text = "question : where is port q7? passages : port lies on river 2 [1], [2] None answer :"
    train_bpe([text] * 3, where, 300)
    tokenizer = load_tokenizer(str(where))
    cfg = DecoderConfig(
        vocab=-(-len(tokenizer) // 8) * 8, width=16, layers=1, heads=2, kv_heads=2, head_size=8,
        mlp=24,
    )  # fmt: skip
    save_decoder(where.parent / "out", cfg, decoder.init_params(cfg, jax.random.key(0)), tokenizer)
    return where.parent / "out"


@pytest.fixture(scope="session")
def tiny_policy(tiny_model):
    """It, on one device, and the prompts it is for."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return load_policy(tiny_model, mesh, PROMPTS), PROMPTS
