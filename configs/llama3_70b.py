"""Llama-3-70B, all weights trained, on 512 chips of v5p: prompts cut over eight chips each.

    dynarag run configs/llama3_70b.py \
        --run.directory gs-or-disk/run1 \
        --retrieve.corpus.files corpus.jsonl --retrieve.questions train.jsonl evaluation.jsonl \
        --sft.init /models/Meta-Llama-3-70B-Instruct

As configs/llama3_8b.py. Weights and moments lie over all 512 chips; a step has 64 prompts of 8,192
tokens, an eighth of one on each chip, where without that it would need 512, and each layer's
products are kept. Stages that sample have whole prompts, one or more a chip. docs/benchmarks.md has
what the compiler of v5p says of such a step (18.2 GiB a chip, bound by compute); nothing has run.
"""

from dataclasses import replace

from dynarag_jax.config import Mesh
from dynarag_jax.launch.config_file import base_config
from dynarag_jax.stages import Stream

smaller = base_config(__file__, "llama3_8b.py")
before = smaller.stages
run = replace(
    smaller.run, directory="runs/llama3_70b", mesh=Mesh(data=1, fsdp=64, sequence=8, tensor=1)
)

answers = Stream(batch=64, length=4096)
numerics = replace(before["sft"].model, remat="dots")

stages = before | {
    name: replace(
        before[name],
        model=numerics,
        reranker=replace(before[name].reranker, batch=64),
        generator=answers,
        accumulate=1,
    )
    for name in ("sft", "feedback")
}
