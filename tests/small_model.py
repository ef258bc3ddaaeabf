"""A model directory with random weights, small enough to run in a test."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax

from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_word_level
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig


def save_small_model(place: Path, words: Iterable[str], ids: int) -> Path:
    """Write one layer over a vocabulary of words and ids; its weights are larger than at the
    start of training, so that its choices differ."""
    train_word_level([*words], place / "tokenizer", ids)
    tokenizer = load_tokenizer(place / "tokenizer")
    cfg = DecoderConfig(
        vocab=len(tokenizer), width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp=24,
        positions=128,
    )  # fmt: skip
    params = jax.tree.map(lambda x: 3 * x, decoder.init_params(cfg, jax.random.key(1)))
    save_decoder(place / "model", cfg, params, tokenizer)
    return place / "model"
