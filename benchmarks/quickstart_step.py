"""One training step of the quickstart on CPUs, with glibc's large pages and without, in turn.

    make quickstart
    python -m benchmarks.quickstart_step --run runs/quickstart --rounds 3

Every round starts a fresh process for each of the two, since glibc reads its settings at the start.
Prints the median step of every process, and the ratio of the medians with its spread over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

PAGES = "glibc.malloc.hugetlb=1"


def measure(run: Path, steps: int) -> float:
    """Median seconds of a step of the stage ``reading``, compilation left out."""
    import jax

    jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), 2))
    from dynarag_jax.launch.options import load_config
    from dynarag_jax.policy.batches import collate, place
    from dynarag_jax.records import read_questions
    from dynarag_jax.sharding import make_mesh
    from dynarag_jax.training.optimizer import make_optimizer
    from dynarag_jax.training.order import Order
    from dynarag_jax.training.run import begin, behavior_source, example_maker, generator_source
    from dynarag_jax.training.step import StreamLoss, init_state, make_step

    _, stages = load_config("configs/quickstart.py", [])
    stage, mesh = replace(stages["reading"], init=""), make_mesh()
    questions = read_questions(run / "clean/train.jsonl")[:500]
    start = begin(stage, None, run / "facts/tokenizer", mesh)
    maker = example_maker(stage, start)
    sources = [
        behavior_source(stage, start, questions, maker, 0),
        generator_source(stage, questions, maker, 0),
    ]
    rule = make_optimizer(stage.optimizer, stage.steps)
    state = init_state(start.cfg, mesh, rule)
    parts = {s.name: StreamLoss(s.stream.objectives, s.stream.weight) for s in sources}
    step = make_step(start.cfg, mesh, rule, start.grammar, parts)
    orders = {s.name: Order(s.size, 0, s.name) for s in sources}
    batch = {
        s.name: place(
            mesh,
            collate([s.make(*orders[s.name].at(row)) for row in range(s.stream.batch)], s.shape),
        )
        for s in sources
    }
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main() -> None:
    """Measure in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--one", action="store_true", help="measure in this process, print seconds")
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(arguments.run, arguments.steps))
        return
    ratios = []
    for number in range(1, arguments.rounds + 1):
        seconds = []
        for pages in ("", PAGES):
            environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
            environment |= {"GLIBC_TUNABLES": pages} if pages else {}
            command = [sys.executable, "-m", "benchmarks.quickstart_step", "--one"]
            command += ["--run", str(arguments.run), "--steps", str(arguments.steps)]
            out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            seconds.append(float(out.stdout.split()[-1]))
        ratios.append(seconds[1] / seconds[0])
        plain, large = (f"{1e3 * value:.0f} ms" for value in seconds)
        print(f"round {number}: plain {plain}, large pages {large}", flush=True)
    print(
        f"large pages / plain: median {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
