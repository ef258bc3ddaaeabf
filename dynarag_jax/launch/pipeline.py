"""Run the stages of a config file in order: done ones are skipped, others continue.

dynarag run configs/quickstart.py
dynarag run configs/quickstart.py --run.seed 1 --only sft rollout feedback evaluate
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from dynarag_jax import processes
from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch import check
from dynarag_jax.launch.console import consent
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.exit_codes import guard
from dynarag_jax.launch.options import load_run, program_name
from dynarag_jax.launch.program import HELP, run_stage
from dynarag_jax.launch.progress import clock, say
from dynarag_jax.launch.start import start_jax
from dynarag_jax.launch.table import program_of


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a whole config file as the command line says, and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(guard(lambda: run_config(arguments, program_name())))


def run_config(arguments: Sequence[str], prog: str) -> None:
    """Run ``CONFIG.py [--run.field value] [--STAGE.field value] [--only STAGE ...]``.

    Raises:
      InputError: the config file is missing or wrong, or a stage finds its input wrong.
    """
    if arguments and arguments[0] in HELP:
        print(f"usage: {prog} CONFIG.py [OPTIONS]\n\nAfter the config file, --help lists them.")
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"the config file comes first: {prog} CONFIG.py [--field value ...]")
    request = load_run(arguments[0], arguments[1:], prog)
    start_jax(request.run)
    check.require(request.run, request.stages, request.only, alone=bool(request.only))
    run_all(request.run, request.stages, request.yes, request.only)


def run_all(
    run: Run, stages: Mapping[str, Any], yes: bool = False, only: Collection[str] = ()
) -> None:
    """Run the stages; each one's directory says whether it stands.

    Args:
      yes: make anew what stands without asking.
      only: names of the stages to run; empty for all.
    """
    programs = {name: program_of(name, stage) for name, stage in stages.items()}
    # A server's options may stand beside the stages; it is started by itself.
    wanted = only or stages
    bodies = {n: one.run for n, one in programs.items() if one.in_a_run and n in wanted}
    began, fresh = time.monotonic(), 0
    tell = say if processes.is_primary() else lambda text: None
    for number, (name, body) in enumerate(bodies.items(), 1):
        at = time.monotonic()
        ran = run_stage(Context(run, stages, name, consent(yes)), body)
        fresh += ran
        state = f"done in {clock(time.monotonic() - at)}" if ran else "done before"
        tell(f"[{number}/{len(bodies)}] {name}: {state}")
        # A stage's weights and compiled programs are not held while the next one runs.
        gc.collect()
    if fresh:
        tell(f"{fresh} of {len(bodies)} stages ran, in {clock(time.monotonic() - began)}")
    else:
        tell(f"every stage stood already; results: {run.directory}")
