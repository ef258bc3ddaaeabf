"""Streams of examples from question files: which of their questions each stream reads."""

from __future__ import annotations

import jax
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import train_word_level
from dynarag_jax.models.decoder import DecoderConfig, init_params
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import Passage, Question
from dynarag_jax.sharding import make_mesh
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.config import Stream
from dynarag_jax.training.run import begin, behavior_source, example_maker

PROMPTS = PromptConfig(
    style="compact", ids=2, max_list=2, rerank_tokens=32, answer_prompt_tokens=32, answer_tokens=4
)


def questions(*experts):
    passages = (Passage("0", "w0"), Passage("1", "w1"))
    return [
        Question(f"q{i}", "w0", ("w1",), passages=passages, expert=expert)
        for i, expert in enumerate(experts)
    ]


def test_only_questions_with_an_experts_list_are_imitated(tmp_path):
    tokenizer = train_word_level(["w0", "w1", *COMPACT_WORDS], tmp_path / "tokenizer", 2)
    cfg = DecoderConfig(vocab=len(tokenizer), width=8, layers=1, heads=1, kv_heads=1, head_size=8)
    save_decoder(tmp_path / "init", cfg, init_params(cfg, jax.random.key(0)), tokenizer)
    stage = Sft(
        init=str(tmp_path / "init"), prompts=PROMPTS, model=cfg, reranker=Stream(batch=1)
    )  # fmt: skip
    start = begin(stage, tmp_path / "init", None, make_mesh(1, devices=jax.devices()[:1]))
    maker = example_maker(stage, start)
    # The empty list is a list; none is none.
    source = behavior_source(stage, start, questions(None, (2, 1), None, ()), maker, 0)
    assert source.size == 2
    assert [source.make(0, i).ranking for i in range(2)] == [(2, 1), ()]
    with pytest.raises(InputError, match="none of 2 questions has an expert's list, 'q0' among"):
        behavior_source(stage, start, questions(None, None), maker, 0)
