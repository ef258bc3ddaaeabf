"""Commands over runs and config files, beside the stages: status, restore, check, new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError
from dynarag_jax.launch import check as checking
from dynarag_jax.launch import previous
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.launch.new import NewConfig, new_config
from dynarag_jax.launch.options import load_run, parse
from dynarag_jax.launch.pipeline import run_config
from dynarag_jax.launch.plan import devices_of
from dynarag_jax.launch.progress import say
from dynarag_jax.launch.start import start_jax
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


def check(arguments: Sequence[str]) -> None:
    """Look a configuration over: ``check CONFIG.py [--devices KIND:N] [--STAGE.field value ...]``.

    Raises:
      InputError: it has problems; each is printed on a line before.
    """
    named, rest = checking.take_option(arguments, "--devices")
    if not rest or rest[0].startswith("-"):
        raise InputError("the config file comes first: dynarag check CONFIG.py [--devices KIND:N]")
    request = load_run(rest[0], rest[1:], "dynarag check")
    start_jax(request.run)
    findings = checking.check_config(request.run, request.stages, named)
    print(checking.report(findings))
    if problems := sum(one.level == "problem" for one in findings):
        raise InputError(f"{rest[0]}: {problems} problem{'s' * (problems > 1)}, see above")


def new(arguments: Sequence[str]) -> None:
    """Write a config file of one's own: ``new CONFIG.py --model M --questions Q --corpus C``.

    Raises:
      InputError: the file stands already, an input is wrong, or nothing fits the devices.
    """
    first = arguments[0] if arguments else "--help"
    about = (NewConfig.__doc__ or "").strip()
    if first.startswith("-"):
        parse(NewConfig(), ["--help"], prog="dynarag new CONFIG.py", description=about)
    options = parse(NewConfig(), arguments[1:], prog=f"dynarag new {first}", description=about)
    start_jax(Run(directory="."))
    devices = checking.parse_devices(options.devices) if options.devices else devices_of()
    for line in new_config(Path(first), options, devices, say):
        say(line)
    run, stages = read_config(first)
    filled = {name: inherit(run, stage) for name, stage in stages.items()}
    print(checking.report(checking.check_config(run, filled, options.devices)))
    say(f"{first}: written; dynarag run {first} runs it")
