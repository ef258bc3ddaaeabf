"""How a step scales, from the compiler's own analysis; nothing is run.

    python -m benchmarks.scaling             # 1, 2, 4 and 8 simulated devices, and two pods

The first table compiles one training step for 1, 2, 4 and 8 simulated devices and prints what the
compiler says a device holds and computes, beside what ``--plan`` says. The second is computed by
``--plan``'s functions for Llama-3-8B on a v5p-128 (64 chips) and on 64 H100: no such machine was
used.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.hardware import accelerator
from dynarag_jax.models import decoder
from dynarag_jax.models.config import Kernel
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Objectives
from dynarag_jax.policy.batches import BatchShape, Example, collate
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.flops import PaddedShape
from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
from dynarag_jax.training.plan import USABLE, plan
from dynarag_jax.training.step import State, StreamLoss, make_step

MODEL = DecoderConfig(
    vocab=4096, width=512, layers=2, heads=8, kv_heads=8, head_size=64, mlp=1408, remat="full",
    unroll=2,
)  # fmt: skip
# The layers are written out: of a loop the compiler counts one turn.
BATCH = PaddedShape(batch=8, prompt=512, branches=2, branch=40)
OPTIMIZER = OptimizerConfig()

LLAMA_8B = DecoderConfig(
    vocab=128256, width=4096, layers=32, heads=32, kv_heads=8, head_size=128, mlp=14336,
    tied=False, dtype="bfloat16", remat="full",
)  # fmt: skip
LISTS = PaddedShape(batch=128, prompt=8192, branches=1, branch=80)
PAIRS = PaddedShape(batch=128, prompt=8192, branches=2, branch=80)
GROUPS = PaddedShape(batch=128, prompt=8192, branches=8, branch=80)


def compiled(sizes: tuple[int, int, int]) -> tuple[int, int, float]:
    """What a device holds at rest, beside that while it computes (bytes), and its operations."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    rule = make_optimizer(OPTIMIZER, 100)
    grammar = build_grammar(Spelling((), ((2,), (3,)), (4,), (), (5,), 6))
    step = make_step(MODEL, mesh, rule, grammar, {"x": StreamLoss(Objectives())})
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32),
        decoder.parameter_table(MODEL),
        is_leaf=decoder.is_parameter,
    )
    moments = jax.eval_shape(rule.init, params)
    state = State(jax.ShapeDtypeStruct((), jnp.int32), params, moments)
    branch = [2] * BATCH.branch
    row = Example("0", [2] * BATCH.prompt, [branch] * 2, supervised=[1.0] * 2)
    batch = collate([row] * BATCH.batch, BatchShape(BATCH.prompt, 2, BATCH.branch, 2))
    program = step.lower(state, {"x": batch}).compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    assert memory is not None
    assert cost is not None
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes, cost["flops"]


def main() -> None:
    """Print both tables."""
    count = decoder.count_parameters(MODEL)
    print(
        f"{count:,} parameters, float32, AdamW, remat full; {BATCH.batch} prompts of "
        f"{BATCH.prompt} tokens, two branches of {BATCH.branch}. Per device:\n"
    )
    print("| data x fsdp x tensor | state MB: compiler | plan | beside it MB: compiler | plan | "
          "GFLOP: compiler | plan |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    meshes = [(1, 1, 1)] + [sizes for n in (2, 4, 8) for sizes in ((n, 1, 1), (1, n, 1), (1, 1, n))]
    for sizes in [*meshes, (2, 2, 2)]:
        state, beside, operations = compiled(sizes)
        p = plan(MODEL, [BATCH], sizes, OPTIMIZER)
        work = (p.work.model + p.work.recomputed) / p.devices
        planned = p.gradients + p.activations + p.working
        print(
            f"| {' x '.join(map(str, sizes))} | {state / 1e6:.1f} | "
            f"{(p.weights + p.moments) / 1e6:.1f} | {beside / 1e6:.0f} | {planned / 1e6:.0f} | "
            f"{operations / 1e9:.1f} | {work / 1e9:.1f} |",
            flush=True,
        )
    print(
        f"\nLlama-3-8B, bfloat16 beside float32 master weights, AdamW, {LISTS.batch} prompts of "
        f"{LISTS.prompt} tokens a step. Computed, not measured; per device:\n"
    )
    print("| devices | data x fsdp x tensor | task | holds GiB | of usable | PFLOP a step | "
          "s at 40 % MFU | questions/s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    kernels: list[tuple[str, str, Kernel]] = [
        ("v5p", "v5p-128 (64 chips)", "splash"), ("h100", "64 x H100", "cudnn"),
    ]  # fmt: skip
    for name, title, kernel in kernels:
        device = accelerator(name)
        for sizes in ((1, 64, 1), (8, 8, 1)):
            for task, rows in (("list", LISTS), ("pair", PAIRS), ("group of 8", GROUPS)):
                p = plan(LLAMA_8B, [rows], sizes, OPTIMIZER, accumulate=2, kernel=kernel)
                seconds = p.seconds(device.peak, 0.4)
                print(
                    f"| {title} | {' x '.join(map(str, sizes))} | {task} | {p.total / 2**30:.1f} | "
                    f"{p.total / (USABLE * device.memory):.0%} | {p.work.model / 1e15:.1f} | "
                    f"{seconds:.2f} | {rows.batch / seconds:.1f} |"
                )


if __name__ == "__main__":
    main()
