"""A small random policy, a small random scorer, and questions for both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import Passage, Question
from tests.small_model import save_small_model

IDS = 6
PROMPTS = PromptConfig(
    style="compact", ids=IDS, max_list=3, rerank_tokens=64, answer_prompt_tokens=64, answer_tokens=3
)
WORDS = "ada arlo lives in bern rome oslo kyiv works where who founded what".split()


def ask(number: int, passages: int = 5, **fields) -> Question:
    """A question of a few words over some passages."""
    rng = np.random.default_rng(number)
    shown = tuple(
        Passage(f"q{number}p{i}", " ".join(rng.choice(WORDS, 3))) for i in range(1, passages + 1)
    )
    question = Question(
        f"q{number}",
        " ".join(rng.choice(WORDS, 3)),
        answers=(str(rng.choice(WORDS)),),
        type=("bridge", "comparison")[number % 2],
        passages=shown,
        gold=tuple(p.id for p in shown[1:3]),
    )
    return dataclasses.replace(question, **fields)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model directory with random weights, larger than at the start of training."""
    return save_small_model(tmp_path_factory.mktemp("model"), [*WORDS, *COMPACT_WORDS], IDS)


@pytest.fixture(scope="session")
def scorer(tmp_path_factory):
    """A cross-encoder with random weights."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    where = tmp_path_factory.mktemp("scorer")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    table = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(where / "tokenizer.json"))
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(table), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, num_labels=1, initializer_range=0.4,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(where)
    return where
