"""One stage as a program: ``python -m train.sft CONFIG.py [--field value ...]``.

A module of train/ or eval/ is a docstring and one line:

    if __name__ == "__main__":
        main("sft")

A stage of one's own is a file with its configuration, its ``run``, and ``main(run)``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch import check, signals
from dynarag_jax.launch.console import Console, consent
from dynarag_jax.launch.context import Context, StageDone
from dynarag_jax.launch.exit_codes import guard
from dynarag_jax.launch.options import (
    load_program,
    load_stage,
    load_without_config,
    parse,
    print_help,
    program_name,
)
from dynarag_jax.launch.plan import print_plan
from dynarag_jax.launch.plan_programs import needs_of, print_programs
from dynarag_jax.launch.start import start_jax
from dynarag_jax.launch.table import Program, program, program_by
from dynarag_jax.training.config import Train

HELP = ("--help", "-h")


def main(stage: str | Callable[[Any, Any], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a stage as the command line says, and exit.

    Args:
      stage: its name, or its ``run``.
      argv: the arguments; the process's own by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        one = program(stage) if isinstance(stage, str) else program_by(stage)
        run_program(one, arguments, program_name())

    sys.exit(guard(work))


def run_program(one: Program, arguments: Sequence[str], prog: str, stage: str = "") -> None:
    """Run a stage's program.

    Args:
      arguments: the config file first, where it needs one.
      prog: how it was called, for messages.
      stage: the stage to run, where it is not of the program's name.

    Raises:
      InputError: the command line lacks the config file, or the stage finds its input wrong.
    """
    first = arguments[0] if arguments else ""
    if not one.in_a_run and one.config_optional and first.endswith(".py"):
        run, options = load_program(first, one, arguments[1:], prog)
        start_jax(run)
        one.run(Console(one.name), options)
        return
    if not one.in_a_run:
        options = parse(one.config(), arguments or ["--help"], prog=prog, description=_about(one))
        start_jax(Run(directory="."))
        one.run(Console(one.name), options)
        return
    configured = bool(first) and not first.startswith("-")
    if first in HELP:
        print_help(one, prog)
        return
    if not configured and not (one.config_optional and arguments):
        more = ", or its options without one" if one.config_optional else ""
        raise InputError(
            f"the config file comes first: {prog} CONFIG.py [--field value ...]{more}; --help "
            f"lists the options"
        )
    if configured:
        request = load_stage(Path(first), one, arguments[1:], prog, stage)
    else:
        request = load_without_config(one, arguments, prog)
    if request.plan is not None:
        config = request.stages[request.stage]
        if isinstance(config, Train):
            print_plan(request.run, request.stages, config, request.plan)
        else:
            print_programs(request.run, request.stages, needs_of(config, one.module), request.plan)
        return
    start_jax(request.run)
    check.require(request.run, request.stages, [request.stage], alone=True)
    context = Context(request.run, request.stages, request.stage, consent(request.yes))
    run_stage(context, one.run)


def run_stage(context: Context, body: Callable[[Context, Any], None]) -> bool:
    """Run one stage; False if it was done already. Its directory says how it ended."""
    signals.on_leaving(context.abandon)
    try:
        body(context, context.config)
    except StageDone:
        return False
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be what failed
            context.abandon()
        raise
    context.finish()
    return True


def _about(one: Program) -> str:
    describe = getattr(one.module, "describe", None)
    return describe() if describe else one.module.__doc__ or ""
