"""Qwen3-4B, all weights trained: eight chips of v6e, or eight H100.

    dynarag run configs/qwen3_4b.py \
        --run.directory gs-or-disk/run1 \
        --retrieve.corpus.files corpus.jsonl --retrieve.questions train.jsonl evaluation.jsonl \
        --sft.init /models/Qwen3-4B

As configs/llama3_8b.py, with one prompt of 8,192 tokens on each device at a time, four in turn. On
one H100 it trains with adapters: ``--sft.lora.rank 16 --sft.accumulate 32``, and the same of
``feedback``. What the compilers of these machines say of a step is in docs/benchmarks.md.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config

larger = base_config(__file__, "llama3_8b.py")
run = replace(larger.run, directory="runs/qwen3_4b")
stages = larger.stages | {
    name: replace(larger.stages[name], accumulate=4) for name in ("sft", "feedback")
}
