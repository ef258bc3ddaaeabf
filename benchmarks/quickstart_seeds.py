"""The quickstart over several seeds: what feedback repairs, beside every fixed top-k.

    python -m benchmarks.quickstart_seeds --seeds 0 1 2

Runs ``train.pipeline configs/quickstart.py`` once a seed (what is done is not done again), then
prints a Markdown table read from the runs' summary.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dynarag_jax.files import read_json

COLUMNS = (
    "seed", "minutes", "peak GB", "oracle EM", "EM before", "EM after", "best fixed top-k EM",
    "set F1 before", "set F1 after", "mean k before", "mean k after", "needed k",
    "EM after, shuffled", "set F1 after, shuffled", "mean k after, shuffled",
)  # fmt: skip


def row(summary: dict[str, Any]) -> list[str]:
    """One seed's figures."""
    systems = summary["systems"]
    before, after = systems["behavior cloning"], systems["after feedback"]
    shuffled = systems["after feedback, shuffled"]
    fixed = {n: s["answer"]["mean"] for n, s in systems.items() if s["role"] == "fixed"}
    best = max(fixed, key=lambda name: fixed[name])
    percent = lambda value: f"{100 * value:.1f}"  # noqa: E731
    return [
        str(summary["seed"]),
        f"{summary['seconds_total'] / 60:.1f}",
        f"{summary['peak_memory_bytes'] / 1e9:.1f}",
        percent(systems["oracle passages"]["answer"]["mean"]),
        percent(before["answer"]["mean"]),
        percent(after["answer"]["mean"]),
        f"{percent(fixed[best])} ({best})",
        percent(before["set_f1"]["mean"]),
        percent(after["set_f1"]["mean"]),
        f"{before['mean_k']['mean']:.2f}",
        f"{after['mean_k']['mean']:.2f}",
        f"{summary['needed_mean_k']:.2f}",
        percent(shuffled["answer"]["mean"]),
        percent(shuffled["set_f1"]["mean"]),
        f"{shuffled['mean_k']['mean']:.2f}",
    ]


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--directory", default="runs/seeds", help="where the runs go")
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    # As ``make quickstart`` does.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ
    for seed in arguments.seeds:
        directory = Path(arguments.directory) / str(seed)
        command = [sys.executable, "-m", "train.pipeline", "configs/quickstart.py"]
        command += ["--run.directory", str(directory), "--run.seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        print("| " + " | ".join(row(read_json(directory / "summary.json"))) + " |", flush=True)


if __name__ == "__main__":
    main()
