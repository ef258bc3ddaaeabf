"""Prepare a benchmark as ArrayRecord: read lazily, with random access, without TensorFlow.

    python -m train.prepare nq --from NQ-open.dev.jsonl --directory datasets
    python -m train.prepare hotpotqa --from train=TRAIN.json validation=DEV.json
    python -m train.prepare musique                                 # from the Hugging Face hub

`python -m train.convert_data datasets/nq questions.jsonl` makes a question file of it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

from dynarag_jax.data.builders import dataset_directory, prepare
from dynarag_jax.data.catalog import BENCHMARKS, benchmark
from dynarag_jax.data.conversion import Prepare, dataset_name, prepared_sources, split_reader
from dynarag_jax.data.formats import Account
from dynarag_jax.data.hub import download
from dynarag_jax.errors import InputError
from train.convert_data import arguments
from train.options import override
from train.program import guard
from train.progress import say


def describe() -> str:
    """What --help says beside the options."""
    rows = [
        f"  {b.name:<17}{b.title}; {b.task} answers, {' and '.join(b.metrics)}; hub: {b.hub}"
        for b in BENCHMARKS.values()
    ]
    listed = "\n".join(rows)
    return f"{__doc__}\nBenchmarks:\n{listed}\n\n--from FILE [SPLIT=FILE ...] is --source."


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Prepare as the command line says; exits 0, or 2 with one line for a mistake."""

    def work() -> None:
        given = arguments(sys.argv[1:] if argv is None else argv, ("--name",))
        given = ["--source" + a[6:] if a.split("=")[0] == "--from" else a for a in given]
        if any(a == "--source" and b.startswith("--") for a, b in pairwise([*given, "--"])):
            raise InputError("prepare: --from needs the files to read: FILE [SPLIT=FILE ...]")
        options = override(
            {"": Prepare()}, given or ["--help"],
            program="python -m train.prepare NAME", description=describe(),
        )[""]  # fmt: skip
        name = dataset_name(options)
        files = prepared_sources(options) if options.source else download(benchmark(name))
        accounts: list[Account] = []
        splits = {split: split_reader(options, paths, accounts) for split, paths in files.items()}
        counts = prepare(name, options.directory, splits)
        for account in accounts:
            for line, reason in account.rejected:
                say(f"set aside: line {line}: {reason}")
        listed = ", ".join(f"{split} {count}" for split, count in counts.items())
        say(f"{dataset_directory(name, options.directory)}: {listed} questions")

    sys.exit(guard(work))


if __name__ == "__main__":
    main()
