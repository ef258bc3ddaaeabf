"""Convert a file of questions from one format to another.

    python -m train.convert_data SOURCE TARGET                      # finds the format, writes ours
    python -m train.convert_data SOURCE TARGET --format dpr --to contexts
    python -m train.convert_data queries.jsonl TARGET --qrels test.tsv --run bm25.trec --corpus C
    python -m train.convert_data DATASET TARGET --split validation  # of train.prepare

SOURCE and TARGET may be packed (.gz, .zst). docs/data.md lists the formats.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from dynarag_jax.data.conversion import TARGETS, ConvertData, convert_data
from dynarag_jax.data.formats import FORMATS
from train.options import override
from train.program import guard
from train.progress import Progress, say

SWITCHES = ("--overwrite",)


def arguments(argv: Sequence[str], places: Sequence[str]) -> list[str]:
    """The first arguments by their names, and switches with a value, as the options want them."""
    rest, named = list(argv), []
    for name in places:
        if rest and not rest[0].startswith("-"):
            named += [name, rest.pop(0)]
    for i, argument in enumerate(rest):
        # What people write is --reject-limit; the options are spelled as in Python.
        head, equals, value = argument.partition("=")
        if head.startswith("--"):
            argument = head.replace("-", "_").replace("__", "--", 1) + equals + value
        named.append(argument)
        if argument in SWITCHES and (i + 1 == len(rest) or rest[i + 1].startswith("--")):
            named.append("True")
    return named


def describe() -> str:
    """What --help says beside the options."""
    rows = [f"  {f.name:<17}{f.fields}" for f in FORMATS.values()]
    formats = "\n".join(rows)
    return f"{__doc__}\nFormats that are read:\n{formats}\n\nWritten are {', '.join(TARGETS)}."


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Convert as the command line says; exits 0, or 2 with one line for a mistake."""

    def work() -> None:
        given = arguments(sys.argv[1:] if argv is None else argv, ("--source", "--target"))
        options = override(
            {"": ConvertData()}, given or ["--help"],
            program="python -m train.convert_data SOURCE TARGET", description=describe(),
        )[""]  # fmt: skip
        with Progress(None, "convert_data") as progress:
            outcome = convert_data(options, progress.update)
        read = outcome.account
        counts = [f"{progress.n} questions of format {outcome.format}"]
        counts += [f"{outcome.written} lines in {options.target}"]
        if read.repeats:
            done = "left out" if options.repeats == "drop" else "renamed"
            counts.append(f"{read.repeats} repeated ids {done}")
        if read.rejected:
            counts.append(f"{len(read.rejected)} set aside in {options.target}.rejects.jsonl")
        say(", ".join(counts))
        if outcome.lost:
            what = ", ".join(f"{name} of {n}" for name, n in outcome.lost.most_common())
            say(f"note: the format {options.to} does not hold the {what} questions")

    sys.exit(guard(work))


if __name__ == "__main__":
    main()
