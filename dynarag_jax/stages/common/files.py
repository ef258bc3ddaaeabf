"""Files that a stage's configuration names as ``FILE`` or ``NAME=FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import split_name
from dynarag_jax.launch.context import Context


def sources(context: Context, given: Sequence[str], what: str) -> list[tuple[str, Path]]:
    """``FILE`` and ``NAME=FILE`` of a configuration as names and paths.

    Raises:
      InputError: there are none.
    """
    if not given:
        raise InputError(f"{context.stage}: name at least one file with --{what}")
    return [(name, context.path(path)) for name, path in map(split_name, given)]


def inputs(kinds: dict[str, list[Path]]) -> dict[str, Path]:
    """Input files by a name of their own, for the manifest."""
    return {
        f"{kind} {number}" if len(paths) > 1 else kind: path
        for kind, paths in kinds.items()
        for number, path in enumerate(paths, 1)
    }
