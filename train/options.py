"""Config files, and their overrides on the command line.

A config file is Python that defines ``run``, a ``Run``, and ``stages``, a dict from a stage's name
to its configuration, in the order in which the pipeline runs them:

    run = Run(directory="runs/quickstart")
    stages = {"facts": Facts(), "retrieve": Retrieve(passages=8), "sft": Sft()}

Every mistake in it, and every mistake on the command line, is an InputError of one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike, require_file

MODULE = "dynarag_config"
"""The name under which a config file runs; dataclasses defined in it need one."""

MARKERS = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
"""A field that may hold one of several classes keeps the config file's; ``--field True|False``."""


def load_config(path: PathLike, overrides: Sequence[str] = ()) -> tuple[Run, dict[str, Any]]:
    """The run and the stages of a config file, with overrides for any of them.

    Overrides are named from the top: ``--run.seed 1``, ``--sft.optimizer.learning_rate 2e-5``.
    ``--help`` prints all of them and exits.

    Raises:
      InputError: the file or an override is wrong.
    """
    run, stages = read_config(path)
    defaults = {"run": run} | stages
    program = f"{program_name()} {path}"
    description = "All stages of the run, in order: " + ", ".join(stages)
    changed = override(defaults, overrides, program=program, description=description)
    return changed.pop("run"), changed


def load_stage(
    path: PathLike, name: str, config_type: type, overrides: Sequence[str] = (), chosen: str = ""
) -> tuple[Run, dict[str, Any], str]:
    """The run, its stages and the name of the one to run: ``chosen``, else ``name``.

    Overrides are those of that stage, without its name (``--optimizer.learning_rate 2e-5``), and
    those of the run (``--run.seed 1``).

    Raises:
      InputError: the file or an override is wrong, or it has no such stage of ``config_type``.
    """
    run, stages = read_config(path)
    stage = chosen or name
    program = f"{program_name()} {path}"
    if stage not in stages:
        fitting = [key for key, value in stages.items() if isinstance(value, config_type)]
        if fitting:
            mend = f"--stage runs another {config_type.__name__} stage: {', '.join(fitting)}"
        else:
            mend = f"it has {', '.join(stages)}; none is a {config_type.__name__} stage"
        raise InputError(f"{path}: no stage '{stage}'{nearest(stage, stages)}; {mend}")
    if not isinstance(stages[stage], config_type):
        raise InputError(
            f"{path}: stage '{stage}' is a {type(stages[stage]).__name__} stage, and "
            f"{program_name()} runs {config_type.__name__} stages"
        )
    changed = override(
        {"": stages[stage], "run": run},
        overrides,
        program=program,
        description=f"{stage_help(config_type)} --stage NAME runs another stage of this kind.",
    )
    return changed["run"], stages | {stage: changed[""]}, stage


def print_help(config_type: type | None) -> None:
    """Print the options of a program that was called without a config file."""
    program = f"{program_name()} CONFIG.py"
    if config_type is None:
        print(f"usage: {program} [OPTIONS]\n\nAfter the config file, --help lists the options.")
        return
    stage = Annotated[config_type, tyro.conf.arg(name="")]
    with contextlib.suppress(SystemExit):
        tyro.cli(
            dataclasses.make_dataclass("Options", [("stage", stage), ("run", Run)], frozen=True),
            args=["--help"],
            prog=program,
            description=stage_help(config_type) + " Defaults are the config file's.",
            use_underscores=True,
            config=MARKERS,
        )


def stage_help(config_type: type) -> str:
    """The first sentence of a stage's docstring."""
    return (config_type.__doc__ or "").strip().split("\n\n")[0]


def program_name() -> str:
    """How this program was called: ``python -m train.sft``."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


# ---------------------------------------------------------------------------- the file


def read_config(path: PathLike) -> tuple[Run, dict[str, Any]]:
    """Run a config file and return its ``run`` and ``stages``, checked against their types."""
    path = Path(path)
    if not path.exists() and path.parent.is_dir():
        there = [p.name for p in path.parent.glob("*.py") if p.name != "__init__.py"]
        raise InputError(f"{path}: no such config file{nearest(path.name, there)}")
    values = _execute(require_file(path, "config file"))
    missing = [name for name in ("run", "stages") if name not in values]
    if missing:
        raise InputError(f"{path}: does not define '{missing[0]}'{nearest(missing[0], values)}")
    run, stages = values["run"], values["stages"]
    if not isinstance(run, Run):
        raise InputError(f"{path}: 'run' must be a Run, found {_shown(run)}")
    if not isinstance(stages, dict) or not stages:
        raise InputError(f"{path}: 'stages' must be a dict of stages, found {_shown(stages)}")
    for name, stage in stages.items():
        if not isinstance(name, str) or not name.isidentifier() or name == "run":
            raise InputError(
                f"{path}: stage name {name!r} must be letters, digits and '_', and not 'run'"
            )
        if not dataclasses.is_dataclass(stage) or isinstance(stage, type):
            raise InputError(
                f"{path}: stage '{name}' must be a stage's configuration, found {_shown(stage)}"
            )
    for name, value in {"run": run, **stages}.items():
        if wrong := _mismatch(value, type(value), name):
            raise InputError(f"{path}: {wrong}")
    return run, dict(stages)


def _execute(path: Path) -> dict[str, Any]:
    module = types.ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}") from None
    except Exception as error:  # noqa: BLE001 - whatever a config file raises is the user's
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise InputError(f"{where}: {_explain(error, vars(module))}") from None
    return vars(module)


def _explain(error: Exception, values: Mapping[str, Any]) -> str:
    """What went wrong in a config file, in its own words, with the nearest name where one helps."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    keyword = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and keyword:
        owner, field = keyword.groups()
        known = _field_names(owner, values)
        mend = nearest(field, known) or f"; it has {', '.join(known)}"
        return f"{owner} has no field '{field}'{mend}"
    lacking = re.search(r"(\w+)\.__init__\(\) missing \d+ required .* arguments?: (.*)", text)
    if isinstance(error, TypeError) and lacking:
        return f"{lacking.group(1)} needs {lacking.group(2)}"
    if isinstance(error, NameError) and error.name:
        return f"{text}{nearest(error.name, values)}"
    if isinstance(error, ImportError) and error.name:
        wanted = re.search(r"cannot import name '(\w+)'", text)
        there = vars(sys.modules[error.name]) if error.name in sys.modules else {}
        if wanted:
            return (
                f"'{error.name}' has no '{wanted.group(1)}'{nearest(wanted.group(1), list(there))}"
            )
    return f"{type(error).__name__}: {text}"


def _field_names(class_name: str, values: Mapping[str, Any]) -> list[str]:
    """Fields of the dataclass of this name, as the config file or the library knows it."""
    library = [vars(m) for key, m in list(sys.modules.items()) if key.startswith("dynarag_jax")]
    for names in (values, *library):
        found = names.get(class_name)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return [field.name for field in dataclasses.fields(found) if field.init]
    return []


# ---------------------------------------------------------------------------- types


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _mismatch(value: Any, expected: Any, where: str) -> str | None:
    """Say how ``value`` fails to be of type ``expected``; None where it does not.

    Dataclasses do not check their fields, and a wrong one would surface hours later.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    wrong = f"{where} must be {_type_name(expected)}, found {_shown(value)}"
    if origin is Annotated:
        return _mismatch(value, arguments[0], where)
    if origin in (typing.Union, types.UnionType):
        found = [_mismatch(value, choice, where) for choice in arguments]
        nested = [m for m in found if m and not m.startswith(f"{where} must")]
        return None if None in found else (nested[0] if nested else wrong)
    if origin is Literal:
        known = [choice for choice in arguments if isinstance(choice, str)]
        close = nearest(value, known) if isinstance(value, str) else ""
        return None if value in arguments else wrong + close
    if origin is tuple:
        if not isinstance(value, tuple):
            return wrong
        kinds = arguments
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            kinds = (arguments[0],) * len(value)
        if len(kinds) != len(value):
            return wrong
        parts = zip(value, kinds, strict=True)
        return _first(_mismatch(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(parts))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return wrong
        keys = _first(_mismatch(key, arguments[0], f"a key of {where}") for key in value)
        return keys or _first(
            _mismatch(v, arguments[1], f"{where}[{key!r}]") for key, v in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, origin) or isinstance(value, str):
            return wrong
        return _first(_mismatch(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if expected is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        return None if ok else wrong
    if expected is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else wrong
    if not isinstance(expected, type):
        return None  # Any, Callable and the like: nothing to check here
    if not isinstance(value, expected):
        return wrong
    if not dataclasses.is_dataclass(value):
        return None
    hints = typing.get_type_hints(type(value), include_extras=True)
    fields = [field.name for field in dataclasses.fields(value)]
    return _first(_mismatch(getattr(value, f), hints[f], f"{where}.{f}") for f in fields)


def _first(found: typing.Iterable[str | None]) -> str | None:
    return next((text for text in found if text), None)


def _type_name(expected: Any) -> str:
    if typing.get_origin(expected) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(expected)))
    if typing.get_origin(expected) is None and isinstance(expected, type):
        article = "an" if expected.__name__[0] in "aeiouAEIOU" else "a"
        return "None" if expected is type(None) else f"{article} {expected.__name__}"
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(expected))


# ---------------------------------------------------------------------------- the command line


def override(
    defaults: Mapping[str, Any], arguments: Sequence[str], *, program: str, description: str
) -> dict[str, Any]:
    """Change the fields of dataclasses from command-line arguments.

    Args:
      defaults: prefix -> dataclass; ``{"run": Run(...)}`` is changed by ``--run.seed 1``. The
        empty prefix stands for none.

    Raises:
      InputError: an option is unknown or a value is not of its type.
      SystemExit: after printing what ``--help`` asks for.
    """
    if not arguments:
        return dict(defaults)
    names = {prefix: prefix or "stage" for prefix in defaults}
    fields: list[Any] = [
        (
            names[prefix],
            type(value) if prefix else Annotated[type(value), tyro.conf.arg(name="")],
        )
        for prefix, value in defaults.items()
    ]
    options = dataclasses.make_dataclass("Options", fields, frozen=True)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            changed, unknown = tyro.cli(
                options,
                args=list(arguments),
                default=options(*defaults.values()),
                prog=program,
                description=description,
                use_underscores=True,
                return_unknown_args=True,
                config=MARKERS,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_unbox(complaint.getvalue())) from None
    if unknown:
        known = [name for prefix, value in defaults.items() for name in _options(value, prefix)]
        raise InputError(_unknown(unknown[0], known, program))
    return {prefix: getattr(changed, names[prefix]) for prefix in defaults}


def _options(value: Any, prefix: str) -> list[str]:
    """The dotted names of everything in ``value`` that can be set."""
    inner: Mapping[Any, Any] = {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    elif isinstance(value, Mapping) and value:
        inner = value
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        inner = dict(enumerate(value))
    if not inner:
        return [prefix] if prefix else []
    return [n for k, v in inner.items() for n in _options(v, f"{prefix}.{k}" if prefix else str(k))]


def _unknown(argument: str, known: Sequence[str], program: str) -> str:
    if not argument.startswith("--"):
        return f"unexpected argument '{argument}'; options are written --field VALUE"
    name = argument[2:].split("=")[0].replace("-", "_")
    options = [f"--{option}" for option in known]
    # Someone who leaves the prefix away is told the whole name.
    ends = [option for option in known if option.endswith(f".{name}")]
    close = f" (did you mean '--{ends[0]}'?)" if ends else nearest(f"--{name}", options)
    return f"unknown option '--{name}'{close}" + ("" if close else f"; {program} --help lists them")


def _unbox(text: str) -> str:
    """The message in tyro's error, as one line: what stands between its title and the next rule."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip("│╭╰╮╯ \t") for line in plain.strip().splitlines()]
    ruled = [bool(line) and not line.strip("─-") for line in lines]
    first = 2 if len(lines) > 1 and ruled[1] else 1
    last = next((i for i in range(first, len(lines)) if ruled[i] or not lines[i]), len(lines))
    message = " ".join(lines[first:last]) or " ".join(plain.split())
    return message.replace(" stage.", " ")  # the prefix that is not written
