"""What the compilers of TPUs and GPUs say of a step, beside what ``--plan`` says of it.

    python -m benchmarks.compile                       # what of the matrix is not in the file yet
    python -m benchmarks.compile --families llama3-8b --trained lora --meshes v5e:2x4/1x8x1
    python -m benchmarks.compile --meshes h100:1/1x1x1 h100:8/1x8x1 --card CARD.txtpb
    python -m benchmarks.compile --families llama3-8b --tasks prefill decode --meshes v5e:2x4/1x8x1
    python -m benchmarks.compile --table               # the file's rows, nothing compiled

Nothing runs, and no such machine is needed: steps are compiled from shapes for machines that are
not here (``pip install 'dynarag_jax[compile]'`` for TPUs; for GPUs the extra ``cuda`` and
``--card``). A step is of one prompt of 8,192 tokens on each of data x fsdp shards, with one list
of 80 tokens (sft), a pair of them (pair, DPO) or eight (group, GRPO), and AdamW. ``prefill`` and
``decode`` are the sampler's programs for eight lists of each such prompt, in bfloat16, in a pool as
large as memory allows. Each row takes minutes and is written into the file as it is done; a killed
run goes on with the next one. ``2*v5e:16x16/2x256x1`` are two slices; what travels between them
counts as if it did inside one.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from dynarag_jax.compilers.topologies import (
    CompilerFails,
    TooLarge,
    Topology,
    by_kind,
    held_bytes,
    read_topology,
)
from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.exchange.configs import config_from_hf
from dynarag_jax.files import read_json, write_json
from dynarag_jax.launch.plan_compiled import (
    GB,
    GIB,
    CompilerReport,
    compile_step,
    compiler_version,
    mesh_for,
)
from dynarag_jax.launch.plan_programs import PoolPlan, compile_pool, plan_pools, written_by
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.kernels import Platform, choose
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.objectives.terms import Dpo, Grpo, Objectives, TokenNll
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.compiled import SamplingNeeds, Written, lower_pool
from dynarag_jax.sharding import Sizes, abstract_mesh, sequence_parts, whole_prompts
from dynarag_jax.stages.feedback import Feedback
from dynarag_jax.stages.rollout import SampleRollouts
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.config import Stream, Train
from dynarag_jax.training.flops import PaddedShape
from dynarag_jax.training.plan import USABLE, MemoryPlan, plan

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
         "hidden_act": "silu"}  # fmt: skip
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6,
         "hidden_act": "silu"}  # fmt: skip
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "rms_norm_eps": 1e-6}
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "tie_word_embeddings",
)  # fmt: skip

FAMILIES: Mapping[str, dict[str, Any]] = {
    name: base | dict(zip(SIZES, sizes, strict=True)) | more
    for name, base, sizes, more in (
        ("smollm2-135m", LLAMA, (49152, 576, 30, 9, 3, 64, 1536, True), {}),
        (
            "gemma3-1b", GEMMA3, (262144, 1152, 26, 4, 1, 256, 6912, True),
            {"sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
             "rope_theta": 1e6, "rope_local_base_freq": 1e4,
             "hidden_activation": "gelu_pytorch_tanh"},
        ),
        ("qwen3-4b", QWEN3, (151936, 2560, 36, 32, 8, 128, 9728, True), {"rope_theta": 1e6}),
        ("llama3-8b", LLAMA, (128256, 4096, 32, 32, 8, 128, 14336, False), {"rope_theta": 5e5}),
        ("llama3-70b", LLAMA, (128256, 8192, 80, 64, 8, 128, 28672, False), {"rope_theta": 5e5}),
    )
}  # fmt: skip
"""Shapes as the models' own config.json have them."""

MESHES = {
    "smollm2-135m": ("v5e:2x4/8x1x1", "v5e:2x4/1x8x1"),
    "gemma3-1b": ("v5e:2x4/1x8x1", "v5e:2x4/2x4x1", "v6e:2x2/1x4x1"),
    "qwen3-4b": ("v5e:2x4/1x8x1", "v6e:2x2/1x4x1", "v6e:2x4/1x4x2"),
    "llama3-8b": ("v5e:2x4/1x8x1", "v6e:2x2/1x4x1", "v6e:8x8/1x64x1", "v5p:4x4x4/1x64x1"),
    "llama3-70b": ("v5p:8x8x8/1x512x1", "v5p:4x4x4/1x64x1"),
}
"""Slices, and data x fsdp x tensor on each; data x fsdp x sequence x tensor, too. ``2*`` before a
slice takes two of them."""

TASKS = {"sft": 1, "pair": 2, "group": 8}
"""Branches a prompt; ``pair*3`` is three prompts on each of data x fsdp shards."""
SAMPLING = ("prefill", "decode")
"""A sampler's two programs."""
LISTS = 8
REMAT = ("full", "dots")
PROMPT, BRANCH = 8192, 80
LORA = LoraConfig(rank=16)


@dataclass(frozen=True)
class Row:
    """One step of the matrix."""

    family: str
    trained: str
    remat: str
    mesh: str
    task: str

    @property
    def kind(self) -> str:
        """The task, however many prompts there are."""
        return self.task.partition("*")[0]

    @property
    def prompts(self) -> int:
        """On each of data x fsdp shards."""
        return int(self.task.partition("*")[2] or 1)

    @property
    def name(self) -> str:
        """What it is kept under."""
        return " ".join(dataclasses.astuple(self))

    @property
    def topology(self) -> Topology:
        """The devices."""
        slices, _, name = self.mesh.partition("/")[0].rpartition("*")
        return read_topology(name, int(slices or 1))

    @property
    def sizes(self) -> Sizes:
        """The mesh over them."""
        sizes = tuple(int(size) for size in self.mesh.partition("/")[2].split("x"))
        if len(sizes) not in (3, 4):
            raise SystemExit(
                f"--meshes {self.mesh}: give SLICE/DATAxFSDPxTENSOR, as v5e:2x4/1x8x1, or "
                f"SLICE/DATAxFSDPxSEQUENCExTENSOR"
            )
        return sizes


def task_of(text: str) -> str:
    """A task that there is."""
    task, times, prompts = text.partition("*")
    whole = not times or (task in TASKS and prompts.isdecimal() and int(prompts) > 0)
    if not whole or task not in (*TASKS, *SAMPLING):
        raise argparse.ArgumentTypeError(
            f"'{text}': give one of {', '.join((*TASKS, *SAMPLING))}, or sft*2 for two prompts"
        )
    return text


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--trained", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--remat", nargs="+", choices=REMAT, default=list(REMAT))
    parser.add_argument("--meshes", nargs="+", help="such as v5e:2x4/1x8x1; a family's own if none")
    parser.add_argument("--tasks", nargs="+", type=task_of, default=list(TASKS))
    parser.add_argument("--results", type=Path, default=Path("runs/compile.json"))
    parser.add_argument("--card", default="", help="XLA's description of the GPU, of h100:... rows")
    parser.add_argument("--seconds", type=float, default=0, help="begin no row after so many")
    parser.add_argument("--table", action="store_true", help="compile nothing")
    return parser.parse_args()


def rows_of(args: Any) -> Iterator[Row]:
    """The rows that are asked for, small models and the most usual choices first."""
    for family in args.families:
        for task in args.tasks:
            if task in SAMPLING:
                for mesh in args.meshes or MESHES[family]:
                    yield Row(family, "none", "none", mesh, task)
                continue
            for remat in args.remat:
                for mesh in args.meshes or MESHES[family]:
                    for trained in args.trained:
                        yield Row(family, trained, remat, mesh, task)


def shape_of(row: Row) -> DecoderConfig:
    """The row's model."""
    return config_from_hf(
        FAMILIES[row.family] | {"max_position_embeddings": 2 * PROMPT}, row.family
    )


def prepare(row: Row) -> tuple[Train, DecoderConfig, dict[str, PaddedShape], Sizes]:
    """The row's stage, its model, its batch and its mesh."""
    sizes, full = row.sizes, row.trained == "full"
    cfg = dataclasses.replace(
        shape_of(row),
        dtype="bfloat16", param_dtype="float32" if full else "bfloat16", remat=row.remat,
    )  # fmt: skip
    batch, branches = row.prompts * sizes[0] * sizes[1], TASKS[row.kind]
    silent = TokenNll(weight=0.0)
    terms = {
        "sft": Objectives(),
        "pair": Objectives(nll=silent, dpo=Dpo(weight=1.0)),
        "group": Objectives(nll=silent, grpo=Grpo(weight=1.0)),
    }
    made = Sft if row.kind == "sft" else Feedback
    stage = made(
        reranker=Stream(batch=batch, objectives=terms[row.kind]), generator=Stream(batch=0),
        model=cfg, lora=LoraConfig(rank=0) if full else LORA,
    )  # fmt: skip
    stage = inherit(Run(directory="runs/compile", prompts=PromptConfig()), stage)
    return stage, cfg, {"reranker": PaddedShape(batch, PROMPT, branches, BRANCH)}, sizes  # type: ignore[return-value]


def platform_of(row: Row) -> Platform:
    """What the row's programs are traced for."""
    return Platform("tpu") if row.topology.is_tpu else Platform("cuda", True)


def planned(row: Row) -> MemoryPlan:
    """What ``--plan`` says of a row."""
    stage, cfg, streams, sizes = prepare(row)
    kernel = choose(cfg, platform_of(row), sequence_parts(sizes)).kernel
    lora = stage.lora if stage.lora.rank else None
    return plan(cfg, list(streams.values()), sizes, stage.optimizer, 1, lora, kernel)


def sampled(row: Row, mesh: Any) -> tuple[DecoderConfig, PoolPlan, SamplingNeeds, Written]:
    """A sampling row's model, and the pool that it has on a mesh.

    Raises:
      InputError: there is no room for a prompt.
    """
    cfg = dataclasses.replace(
        shape_of(row), dtype="bfloat16", param_dtype="bfloat16", remat="none"
    )  # fmt: skip
    stage = SampleRollouts(samples=LISTS)
    prompts = PromptConfig(rerank_tokens=PROMPT)
    needs = SamplingNeeds(
        "", LISTS, False, prompts, stage.sampling, stage.batch, stage.engine, "bfloat16"
    )
    (written,) = written_by(needs)
    memory, platform = row.topology.accelerator.memory, platform_of(row)
    found = plan_pools(cfg, mesh, needs, {"lists": written}, memory, platform)
    if found.pools["lists"] is None:
        raise InputError("not one prompt a device has room for its cache")
    return cfg, found, needs, written


def compiled_program(row: Row, card: str) -> tuple[CompilerReport, int]:
    """The row's program by its compiler; bytes that lie beside it."""
    if row.task not in SAMPLING:
        stage, cfg, streams, sizes = prepare(row)
        return compile_step(row.topology, card, stage, cfg, streams, sizes, planned(row)), 0
    mesh = mesh_for(row.topology, card, whole_prompts(row.sizes))
    cfg, found, needs, written = sampled(row, mesh)
    pool = found.pools["lists"]
    assert pool is not None
    lowered = lower_pool(cfg, mesh, pool[0], needs.engine, written)
    report = compile_pool(cfg, lowered, row.task, row.topology)
    return report, max(0, found.held - report.found.arguments)


def compiled(row: Row, card: str) -> dict[str, Any]:
    """What the compiler says of a row, to be kept."""
    topology = row.topology
    began = time.monotonic()
    kept: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "compiler": compiler_version(topology),
    }
    try:
        one, beside = compiled_program(row, card)
    except TooLarge as error:
        return kept | {"too_large": str(error), "seconds": time.monotonic() - began}
    except CompilerFails as error:
        return kept | {"failed": str(error), "seconds": time.monotonic() - began}
    found = one.found
    return kept | {
        "seconds": time.monotonic() - began,
        "how": one.how,
        "held": held_bytes(found, topology) + beside,
        "arguments": found.arguments,
        "outputs": found.outputs,
        "temporary": found.temporary,
        "largest": [list(array) for array in found.costs.largest],
        "operations": one.operations,
        "model": one.model,
        "traffic": found.costs.traffic,
        "sent": {kind: of for kind, (_, of) in by_kind(found.costs.collectives).items()},
        "bound": one.bounds.bound,
        "bound_seconds": one.bounds.seconds,
        "mfu": one.model / topology.accelerator.peak / one.bounds.seconds,
    }


HEAD = (
    "model", "trained", "remat", "slice/mesh", "task", "plan GiB", "compiler GiB",
    "plan / compiler", "of usable", "TFLOP", "x model's", "GB sent", "bound by", "MFU at most",
    "compiled in s",
)  # fmt: skip


def cells(row: Row, kept: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    if row.task in SAMPLING:
        found = sampled(row, abstract_mesh(whole_prompts(row.sizes)))[1]
        estimate = found.held + getattr(found.working["lists"], row.task)
    else:
        estimate = planned(row).total
    first = [row.family, row.trained, row.remat, row.mesh, row.task, f"{estimate / GIB:.2f}"]
    if "too_large" in kept or "failed" in kept:
        why = "does not fit" if "too_large" in kept else "compiler fails"
        return [*first, why, *[""] * 7, f"{kept['seconds']:.0f}"]
    held = kept["held"]
    memory = row.topology.accelerator.memory
    return [
        *first,
        f"{held / GIB:.2f}",
        f"{estimate / held:.2f}",
        f"{held / (USABLE * memory):.0%}",
        f"{kept['operations'] / 1e12:.1f}",
        f"{kept['operations'] / kept['model']:.2f}",
        f"{sum(kept['sent'].values()) / GB:.1f}",
        kept["bound"],
        f"{kept['mfu']:.0%}",
        f"{kept['seconds']:.0f}",
    ]


def main() -> None:
    """Compile what is missing and print the table."""
    args = options()
    results: dict[str, Any] = read_json(args.results) if args.results.is_file() else {}
    known = {"held", "too_large", "failed"}
    if old := [name for name, one in results.items() if known.isdisjoint(one)]:
        print(f"{args.results}: {len(old)} rows lack what is read now, and are left out")
        results = {name: one for name, one in results.items() if name not in old}
    every = list(rows_of(args))
    if args.table and not args.meshes:
        asked = {(row.family, row.trained, row.remat, row.task) for row in every}
        others = (Row(*name.split(" ")) for name in results)
        every += [
            row for row in others
            if row not in every and (row.family, row.trained, row.remat, row.task) in asked
        ]  # fmt: skip
    began = time.monotonic()
    for row in every if not args.table else ():
        if row.name in results:
            continue
        if args.seconds and time.monotonic() - began > args.seconds:
            break
        print(f"{row.name} ...", flush=True)
        try:
            results[row.name] = compiled(row, args.card)
        except InputError as error:
            raise SystemExit(f"{row.name}: {error}") from None
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.results, results)
        print(" | ".join(cells(row, results[row.name])), flush=True)
    there = [row for row in every if row.name in results]
    print(markdown(HEAD, [cells(row, results[row.name]) for row in there]))
    dates = sorted({results[row.name]["date"] for row in there})
    compilers = sorted({results[row.name]["compiler"] for row in there})
    print(f"\n{len(there)} of {len(every)} rows; {', '.join(compilers)}; {', '.join(dates)}")


if __name__ == "__main__":
    main()
