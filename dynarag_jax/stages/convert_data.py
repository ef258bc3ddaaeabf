"""Convert a file of questions from one format to another.

    dynarag convert_data SOURCE TARGET                      # finds the format, writes ours
    dynarag convert_data SOURCE TARGET --format dpr --to contexts
    dynarag convert_data queries.jsonl TARGET --qrels test.tsv --run bm25.trec --corpus C
    dynarag convert_data DATASET TARGET --split validation  # of the stage prepare
    dynarag convert_data ANY.json TARGET --format fields --fields.question q --dry-run

SOURCE and TARGET may be packed (.gz, .zst). docs/data.md lists the formats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dynarag_jax.data.conversion import TARGETS, ConvertData, convert_data
from dynarag_jax.data.formats import FORMATS
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.positional import Positional


@dataclass(frozen=True)
class ConvertFile(ConvertData):
    """Convert a file of questions from one format to another."""

    source: Positional[str] = ""
    """file or prepared dataset to read"""
    target: Positional[str] = ""
    """file to write"""


def describe() -> str:
    """What --help says beside the options."""
    rows = [f"  {f.name:<17}{f.fields}" for f in FORMATS.values()]
    formats = "\n".join(rows)
    return f"{__doc__}\nFormats that are read:\n{formats}\n\nWritten are {', '.join(TARGETS)}."


def run(console: Console, options: ConvertFile) -> None:
    """Convert, and say what was read, written, set aside and lost."""
    with console.progress(None) as progress:
        outcome = convert_data(options, progress.update)
    read = outcome.account
    if options.dry_run:
        console.log(f"the first record, read as {outcome.format}:")
        console.log(json.dumps(outcome.first, ensure_ascii=False, indent=2))
        for line in read.notes():
            console.log(f"note: {line}")
        return
    counts = [f"{progress.n} questions of format {outcome.format}"]
    counts += [f"{outcome.written} lines in {options.target}"]
    if read.repeats:
        done = "left out" if options.repeats == "drop" else "renamed"
        counts.append(f"{read.repeats} repeated ids {done}")
    if read.rejected:
        counts.append(f"{len(read.rejected)} set aside in {options.target}.rejects.jsonl")
    console.log(", ".join(counts))
    if outcome.lost:
        what = ", ".join(f"{name} of {n}" for name, n in outcome.lost.most_common())
        console.log(f"note: the format {options.to} does not hold the {what} questions")
    for line in read.notes():
        console.log(f"note: {line}")
