"""Llama-3-8B with adapters: eight chips of v5e, four of v6e, or one H100 or H200.

    dynarag run configs/llama3_8b_lora.py \
        --run.directory gs-or-disk/run1 \
        --retrieve.corpus.files corpus.jsonl --retrieve.questions train.jsonl evaluation.jsonl \
        --sft.init /models/Meta-Llama-3-8B-Instruct

As configs/llama3_8b.py, with adapters of rank 16 beside frozen bfloat16 weights, and the paper's
batches of 32, eight prompts at a time. On fewer than eight devices keep it at one prompt of 8,192
tokens on each: ``--sft.accumulate 8 --feedback.accumulate 8`` on four devices, 32 on one. What the
compilers of these machines say of a step is in docs/benchmarks.md. Other sizes of the Llama family,
Qwen, Mistral and Gemma are the same command with another ``--sft.init``; where one does not fit,
``--plan`` says so.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import LoraConfig

whole = base_config(__file__, "llama3_8b.py")
before = whole.stages
run = replace(whole.run, directory="runs/llama3_8b_lora")

trained = {
    "lora": LoraConfig(rank=16),
    # Only the numerics are taken from here; the shape is the checkpoint's.
    "model": DecoderConfig(dtype="bfloat16", param_dtype="bfloat16", remat="full"),
    # Of eight devices each has four prompts a step, one at a time.
    "accumulate": 4,
}


def at_the_rate(stage, rate):
    """The stage with adapters, which learn at some ten times the rate of whole weights."""
    return replace(stage, **trained, optimizer=replace(stage.optimizer, learning_rate=rate))


stages = before | {
    "sft": at_the_rate(before["sft"], 1e-4),
    "feedback": at_the_rate(before["feedback"], 5e-5),
}
