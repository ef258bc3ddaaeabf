"""Our training step beside MaxText's, by one compiler: what each holds, computes and sends.

    python -m benchmarks.compile --families llama3-8b --trained full --remat full \
        --meshes v5p:4x4x4/1x64x1 --tasks sft pair group "pair*3" "group*10"
    python -m benchmarks.maxtext --python MAXTEXT/bin/python
    python -m benchmarks.maxtext --table               # the file's rows, nothing compiled

Nothing runs, and no such machine is needed. Full fine-tuning of Llama-3-8B, float32 weights and
moments of AdamW, bfloat16 activations, remat full, fsdp over all chips of a slice, one question a
chip and step; ours also with as many questions as take the memory of MaxText's one. MaxText
(``maxtext`` on the package index, in an environment of its own, whose Python ``--python`` names)
has no branches: a pair is two sequences, a group of eight eight, each of 8,192 tokens in all, where
ours is a prompt of 8,192 and lists of 80 beside it. Its step is lowered and compiled by its own
``train_compile``; its program's text is then read as ours is. MaxText computes scores of the
vocabulary at every token, ours at those of the lists. To have both by one compiler, run
``benchmarks.compile`` by that Python, too (``PYTHONPATH=. MAXTEXT/bin/python -m
benchmarks.compile``); the last line names the versions. The least time of a question and the MFU
that it allows are those of the roofline, by the maker's numbers: each side's own model operations,
a pair of sequences being twice one.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.compile import PROMPT, TASKS, Row, prepare
from dynarag_jax.compilers.program_costs import read_program
from dynarag_jax.compilers.topologies import by_kind, read_topology
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.files import read_json, write_json
from dynarag_jax.launch.plan_compiled import GB, GIB, attention_operations
from dynarag_jax.training.flops import PaddedShape, step_work

SLICES = {"v5p:4x4x4": "v5p-128", "v6e:8x8": "v6e-64", "v5e:16x16": "v5e-256"}
"""What MaxText calls a slice."""

SETTINGS = {
    "run_name": "compared",
    "model_name": "llama3-8b",
    "compile_topology_num_slices": 1,
    "max_target_length": PROMPT,
    "remat_policy": "full",
    "dtype": "bfloat16",
    "weight_dtype": "float32",
    "opt_type": "adamw",
    "dataset_type": "synthetic",
    "enable_checkpointing": "false",
    "ici_fsdp_parallelism": -1,
}
"""Otherwise its own defaults: layers in a scan, splash attention in blocks of 512."""

APART = ("PYTHONPATH", "TPU_LIBRARY_PATH")
"""What MaxText's environment has of its own; JAX sets the second where libtpu is installed."""

KEEP = """
import json, sys
from importlib.metadata import version
from absl import app
from maxtext.trainers.pre_train import train_compile

folder, *arguments = sys.argv[1:]
inner = train_compile.jit_and_compile

def jit_and_compile(*given, **named):
    made = inner(*given, **named)
    memory = made.memory_analysis()
    said = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "held": memory.peak_memory_in_bytes,
        "versions": {name: version(name) for name in ("maxtext", "jax", "libtpu")},
    }
    open(folder + "/program", "w").write(made.as_text())
    open(folder + "/said.json", "w").write(json.dumps(said))
    return made

train_compile.jit_and_compile = jit_and_compile
sys.argv = ["train_compile", *arguments]
app.run(train_compile.main)
"""
"""Run by MaxText's Python: its own program, which also writes down what it compiled."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", type=Path, help="Python of the environment that has MaxText")
    parser.add_argument("--slices", nargs="+", choices=SLICES, default=["v5p:4x4x4"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--set", nargs="+", default=[], help="more of MaxText's settings, NAME=VALUE"
    )
    parser.add_argument("--results", type=Path, default=Path("runs/maxtext.json"))
    parser.add_argument("--ours", type=Path, default=Path("runs/compile.json"))
    parser.add_argument("--table", action="store_true", help="compile nothing")
    return parser.parse_args()


def row_of(name: str, task: str, prompts: int = 1) -> Row:
    """Ours of so many questions a chip, as ``benchmarks.compile`` names it."""
    chips = read_topology(name).devices
    times = f"*{prompts}" if prompts > 1 else ""
    return Row("llama3-8b", "full", "full", f"{name}/1x{chips}x1", task + times)


def compiled(python: Path, name: str, task: str, more: list[str]) -> dict[str, Any]:
    """What the compiler says of MaxText's step, to be kept; bytes and operations of one chip."""
    began = time.monotonic()
    settings = SETTINGS | {
        "compile_topology": SLICES[name],
        "per_device_batch_size": TASKS[task],
    }
    with tempfile.TemporaryDirectory() as folder:
        given = [f"{key}={value}" for key, value in settings.items()]
        given += [f"base_output_directory={folder}", *more]
        done = subprocess.run(
            [python, "-c", KEEP, folder, *given],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={key: value for key, value in os.environ.items() if key not in APART} | {
                "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": SLICES[name],
            },
        )  # fmt: skip
        if not (Path(folder) / "said.json").is_file():
            raise SystemExit(f"MaxText, {name} {task}:\n{done.stdout[-3000:]}")
        said = read_json(Path(folder) / "said.json")
        costs = read_program((Path(folder) / "program").read_text(encoding="utf-8"))
    chips = read_topology(name).devices
    _, cfg, _, _ = prepare(row_of(name, task))
    rows = {"": PaddedShape(chips * TASKS[task], PROMPT, 0, 0)}
    inside = attention_operations(cfg, rows, costs.kernels, chips)
    return said | {
        "date": datetime.date.today().isoformat(),
        "seconds": time.monotonic() - began,
        "kernels": dict(costs.kernels),
        "operations": costs.operations + inside,
        "traffic": costs.traffic,
        "sent": {kind: of for kind, (_, of) in by_kind(costs.collectives).items()},
    }


HEAD = (
    "slice", "task", "questions a chip: ours", "GiB a chip: ours", "MaxText", "ratio",
    "TFLOP a question: ours", "MaxText", "ratio", "GB sent a question: ours", "MaxText", "ratio",
    "s a question at least: ours", "MaxText", "ratio", "MFU at most: ours", "MaxText",
)  # fmt: skip


def least_seconds(name: str, kept: dict[str, Any]) -> float:
    """Of a step by the roofline."""
    device = read_topology(name).accelerator
    sent = sum(kept["sent"].values())
    return max(
        kept["operations"] / device.peak, kept["traffic"] / device.bandwidth, sent / device.links
    )


def model_operations(name: str, task: str) -> float:
    """Of MaxText's model on one chip: whole sequences, each token's scores among them."""
    _, cfg, _, _ = prepare(row_of(name, task))
    chips = read_topology(name).devices
    rows = PaddedShape(chips * TASKS[task], PROMPT, 0, 1, prompt_loss=True)
    return step_work(cfg, [rows]).model / chips


def cells(row: Row, mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """A row of the table; of MaxText's a chip has one question."""
    name, each = row.topology.name, row.prompts
    pairs = (
        (mine["held"] / GIB, theirs["held"] / GIB),
        (mine["operations"] / each / 1e12, theirs["operations"] / 1e12),
        (sum(mine["sent"].values()) / each / GB, sum(theirs["sent"].values()) / GB),
    )
    found = [name, row.kind, f"{each}"]
    for ours, peers in pairs:
        found += [f"{ours:.1f}", f"{peers:.1f}", f"{ours / peers:.2f}"]
    ours, peers = least_seconds(name, mine) / each, least_seconds(name, theirs)
    found += [f"{ours:.2f}", f"{peers:.2f}", f"{ours / peers:.2f}"]
    peak = row.topology.accelerator.peak
    useful = mine["model"] / each, model_operations(name, row.kind)
    return found + [f"{of / peak / at:.0%}" for of, at in zip(useful, (ours, peers), strict=True)]


def main() -> None:
    """Compile what is missing and print the table."""
    args = options()
    results: dict[str, Any] = read_json(args.results) if args.results.is_file() else {}
    ours: dict[str, Any] = read_json(args.ours) if args.ours.is_file() else {}
    table: list[list[str]] = []
    said: set[str] = set()
    for name in args.slices:
        for task in args.tasks:
            key = " ".join((name, task, *args.set))
            if key not in results and not args.table:
                if args.python is None:
                    raise SystemExit("--python: name the Python of an environment with MaxText")
                print(f"MaxText {key} ...", flush=True)
                results[key] = compiled(args.python, name, task, args.set)
                args.results.parent.mkdir(parents=True, exist_ok=True)
                write_json(args.results, results)
            one = row_of(name, task)
            if one.name not in ours:
                print(f"{one.name}: not in {args.ours} (benchmarks.compile)")
            if key not in results:
                continue
            kept = (Row(*each.split(" ")) for each in ours)
            for row in sorted(kept, key=lambda row: row.prompts):
                if row != row_of(name, task, row.prompts):
                    continue
                mine, used = ours[row.name], results[key]["versions"]
                table.append(cells(row, mine, results[key]))
                said |= {
                    f"MaxText {used['maxtext']}, JAX {used['jax']}, libtpu {used['libtpu']}, "
                    f"{results[key]['date']}",
                    f"ours by {mine['compiler']}, {mine['date']}",
                }
    print(markdown(HEAD, table))
    print("\n" + "; ".join(sorted(said)))


if __name__ == "__main__":
    main()
