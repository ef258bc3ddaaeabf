"""Llama-3-8B, all weights trained, on 64 chips of v5p: prompts cut over four chips each.

    dynarag run configs/llama3_8b_v5p.py \
        --run.directory gs-or-disk/run1 \
        --retrieve.corpus.files corpus.jsonl --retrieve.questions train.jsonl evaluation.jsonl \
        --sft.init /models/Meta-Llama-3-8B-Instruct

As configs/llama3_8b.py, whose steps of 32 lists (the paper's) and 32 answers have fewer prompts
than the slice has chips: here each chip holds a quarter of two prompts, and has the memory to keep
each layer's products, so that nearly nothing is computed twice. Stages that sample have whole
prompts, one or more a chip. docs/benchmarks.md has what the compiler of v5p says of half as large a
step; nothing has run.
"""

from dataclasses import replace

from dynarag_jax.config import Mesh
from dynarag_jax.launch.config_file import base_config

smaller = base_config(__file__, "llama3_8b.py")
before = smaller.stages
run = replace(
    smaller.run, directory="runs/llama3_8b_v5p", mesh=Mesh(data=1, fsdp=16, sequence=4, tensor=1)
)
numerics = replace(before["sft"].model, remat="dots")
stages = before | {
    name: replace(before[name], model=numerics, accumulate=1) for name in ("sft", "feedback")
}
