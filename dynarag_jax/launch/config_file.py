"""Config files: Python that defines ``run``, a ``Run``, and ``stages``.

``stages`` is a dict from a stage's name to its configuration, in the order in which they run:

    run = Run(directory="runs/quickstart")
    stages = {"facts": Facts(), "retrieve": Retrieve(passages=8), "sft": Sft()}

Every mistake in it is an InputError of one line.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike, require_file

MODULE = "dynarag_config"
"""The name under which a config file runs; dataclasses defined in it need one."""


def read_config(path: PathLike) -> tuple[Run, dict[str, Any]]:
    """Run a config file and return its ``run`` and ``stages``, checked against their types.

    Raises:
      InputError: the file is not there, does not run, or defines something else.
    """
    path = Path(path)
    if not path.exists() and path.parent.is_dir():
        there = [p.name for p in path.parent.glob("*.py") if p.name != "__init__.py"]
        raise InputError(f"{path}: no such config file{nearest(path.name, there)}")
    if path.suffix != ".py" and path.is_file():
        raise InputError(
            f"{path}: the config file comes first, and is Python (mine.py); files to read are "
            f"options, such as --questions {path.name} (--help lists them)"
        )
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
        if wrong := _mismatch(inherit(run, value), type(value), name):
            raise InputError(f"{path}: {wrong}")
    return run, dict(stages)


@dataclasses.dataclass(frozen=True)
class Base:
    """A config file that another one begins with."""

    run: Run
    stages: dict[str, Any]


def base_config(file: str, name: str) -> Base:
    """The config file ``name`` beside ``file``, to begin another one with.

        quickstart = base_config(__file__, "quickstart.py")
        run = replace(quickstart.run, directory="runs/mine")

    Raises:
      InputError: it is wrong.
    """
    return Base(*read_config(Path(file).with_name(name)))


def _execute(path: Path) -> dict[str, Any]:
    # One config file may read another: each has a module of its own while it runs.
    module = types.ModuleType(f"{MODULE}_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
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
        kind = names.get(class_name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return [field.name for field in dataclasses.fields(kind) if field.init]
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
        mismatches = [_mismatch(value, choice, where) for choice in arguments]
        nested = [m for m in mismatches if m and not m.startswith(f"{where} must")]
        return None if None in mismatches else (nested[0] if nested else wrong)
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
