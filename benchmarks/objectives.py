"""The objectives side by side, over seeds: quality, passages and tokens read, time.

    python -m benchmarks.objectives --seeds 0 1 2
    python -m benchmarks.objectives configs/real_objectives.py --seeds 0 1 2

Runs ``dynarag run CONFIG`` once a seed (what is done is not done again), then prints a Markdown
table. A figure is the mean over the seeds' held-out questions; the interval is bootstrapped over
the questions (one that several seeds ask counts by its mean) and says nothing of the seeds
themselves, whose lowest and highest mean stand behind it. The last columns compare with behavior
cloning on the same questions of the same seeds. Seconds are those of the feedback stage alone,
rollouts not counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.seeds import Rows, predictions, run_stages
from dynarag_jax.files import read_json
from dynarag_jax.metrics.intervals import bootstrap, paired_bootstrap

BEFORE = "behavior cloning"
COLUMNS = ("objective", "answer", "set F1", "passages", "tokens", "seconds",
           "answer against cloning", "set F1 against cloning")  # fmt: skip


def seconds(directory: Path, system: str) -> float | None:
    """Of the stage that trained a system; None of systems that no stage is named after."""
    done = directory / system.replace(" ", "_") / "done.json"
    return read_json(done)["seconds"] if done.exists() else None


def values_of(runs: Sequence[Mapping[str, Rows]], system: str, name: str) -> list[dict[str, float]]:
    """A figure of every question, a run after the other; empty where a question lacks it."""
    found = [{key: row.get(name) for key, row in run[system].items()} for run in runs]
    if any(value is None for run in found for value in run.values()):
        return []
    return [{key: float(value or 0) for key, value in run.items()} for run in found]


def pooled(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each question's mean over the runs that asked it."""
    found: dict[str, list[float]] = {}
    for run in values:
        for key, value in run.items():
            found.setdefault(key, []).append(value)
    return {key: statistics.fmean(each) for key, each in found.items()}


def figure(runs: Sequence[Mapping[str, Rows]], system: str, name: str, scale: float) -> str:
    """Mean [interval] (lowest to highest seed) of a figure; a dash where nothing has it."""
    values = values_of(runs, system, name)
    if not values:
        return "-"
    own = bootstrap(scale * np.array([*pooled(values).values()]))
    means = [scale * statistics.fmean(each.values()) for each in values]
    digits = 1 if scale == 100 else 2
    low, high = min(means), max(means)
    spread = f" ({low:.{digits}f} to {high:.{digits}f})" if len(runs) > 1 else ""
    return f"{own.mean:.{digits}f} [{own.low:.{digits}f}, {own.high:.{digits}f}]{spread}"


def against(runs: Sequence[Mapping[str, Rows]], system: str, name: str) -> str:
    """The mean difference from behavior cloning, in points, with its interval."""
    if system == BEFORE:
        return ""
    after, before = (pooled(values_of(runs, one, name)) for one in (system, BEFORE))
    if not after or not before:
        return "-"
    own = paired_bootstrap(
        *(100 * np.array([one[key] for key in before]) for one in (after, before))
    )
    return f"{own.mean:+.1f} [{own.low:+.1f}, {own.high:+.1f}]"


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="configs/objectives.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--directory", default="", help="where runs go; runs/ and the config's name"
    )
    given = parser.parse_args()
    where = Path(given.directory or f"runs/{Path(given.config).stem}")
    directories = [where / str(seed) for seed in given.seeds]
    for seed, directory in zip(given.seeds, directories, strict=True):
        run_stages(given.config, directory, seed)
    runs = [predictions(directory)[0] for directory in directories]
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for system in runs[0]:
        if not all(system in run for run in runs):
            continue
        took = [seconds(directory, system) for directory in directories]
        cells = [
            system,
            figure(runs, system, "score", 100),
            figure(runs, system, "set_f1", 100),
            figure(runs, system, "k", 1),
            figure(runs, system, "tokens", 1),
            "" if None in took else f"{statistics.median(t for t in took if t is not None):.0f}",
            against(runs, system, "score"),
            against(runs, system, "set_f1"),
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
