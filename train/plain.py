"""Programs over plain files: a config file may come first, and may be left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import split_name
from train import program
from train.context import Context
from train.options import override, program_name, stage_help
from train.program import Body, C, guard, run_stage, start_jax


def main(
    name: str, config_type: type[C], body: Body[C], argv: Sequence[str] | None = None
) -> NoReturn:
    """As ``program.main``; without a config file, ``python -m eval.NAME --field value ...``.

    Then the run's directory is ``runs/NAME``, unless ``--run.directory`` names another.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        program.main(name, config_type, body, arguments)

    def work() -> None:
        if not arguments:
            raise InputError(
                f"nothing to do: {program_name()} --questions FILE --predictions FILE, or a config "
                f"file first; --help lists the options"
            )
        changed = override(
            {"": config_type(), "run": Run(directory=f"runs/{name}")},
            arguments,
            program=program_name(),
            description=stage_help(config_type) + " A config file may come first.",
        )
        start_jax(changed["run"])
        run_stage(Context(changed["run"], {name: changed[""]}, name), body)

    sys.exit(guard(work))


def sources(context: Context, given: Sequence[str], what: str) -> list[tuple[str, Path]]:
    """``FILE`` and ``NAME=FILE`` of a configuration as names and paths.

    Raises:
      InputError: there are none.
    """
    if not given:
        raise InputError(f"{context.stage}: name at least one file with --{what}")
    return [(name, context.path(path)) for name, path in map(split_name, given)]


def inputs(kinds: dict[str, list[Path]]) -> dict[str, Path]:
    """Input files by a name of their own, for the manifest."""
    return {
        f"{kind} {number}" if len(paths) > 1 else kind: path
        for kind, paths in kinds.items()
        for number, path in enumerate(paths, 1)
    }
