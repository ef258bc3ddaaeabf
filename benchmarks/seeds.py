"""A config over several seeds, several at a time: what its evaluations say, and the seeds' range.

    python -m benchmarks.seeds configs/encoder_mixed.py --seeds 0 1 2 \
        --shared gather retrieve others mix label
    python -m benchmarks.seeds configs/real.py --seeds 0 1 2 --at-once 3 \
        --shared gather retrieve mix label reader sft -- --rollout.limit 1000

The stages named as shared are run once, the others once a seed, each seed in a directory of its own
under ``runs/CONFIG-seeds``; what is done is not done again. What follows ``--`` are options of
``dynarag run``.
Then a table for every evaluation, in Markdown: a question counts by its mean over the seeds, the
mean over sets stands with its interval over questions, and behind it the lowest and highest seed;
each model less the best of all systems that no seed trains.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.data.reading import read_questions
from dynarag_jax.evaluation.list_tables import macro, macro_difference, macro_interval, strata_of
from dynarag_jax.evaluation.lists import ORACLE
from dynarag_jax.evaluation.scoring import by_benchmark
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.options import load_config
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Question
from dynarag_jax.stages import Evaluate
from dynarag_jax.stages.common.encoder_evaluation import KNOWN_K

PROGRAM = "import sys; from dynarag_jax.launch.cli import main; main()"
KNOWING = (ORACLE, KNOWN_K)
"""Systems that are told what is needed: nothing to be better than."""

Rows = dict[str, dict[str, Any]]
"""Lines of predictions.jsonl by question: its id and text."""


def run_stages(
    config: str,
    directory: Path,
    seed: int | None,
    options: Sequence[str] = (),
    only: Sequence[str] = (),
    log: Path | None = None,
) -> None:
    """``dynarag run`` in a directory; what stands is left as it is.

    Args:
      only: the stages to run; empty for all.
      log: where the program writes in place of the terminal.
    """
    command = [sys.executable, "-c", PROGRAM, "run", config, "--run.directory", str(directory)]
    command += ["--run.seed", str(seed)] if seed is not None else []
    command += [*options, *(["--only", *only] if only else [])]
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ
    if log is None:
        subprocess.run(command, env=environment, check=True)
        return
    with log.open("a") as stream:
        done = subprocess.run(
            command, env=environment, check=False, stdout=stream, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f"seed {seed} ended with code {done.returncode}; see {log}")


def predictions(directory: Path, stage: str = "evaluate") -> tuple[dict[str, Rows], list[Question]]:
    """A run's evaluated lists by system and question, with their figures; and the questions."""
    found: dict[str, Rows] = {}
    place = directory / stage
    asked = read_json(place / "run.json")["config"]["questions"]
    questions = {q.id: q for q in read_questions(asked.replace("{run}", str(directory)))}
    answered = by_benchmark()
    for _, line in read_jsonl(place / "predictions.jsonl"):
        question = questions[line["id"]]
        # Lines of encoder policies leave them to the tables.
        if "set_f1" not in line and question.gold is not None:
            line["set_f1"] = set_f1(line["chosen"], question.gold)
        if "score" not in line and line["answer"] is not None:
            line["score"] = next(iter(answered(question, line["answer"]).values()))
        # Seeds ask other questions under the same ids, or the same questions.
        found.setdefault(line["system"], {})[f"{question.id} {question.text}"] = line
    return found, [*questions.values()]


def linked(shared: Path, directory: Path, stages: Sequence[str]) -> None:
    """Show a seed's run the stages that all seeds share."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in stages:
        place = directory / name
        if not place.is_symlink():
            place.symlink_to(Path("..") / shared.name / name)


def table(
    runs: Sequence[Mapping[str, Rows]], questions: Sequence[Question], models: Sequence[str]
) -> str:
    """One evaluation's systems over the seeds, in Markdown.

    Args:
      runs: of every seed, its lines by system and question.
      questions: those that all seeds were asked.
      models: the systems that a seed trains; the others are the same for all.
    """
    strata = strata_of(questions)
    keys = [f"{question.id} {question.text}" for question in questions]
    systems = [name for name in runs[0] if all(name in run for run in runs)]

    def values(system: str, name: str) -> np.ndarray | None:
        """f64[seeds, questions]; None where a line lacks the figure."""
        found = [[run[system][key].get(name) for key in keys] for run in runs]
        lacking = any(value is None for row in found for value in row)
        return None if lacking else np.asarray(found, np.float64)

    scores = {name: values(name, "set_f1") for name in systems}
    answered = any(values(name, "score") is not None for name in systems)
    head = ["system", "set F1, mean of sets", *strata, "mean k"] + ["answers"] * answered
    rows = []
    for name in systems:
        own, k = scores[name], values(name, "k")
        row = [name]
        if own is None or k is None:
            continue
        row.append(spread(own, strata))
        row += [f"{100 * own[:, places].mean():.1f}" for places in strata.values()]
        row.append(f"{macro(k.mean(0), strata):.2f}")
        answers = values(name, "score") if answered else None
        if answered:
            row.append("-" if answers is None else spread(answers, strata))
        rows.append(row)
    parts = [markdown(head, rows)]
    trained = [name for name in systems if any(name.startswith(model) for model in models)]
    means = {
        name: macro(own.mean(0), strata)
        for name, own in scores.items()
        if own is not None and name not in trained and not name.startswith(KNOWING)
    }
    if means:
        best = max(means, key=lambda name: means[name])
        lines = []
        for name in trained:
            own, other = scores[name], scores[best]
            if own is None or other is None:
                continue
            found = macro_difference(own.mean(0), other.mean(0), strata)
            lines.append(
                f"{name} less {best}: {100 * found.mean:+.1f} [{100 * found.low:+.1f}, "
                f"{100 * found.high:+.1f}], p {found.p_value:.4f}"
            )
        parts += ["", *lines]
    return "\n".join(parts)


def spread(values: np.ndarray, strata: Mapping[str, np.ndarray]) -> str:
    """Percent: the mean [interval over questions] (lowest to highest seed) of f64[S, Q]."""
    own = macro_interval(values.mean(0), strata)
    text = f"{100 * own.mean:.1f} [{100 * own.low:.1f}, {100 * own.high:.1f}]"
    each = [100 * macro(row, strata) for row in values]
    return text + (f" ({min(each):.1f} to {max(each):.1f})" if len(each) > 1 else "")


def main() -> None:
    """Run the seeds and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shared", nargs="*", default=[], help="stages that are run once")
    parser.add_argument("--at-once", type=int, default=1, help="seeds at work beside each other")
    parser.add_argument(
        "--directory", default="", help="where runs go; runs/ and the config's name"
    )
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    given, options = parser.parse_args(words[:cut]), words[cut + 1 :]
    _, stages = load_config(given.config, options)
    if unknown := [name for name in given.shared if name not in stages]:
        parser.error(f"--shared {unknown[0]}: {given.config} has {', '.join(stages)}")
    where = Path(given.directory or f"runs/{Path(given.config).stem}-seeds")
    shared, directories = where / "shared", [where / str(seed) for seed in given.seeds]
    if given.shared:
        run_stages(given.config, shared, None, options, given.shared)
    own = [name for name in stages if name not in given.shared]

    def one(seed: int, directory: Path) -> None:
        linked(shared, directory, given.shared)
        log = where / f"{seed}.log" if given.at_once > 1 else None
        run_stages(given.config, directory, seed, options, own, log)

    with ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(one, given.seeds, directories))
    for name in own:
        if not isinstance(stages[name], Evaluate):
            continue
        found = [predictions(directory, name) for directory in directories]
        asked = [{f"{q.id} {q.text}" for q in questions} for _, questions in found]
        if any(one != asked[0] for one in asked):
            print(f"\n{name}: the seeds were asked different questions, and share no table")
            continue
        print(f"\n{name}, seeds {', '.join(map(str, given.seeds))}:\n")
        print(table([lines for lines, _ in found], found[0][1], list(stages[name].models)))


if __name__ == "__main__":
    main()
