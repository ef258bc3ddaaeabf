"""PyTorch's side of ``benchmarks.train``: the same step on transformers' Llama with SDPA, and TRL.

Every branch is a sequence of its own, prompt included, and every position is projected to the
vocabulary: what transformers and TRL do.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def make_model(sizes: dict[str, Any], directory: Path, seed: int = 0) -> None:
    """Write a randomly initialized Llama of these sizes (names of LlamaConfig)."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **sizes,
        max_position_embeddings=16384,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        attention_bias=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)


class Peer:
    """transformers' Llama with AdamW, on the CPU in float32 or on a GPU in bfloat16."""

    def __init__(self, directory: Path, learning_rate: float, remat: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = transformers.LlamaForCausalLM.from_pretrained(
            directory, attn_implementation="sdpa", dtype=torch.float32
        )
        self.model.to(self.device).train()
        if remat:
            self.model.gradient_checkpointing_enable()
        fused = self.device == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), learning_rate, weight_decay=0.0, fused=fused
        )

    def _autocast(self) -> Any:
        if self.device == "cpu":
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def logps(self, prompts: np.ndarray, branches: np.ndarray) -> torch.Tensor:
        """Log-probabilities [B, N, R] of branches [B, N, R] after prompts [B, P]."""
        b, n, r = branches.shape
        whole = np.concatenate([np.repeat(prompts, n, 0), branches.reshape(b * n, r)], 1)
        tokens = torch.as_tensor(whole, dtype=torch.long, device=self.device)
        with self._autocast():
            logits = self.model(tokens).logits[:, -r - 1 : -1].float()
        picked = torch.gather(logits.log_softmax(-1), -1, tokens[:, -r:, None])[..., 0]
        return picked.reshape(b, n, r)

    def step(self, task: str, data: tuple[np.ndarray, np.ndarray], reference: Any) -> float:
        """One update of a task on (prompts, branches): sft, dpo (with reference log-probabilities
        [B, 2, R]) or group."""
        logps = self.logps(*data)
        if task == "dpo":
            there = torch.as_tensor(reference, device=self.device)
            margin = (logps - there).sum(-1)
            loss = -torch.nn.functional.logsigmoid(0.1 * (margin[:, 0] - margin[:, 1])).mean()
        else:
            loss = -logps.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()  # waits for the device


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer in which ``w7`` is token 7, so that TRL sees the very tokens of the others."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="w0", eos_token="w1", unk_token="w0"
    )


def trl_dpo(
    directory: Path,
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]],
    steps: int,
    learning_rate: float,
    precomputed: bool,
) -> list[float]:
    """Seconds of each step of TRL's DPOTrainer but the first, over ``steps`` batches."""
    import datasets
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    def text(tokens: np.ndarray) -> str:
        return " ".join(f"w{i}" for i in tokens)

    rows = []
    size = len(batch(0)[0])
    for number in range(steps):
        prompts, branches = batch(number)
        rows += [
            {"prompt": text(p), "chosen": " " + text(b[0]), "rejected": " " + text(b[1])}
            for p, b in zip(prompts, branches, strict=True)
        ]
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        """The time of every optimizer step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.begun)

    model = transformers.LlamaForCausalLM.from_pretrained(
        directory, attn_implementation="sdpa", dtype=torch.float32
    )
    vocabulary = model.config.vocab_size
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=size,
                max_steps=steps,
                learning_rate=learning_rate,
                precompute_ref_log_probs=precomputed,
                max_length=None,
                bf16=torch.cuda.is_available(),
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=word_tokenizer(vocabulary),
            callbacks=[Clock()],
        )
        trainer.train()
    return times[1:]
