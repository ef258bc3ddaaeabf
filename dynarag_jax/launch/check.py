"""``dynarag check``: what is wrong with a configuration, in seconds, before anything runs.

Every long command asks the same in a quick form before it begins: what is certain to end it later
ends it at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynarag_jax import processes
from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch.checks import CHECKS, Finding, Subject
from dynarag_jax.launch.plan import Devices, devices_of
from dynarag_jax.launch.progress import say
from dynarag_jax.models.kernels import Platform


def check(subject: Subject) -> list[Finding]:
    """Everything that the checks find, problems included, in the order of the checks."""
    return [finding for one in CHECKS for finding in one(subject)]


def report(findings: Sequence[Finding]) -> str:
    """The findings as text: a line for what is fine in each stage, a line for each that is not."""
    lines = []
    fine = [f for f in findings if f.level == "ok"]
    stages = dict.fromkeys(f.stage for f in fine)
    for stage in stages:
        texts = dict.fromkeys(f.text for f in fine if f.stage == stage)
        lines.append(f"ok       {_head(stage)}{'; '.join(texts)}")
    rest = [f for f in findings if f.level != "ok"]
    rest.sort(key=lambda f: f.level)  # notes, then problems
    for (level, text), same in itertools.groupby(rest, key=lambda f: (f.level, f.text)):
        lines.append(f"{level:<9}{_head(', '.join(f.stage for f in same))}{text}")
    return "\n".join(lines)


def require(
    run: Run, stages: Mapping[str, Any], names: Collection[str] = (), alone: bool = False
) -> None:
    """Refuse, before any work, what is certain to fail later; say what may fail.

    Args:
      names: the stages that are to run; empty for all. Of them, those that stand are left out.
      alone: they run without the ones before them.

    Raises:
      InputError: something is certain to fail. Of several problems each is said on a line.
    """
    wanted = [n for n in names or stages if not (Path(run.directory) / n / "done.json").is_file()]
    if not wanted:
        return
    findings = check(Subject(run, stages, wanted, devices_of(), alone=alone))
    problems = list(dict.fromkeys(f for f in findings if f.level == "problem"))
    certain = [f for f in problems if f.sure]
    said = problems if len(certain) > 1 else [f for f in problems if not f.sure]
    if processes.is_primary():
        for one in said:
            say(f"problem: {_head(one.stage)}{one.text}")
    failure = None
    if certain:
        first = f"{_head(certain[0].stage)}{certain[0].text}"
        many = f"{len(certain)} problems, and nothing was begun; the first: "
        failure = InputError(many * (len(certain) > 1) + first)
    processes.raise_together(failure)


def _head(stage: str) -> str:
    return f"{stage}: " if stage else ""


def parse_devices(text: str) -> Devices:
    """Devices by ``KIND:N``, such as ``h100:8``, ``v5p:64`` or ``cpu``.

    Raises:
      InputError: there is no such kind, or N is no number.
    """
    kind, _, count = text.partition(":")
    if count and not (count.isdigit() and int(count)):
        raise InputError(f"--devices {text}: '{count}' is no number; say KIND:N, such as h100:8")
    if kind == "cpu":
        return Devices("cpu", int(count or 1), 0, 0.0, Platform("cpu"))
    return devices_of(kind, int(count or 1))


def take_option(arguments: Sequence[str], name: str) -> tuple[str, list[str]]:
    """An option's value, and the other arguments.

    Raises:
      InputError: the option has no value.
    """
    rest = list(arguments)
    for i, argument in enumerate(rest):
        if argument == name:
            if i + 1 == len(rest):
                raise InputError(f"{name} needs a value")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2], rest[:i] + rest[i + 1 :]
    return "", rest


def check_config(run: Run, stages: Mapping[str, Any], devices: str = "") -> list[Finding]:
    """Check a whole configuration, tokenizers read.

    Args:
      devices: those of another machine, as ``parse_devices`` reads them; empty for those here.
    """
    machine = parse_devices(devices) if devices else devices_of()
    return check(Subject(run, stages, (), machine, here=not devices, tokenizers=True))
