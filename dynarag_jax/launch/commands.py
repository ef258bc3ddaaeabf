"""Commands over runs and config files, beside the stages: status, restore."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.launch import previous
from dynarag_jax.launch.pipeline import run_config
from dynarag_jax.launch.progress import say
from dynarag_jax.launch.status import run_status, table


def run(arguments: Sequence[str]) -> None:
    """Run every stage of a config file: ``run CONFIG.py [--STAGE.field value ...]``."""
    run_config(arguments, "dynarag run")


def status(arguments: Sequence[str]) -> None:
    """Say what stands in a run, and what would be made anew: ``status RUN`` or ``CONFIG.py``."""
    if len(arguments) != 1:
        raise InputError("dynarag status takes a run's directory or a config file")
    directory, statuses = run_status(arguments[0])
    print(f"{directory}\n{table(statuses)}")


def restore(arguments: Sequence[str]) -> None:
    """Bring back what a stage made before: ``restore RUN STAGE [N]``."""
    if len(arguments) not in (2, 3) or not all(n.isdigit() for n in arguments[2:]):
        raise InputError("dynarag restore takes a run's directory, a stage and perhaps a number")
    root, stage = Path(arguments[0]), arguments[1]
    if not root.is_dir():
        raise InputError(f"{root}: no such run directory")
    previous.restore(root, stage, int(arguments[2]) if arguments[2:] else 0, say)
