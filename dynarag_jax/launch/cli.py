"""``dynarag``: every stage, and whole config files, from any folder.

dynarag STAGE CONFIG.py [--field value ...]
dynarag run CONFIG.py [--STAGE.field value ...]
dynarag --completion bash
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dynarag_jax import __version__
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.launch.table import ALIASES, summaries

COMMANDS = {
    "run": "Run every stage of a config file in order.",
    "check": "Look a config file over, in seconds: paths, packages, lengths, memory, disk.",
    "new": "Write a config file of your own, sized to this machine and your data.",
    "status": "Say what stands in a run, and what would be made anew and why.",
    "restore": "Bring back what a stage of a run made before.",
}
"""Functions of ``launch.commands``, with what they do."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run what the command line names, and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0)
    if arguments[0] == "--version":
        print(f"dynarag_jax {__version__}")
        sys.exit(0)
    # JAX and the stages are imported only where something runs.
    from dynarag_jax.launch.exit_codes import guard

    sys.exit(guard(lambda: run_command(arguments)))


def usage() -> str:
    """What ``dynarag --help`` says."""
    width = max(map(len, summaries()))
    commands = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    rows = [f"  {name:<{width}}  {line}" for name, line in summaries().items()]
    return "\n".join(
        [
            "usage: dynarag STAGE CONFIG.py [--field value ...]",
            "       dynarag run CONFIG.py [--STAGE.field value ...]",
            "",
            "Rerankers that decide which passages to read, in what order, and how many.",
            "",
            *commands,
            *rows,
            "",
            "dynarag STAGE --help lists a stage's options; a config file's own names of stages",
            "work as well. dynarag --completion bash|zsh|tcsh prints a script that completes them.",
        ]
    )


def run_command(arguments: Sequence[str]) -> None:
    """Run one command.

    Raises:
      InputError: there is no such stage, or the stage finds its input wrong.
    """
    from dynarag_jax.launch import commands
    from dynarag_jax.launch.config_file import read_config
    from dynarag_jax.launch.options import SHELLS, print_completion
    from dynarag_jax.launch.program import run_program
    from dynarag_jax.launch.table import program, program_of

    name, rest = arguments[0], arguments[1:]
    if name == "--completion":
        shell = rest[0] if rest else ""
        if shell not in SHELLS:
            raise InputError(f"--completion takes {', '.join(SHELLS)}, found '{shell}'")
        lines = summaries()
        print_completion([program(name) for name in lines], list(lines.values()), shell)
        return
    if name in COMMANDS:
        getattr(commands, name)(rest)
        return
    known = summaries()
    if name.startswith("-"):
        raise InputError(f"unknown option '{name}'; dynarag --help lists what there is")
    if name in known or name in ALIASES:
        run_program(program(name), rest, f"dynarag {name}")
        return
    if rest and Path(rest[0]).suffix == ".py" and Path(rest[0]).is_file():
        _, stages = read_config(rest[0])
        if name in stages:
            run_program(program_of(name, stages[name]), rest, f"dynarag {name}", name)
            return
    close = nearest(name, [*COMMANDS, *known])
    raise InputError(f"no stage '{name}'{close}; dynarag --help lists them")
