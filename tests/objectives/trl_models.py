"""A small Llama, a tokenizer of numbered words, and TRL's group trainers over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers


def small_llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.3, tie_word_embeddings=False, bos_token_id=None, eos_token_id=60,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tokenizer() -> Any:
    words = {f"w{i}": i for i in range(60)} | {"<eos>": 60, "<unk>": 61}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )


def group_trainer(kind: str, model: Any, place: Any, beta: float = 0.0, **settings: Any) -> Any:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    config = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig}[kind]
    make = {"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer}[kind]
    made = make(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config(
            output_dir=str(place), use_cpu=True, report_to=[], bf16=False, num_generations=3,
            per_device_train_batch_size=3, gradient_checkpointing=False, max_completion_length=6,
            beta=0.0,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w1 w2"]}), processing_class=tokenizer(),
    )  # fmt: skip
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    made.beta = beta  # given at the start, TRL would load a reference of its own; ours is handed in
    return made
