"""The stages there are: the files of ``dynarag_jax/stages``, found by name, imported when run.

A stage's file has a docstring whose first line says what it does, a configuration, and

    def run(context: Context, stage: Sft) -> None: ...

A program over plain files, which needs neither run directory nor config file, is a function
``run(console: Console, options: Convert)``. ``CONFIG_OPTIONAL = True`` in the file lets a stage run
without a config file.
"""

from __future__ import annotations

import ast
import importlib
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dynarag_jax.errors import InputError, nearest

PACKAGE = "dynarag_jax.stages"
DIRECTORY = Path(__file__).parent.parent / "stages"
ALIASES = {"dpo": "feedback"}
"""Earlier names of stages."""


@dataclass(frozen=True)
class Program:
    """A stage's code: its configuration class and what runs it."""

    name: str
    config: type
    run: Callable[[Any, Any], None]
    module: ModuleType

    @property
    def in_a_run(self) -> bool:
        """Whether it works in a run's directory; else over plain files."""
        return "context" in typing.get_type_hints(self.run)

    @property
    def config_optional(self) -> bool:
        """Whether it may run without a config file."""
        return getattr(self.module, "CONFIG_OPTIONAL", False)


def summaries() -> dict[str, str]:
    """Every stage's name and the first line of its file, without importing any of them."""
    lines = {}
    for path in sorted(DIRECTORY.glob("*.py")):
        if path.stem != "__init__":
            text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
            lines[path.stem] = text.split("\n")[0]
    return lines


def program(name: str) -> Program:
    """The stage of this name.

    Raises:
      InputError: there is none.
    """
    name = ALIASES.get(name, name)
    if not (DIRECTORY / f"{name}.py").is_file() or name == "__init__":
        known = list(summaries())
        raise InputError(
            f"unknown stage '{name}'{nearest(name, known)}; there are {', '.join(known)}"
        )
    return program_by(importlib.import_module(f"{PACKAGE}.{name}").run)


def program_of(name: str, stage: Any) -> Program:
    """The program of a configuration: it stands in the same file.

    Raises:
      InputError: nothing there runs it.
    """
    module = sys.modules[type(stage).__module__]
    body: Callable[[Any, Any], None] | None = getattr(module, "run", None)
    if body is not None and not isinstance(body, type):
        one = program_by(body)
        if isinstance(stage, one.config):
            return one
    raise InputError(
        f"stage '{name}': no program runs a {type(stage).__name__}; {module.__name__} has no "
        f"function run(context, stage: {type(stage).__name__})"
    )


def program_by(run: Callable[[Any, Any], None]) -> Program:
    """The program that a stage's ``run`` is, whoever wrote it."""
    hints = typing.get_type_hints(run)
    config = next(hint for name, hint in hints.items() if name in ("stage", "options"))
    module = sys.modules[run.__module__]
    name = Path(module.__file__ or "").stem or module.__name__
    return Program(name, config, run, module)
