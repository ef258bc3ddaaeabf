"""Gemma-3-1B, all weights trained: eight chips of v5e.

    dynarag run configs/gemma3_1b.py \
        --run.directory gs-or-disk/run1 \
        --retrieve.corpus.files corpus.jsonl --retrieve.questions train.jsonl evaluation.jsonl \
        --sft.init /models/gemma-3-1b-it

As configs/llama3_8b.py, with one prompt of 8,192 tokens on each chip at a time, four in turn. What
the compiler of v5e says of a step is in docs/benchmarks.md. Where a GPU's kernel takes no heads of
256 numbers (before Hopper) the attention is XLA's in blocks, and the program says so.
"""

from dataclasses import replace

from dynarag_jax.launch.config_file import base_config

larger = base_config(__file__, "llama3_8b.py")
run = replace(larger.run, directory="runs/gemma3_1b")
stages = larger.stages | {
    name: replace(larger.stages[name], accumulate=4) for name in ("sft", "feedback")
}
