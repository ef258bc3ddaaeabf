"""Prepare a benchmark as ArrayRecord: read lazily, with random access, without TensorFlow.

    dynarag prepare nq --from NQ-open.dev.jsonl --directory datasets
    dynarag prepare hotpotqa --from train=TRAIN.json validation=DEV.json
    dynarag prepare musique                                 # from the Hugging Face hub

`dynarag convert_data datasets/nq questions.jsonl` makes a question file of it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dynarag_jax.data.builders import dataset_directory, prepare
from dynarag_jax.data.catalog import BENCHMARKS, benchmark
from dynarag_jax.data.hub import download
from dynarag_jax.data.preparation import Prepare, dataset_name, prepared_sources, split_reader
from dynarag_jax.data.reading import QuestionAccount
from dynarag_jax.errors import InputError
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.positional import Positional, arg


@dataclass(frozen=True)
class PrepareBenchmark(Prepare):
    """Prepare a benchmark as ArrayRecord: read lazily, with random access, without TensorFlow."""

    name: Positional[str] = ""
    """the benchmark"""
    source: Annotated[tuple[str, ...] | None, arg(aliases=("--from",))] = None  # type: ignore
    """files to read, FILE or SPLIT=FILE; without it, the Hugging Face hub's"""


def describe() -> str:
    """What --help says beside the options."""
    rows = [
        f"  {b.name:<17}{b.title}; {b.task} answers, {' and '.join(b.metrics)}; hub: {b.hub}"
        for b in BENCHMARKS.values()
    ]
    listed = "\n".join(rows)
    return f"{__doc__}\nBenchmarks:\n{listed}"


def run(console: Console, options: PrepareBenchmark) -> None:
    """Prepare every split, and say how many questions each has."""
    if options.source == ():
        raise InputError("prepare: --from needs the files to read: FILE [SPLIT=FILE ...]")
    name = dataset_name(options)
    files = prepared_sources(options) if options.source else download(benchmark(name))
    accounts: list[QuestionAccount] = []
    splits = {split: split_reader(options, paths, accounts) for split, paths in files.items()}
    counts = prepare(name, options.directory, splits)
    for account in accounts:
        for line, reason in account.rejected:
            console.log(f"set aside: line {line}: {reason}")
    listed = ", ".join(f"{split} {count}" for split, count in counts.items())
    console.log(f"{dataset_directory(name, options.directory)}: {listed} questions")
