"""Say what is in a file of questions, passages or judgments, in one screen.

    dynarag inspect FILE                                  # its format, counts, lengths, what is odd
    dynarag inspect train.jsonl --against evaluation.jsonl    # questions that both have
    dynarag inspect FILE --tokenizer MODEL                # lengths in a model's tokens
    dynarag inspect table.csv --columns question answers

Every format of docs/data.md is known, directories of BEIR and MTEB too.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynarag_jax.data.inspection import inspect_file, words
from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.data.reading import Reading
from dynarag_jax.delimited import Quotes
from dynarag_jax.errors import InputError
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.positional import Positional


@dataclass(frozen=True)
class Inspect:
    """Say what is in a file of questions, passages or judgments."""

    file: Positional[str] = ""
    """the file or directory to look at"""
    against: tuple[str, ...] = ()
    """other files of questions, such as those of an evaluation: what they share with this one"""
    tokenizer: str = ""
    """a directory or hub id of the model whose tokens are counted; empty counts words"""
    format: str = ""
    """the file's format; empty finds it by its first records"""
    columns: tuple[str, ...] = ()
    """of a table without a header line: the columns' names in order"""
    quotes: Quotes = "auto"
    """of tables: csv, none (as they stand), or seen from the whole file"""
    fields: FieldPaths = FieldPaths()
    """with format fields: paths into any JSON or Parquet, such as documents[].text"""


def run(console: Console, options: Inspect) -> None:
    """Print what is in the file."""
    if not options.file:
        raise InputError("inspect: name the file: dynarag inspect FILE")
    reading = Reading(
        options.format, columns=options.columns, quotes=options.quotes, fields=options.fields
    )
    count, unit = words, "words"
    if options.tokenizer:
        from dynarag_jax.exchange.tokenizers import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
        unit = "tokens"

        def count(texts):
            if not texts:
                return []
            return [len(ids) for ids in tokenizer([*texts], add_special_tokens=False)["input_ids"]]

    lines = inspect_file(options.file, reading, options.against, count, unit)
    console.print("\n".join(lines))
