"""The command line: a config file's values, changed by options. tyro reads them and explains them.

``--run.FIELD`` changes the run. A program changes its own stage's fields by their bare names
(``--optimizer.learning_rate 2e-5``), the pipeline any stage's by the stage's name
(``--sft.optimizer.learning_rate 2e-5``); ``--lr`` is short for the learning rate. A switch is
``--evaluate`` or ``--no-evaluate``. A wrong option ends the program with exit code 2 and tyro's
explanation.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import operator
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.launch.plan import PlanOptions
from dynarag_jax.launch.table import Program
from dynarag_jax.training.config import Train

MARKERS = (tyro.conf.AvoidSubcommands,)
"""A field that may hold one of several classes keeps the config file's."""

SHELLS = ("bash", "zsh", "tcsh")
"""Shells that tyro completes."""

YES = (
    "yes",
    Annotated[bool, tyro.conf.arg(help="make anew what stands without asking")],
    dataclasses.field(default=False),
)

ONLY = (
    "only",
    Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="stages to run, in the config's order; those before them must stand"),
    ],
    dataclasses.field(default=()),
)

_SHORT = re.compile(r"^(--(?:[A-Za-z_]\w*\.)?)lr(=.*)?$", re.DOTALL)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class StageRequest:
    """What a command line asks for.

    Attributes:
      run: the run, with its options.
      stages: all of its stages, what they leave to the run filled in.
      stage: the name of the one to run.
      plan: what to plan it for, instead of running it.
      yes: what stands may be made anew without asking.
      only: of a whole config file, the stages to run; empty for all.
    """

    run: Run
    stages: dict[str, Any]
    stage: str
    plan: PlanOptions | None = None
    yes: bool = False
    only: tuple[str, ...] = ()


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``--lr`` and ``--STAGE.lr`` as the option that they are short for."""
    return [_SHORT.sub(r"\1optimizer.learning_rate\2", argument) for argument in arguments]


def parse(options: T, arguments: Sequence[str], *, prog: str, description: str = "") -> T:
    """A dataclass with its fields changed by the command line.

    Raises:
      SystemExit: 0 after ``--help``, 2 after explaining what is wrong with an option.
    """
    return _cli(type(options), arguments, default=options, prog=prog, description=description)


def _cli(options: Any, arguments: Sequence[str], **how: Any) -> Any:
    with warnings.catch_warnings():
        # What a stage leaves to the run has no value yet where no config file is read.
        warnings.filterwarnings("ignore", message="The field .* is annotated with type")
        return tyro.cli(
            options, args=spelled_out(arguments), use_underscores=True, config=MARKERS, **how
        )


def print_completion(programs: Sequence[Program], summaries: Sequence[str], shell: str) -> None:
    """Print a shell's script that completes stages and their options.

    Args:
      shell: one of ``SHELLS``.
    """
    choices: list[Any] = []
    for one, line in zip(programs, summaries, strict=True):
        options = option_class(one) if one.in_a_run else one.config
        choices.append(Annotated[options, tyro.conf.subcommand(one.name, description=line)])
    with contextlib.suppress(SystemExit):
        _cli(
            functools.reduce(operator.or_, choices),
            ["--tyro-print-completion", shell],
            prog="dynarag",
        )


def load_config(
    path: PathLike, arguments: Sequence[str] = (), prog: str = ""
) -> tuple[Run, dict[str, Any]]:
    """The run and the stages of a config file, with options for any of them."""
    request = load_run(path, arguments, prog)
    return request.run, request.stages


def load_run(path: PathLike, arguments: Sequence[str] = (), prog: str = "") -> StageRequest:
    """A whole config file, with options for any of its stages.

    Raises:
      InputError: the file is wrong, or has no stage of a name that ``--only`` gives.
      SystemExit: an option is, or asks for help.
    """
    run, stages = read_config(path)
    run, stages = _inherited(run, stages, arguments)
    options = _options({"run": run} | _asked_for(stages, arguments), whole=True)
    description = "All stages of the run, in order: " + ", ".join(stages)
    prog = f"{prog or program_name()} {path}"
    changed = parse(options, arguments, prog=prog, description=description)
    given = {name: getattr(changed, name, stage) for name, stage in stages.items()}
    for name in changed.only:
        if name not in stages:
            raise InputError(f"--only {name}: {path} has no such stage{nearest(name, stages)}")
    return StageRequest(changed.run, given, "", None, changed.yes, changed.only)


def load_stage(
    path: PathLike, program: Program, arguments: Sequence[str], prog: str, name: str = ""
) -> StageRequest:
    """The stage of a config file that a program runs: ``--stage NAME``, else the one of its name.

    Where the file has no stage of the program's kind, it is one with that kind's defaults.

    Raises:
      InputError: the file is wrong, or has no such stage of the program's kind.
      SystemExit: an option is wrong, or asks for help.
    """
    chosen, rest = _take_stage(arguments)
    run, stages = read_config(path)
    stage, kind = chosen or name or program.name, program.config
    fitting = [key for key, value in stages.items() if isinstance(value, kind)]
    if not fitting and not chosen and not name:
        # A stage that the config file does not mention runs with its defaults.
        stages[stage] = kind()
    if stage not in stages:
        if fitting:
            mend = f"--stage runs another {kind.__name__} stage: {', '.join(fitting)}"
        else:
            mend = f"it has {', '.join(stages)}; none is a {kind.__name__} stage"
        raise InputError(f"{path}: no stage '{stage}'{nearest(stage, stages)}; {mend}")
    if not isinstance(stages[stage], kind):
        raise InputError(
            f"{path}: stage '{stage}' is a {type(stages[stage]).__name__} stage, and "
            f"{prog} runs {kind.__name__} stages"
        )
    run, stages = _inherited(run, stages, rest)
    description = f"{_about(kind)} --stage NAME runs another stage of this kind."
    request = _stage_options(program, stages[stage], run, rest, f"{prog} {path}", description)
    return StageRequest(
        request.run, stages | {stage: request.stage}, stage, request.plan, request.yes
    )


def load_without_config(program: Program, arguments: Sequence[str], prog: str) -> StageRequest:
    """A stage that needs no config file, in ``runs/NAME`` unless the options name a directory."""
    run = Run(directory=f"runs/{program.name}")
    description = f"{_about(program.config)} A config file may come first."
    stage = inherit(run, program.config())
    request = _stage_options(program, stage, run, arguments, prog, description)
    return StageRequest(request.run, {program.name: request.stage}, program.name, None, request.yes)


def load_program(
    path: PathLike, program: Program, arguments: Sequence[str], prog: str
) -> tuple[Run, Any]:
    """The options of a program over plain files that a config file holds, changed by arguments.

    Raises:
      InputError: the file is wrong, or none of its stages is of the program's kind.
      SystemExit: an option is wrong, or asks for help.
    """
    run, stages = read_config(path)
    found = [stage for stage in stages.values() if isinstance(stage, program.config)]
    if not found:
        raise InputError(
            f"{path}: none of its stages is a {program.config.__name__}; it has {', '.join(stages)}"
        )
    given = parse(found[0], arguments, prog=f"{prog} {path}", description=_about(program.config))
    texts = {
        field.name: getattr(given, field.name).replace("{run}", run.directory)
        for field in dataclasses.fields(given)
        if isinstance(getattr(given, field.name), str)
    }
    return run, dataclasses.replace(given, **texts)


def print_help(program: Program, prog: str) -> None:
    """Print a stage's options without a config file; their defaults are the classes' own."""
    prog = prog if program.config_optional else f"{prog} CONFIG.py"
    description = f"{_about(program.config)} A config file's values are the defaults."
    with contextlib.suppress(SystemExit):
        _cli(option_class(program), ["--help"], prog=prog, description=description)


def program_name() -> str:
    """How this program was called: ``dynarag`` or ``python -m train.sft``."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def option_class(program: Program) -> type:
    """The class whose fields are a program's options."""
    # Its name stands in tyro's messages before a field that the class itself refuses.
    name = program.name if program.name not in ("run", "yes", "plan", "plan_for") else "stage"
    parts: list[tuple[str, Any, Any]] = [
        (name, Annotated[program.config, tyro.conf.arg(name="")], dataclasses.field()),
        ("run", Run, dataclasses.field(default=Run(directory=f"runs/{program.name}"))),
    ]
    parts.append(YES)
    if issubclass(program.config, Train) or hasattr(program.module, "to_plan"):
        shown = tyro.conf.arg(help="print what the stage will need instead of running it")
        parts.append(("plan", Annotated[bool, shown], dataclasses.field(default=False)))
        named = Annotated[PlanOptions, tyro.conf.arg(name="plan")]
        parts.append(("plan_for", named, dataclasses.field(default=PlanOptions())))
    return dataclasses.make_dataclass("Options", parts, frozen=True)


def _stage_options(
    program: Program, stage: Any, run: Run, arguments: Sequence[str], prog: str, description: str
) -> Any:
    """The stage, the run and the plan that a stage's command line asks for."""
    options = option_class(program)(stage, run)
    changed: Any = parse(options, arguments, prog=prog, description=description)
    own = getattr(changed, dataclasses.fields(changed)[0].name)
    plan = changed.plan_for if getattr(changed, "plan", False) else None
    return argparse.Namespace(stage=own, run=changed.run, plan=plan, yes=changed.yes)


def _inherited(
    run: Run, stages: Mapping[str, Any], arguments: Sequence[str]
) -> tuple[Run, dict[str, Any]]:
    """The stages with what they leave to the run, after the command line has changed the run."""
    if "run" in _first_names(arguments):
        options = _options({"run": run})
        changed, _ = _cli(
            type(options), arguments, default=options, return_unknown_args=True, add_help=False
        )
        run = changed.run
    return run, {name: inherit(run, one) for name, one in stages.items()}


def _first_names(arguments: Sequence[str]) -> list[str]:
    """What stands before the first dot of each option."""
    return [re.split(r"[.=]", a.removeprefix("--"))[0] for a in arguments if a.startswith("--")]


def _asked_for(stages: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The stages whose options are given, since to read those of all takes tyro a while.

    All of them where an option is nobody's, or asks for help: tyro explains what there is.
    """
    named = set(_first_names(arguments))
    if "-h" not in arguments and named <= {"run", "yes", "only", *stages}:
        return {name: stage for name, stage in stages.items() if name in named}
    return dict(stages)


def _options(values: Mapping[str, Any], whole: bool = False) -> Any:
    """One dataclass that holds all values under their names."""
    fields: list[Any] = [(name, type(value)) for name, value in values.items()]
    fields += [YES, ONLY] if whole else []
    return dataclasses.make_dataclass("Options", fields, frozen=True)(*values.values())


def _take_stage(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """``--stage NAME``, which decides what the other options are, and these."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage", default="")
    known, rest = parser.parse_known_args(list(arguments))
    return known.stage, rest


def _about(config: type) -> str:
    """The first paragraph of what a stage's configuration says of itself, with its short names."""
    said = (config.__doc__ or "").strip().split("\n\n")[0]
    return f"{said} --lr is --optimizer.learning_rate." if issubclass(config, Train) else said
