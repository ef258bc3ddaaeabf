"""What ``train.prepare`` is asked for: a benchmark's files by split, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynarag_jax.data.catalog import benchmark
from dynarag_jax.data.reading import QuestionAccount, Reading, numbered_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import require_file
from dynarag_jax.records import Question, Task


@dataclass(frozen=True)
class Prepare:
    """Prepare a benchmark as ArrayRecord, from files or from the Hugging Face hub."""

    name: str = ""
    """the benchmark; with source and task also a name of your own"""
    source: tuple[str, ...] = ()
    """files to prepare, FILE or SPLIT=FILE; empty downloads the benchmark from the hub"""
    directory: str = "datasets"
    """where the prepared datasets lie: DIRECTORY/NAME/1.0.0"""
    split: str = ""
    """the split of files without SPLIT=; empty is the one that papers evaluate on"""
    format: str = ""
    """the files' format; empty finds it by their first records"""
    task: Task | Literal[""] = ""
    """the form of the answers; empty takes the benchmark's"""
    repeats: Literal["refuse", "drop", "rename"] = "refuse"
    """what to do with questions whose id came before"""
    reject_limit: int = 0
    """bad records of a split that are set aside before it is refused"""


def prepared_sources(options: Prepare) -> dict[str, list[Path]]:
    """The files of each split, from ``options.source``.

    Raises:
      InputError: a file is missing, or the name is neither a benchmark's nor a new one's.
    """
    default = options.split
    if not default:
        default = "test" if options.task and not _known(options.name) else (
            benchmark(options.name).split
        )  # fmt: skip
    by_split: dict[str, list[Path]] = {}
    for entry in options.source:
        split, equals, name = entry.partition("=")
        if not equals or Path(entry).exists():
            split, name = default, entry
        if not split.isidentifier():
            raise InputError(f"prepare: '{split}' is no name of a split; letters, digits and '_'")
        by_split.setdefault(split, []).append(require_file(name))
    return by_split


def _known(name: str) -> bool:
    try:
        benchmark(name)
    except InputError:
        return False
    return True


def dataset_name(options: Prepare) -> str:
    """The name to prepare under; InputError where it is no benchmark's and no task is given."""
    if not options.name:
        raise InputError("prepare: name the benchmark: NAME [--from FILE] --directory DIR")
    if _known(options.name) or not (options.task and options.source):
        return benchmark(options.name).name
    if not json.dumps(options.name).strip('"').isidentifier():
        raise InputError(f"prepare: '{options.name}' must be letters, digits and '_'")
    return options.name.lower()


def split_reader(
    options: Prepare, files: list[Path], accounts: list[QuestionAccount]
) -> Callable[[], Iterator[Question]]:
    """What reads the questions of one split; each time it is called it adds an account."""
    name = options.name if _known(options.name) else ""
    reading = Reading(options.format, name, options.task, options.repeats, options.reject_limit)

    def read() -> Iterator[Question]:
        account = QuestionAccount()
        accounts.append(account)
        for path in files:
            for _, question in numbered_questions(path, reading, account):
                yield question

    return read
