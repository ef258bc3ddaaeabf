"""Files that a stage's configuration names, and those that its processes append to together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import split_name
from dynarag_jax.files import output_stem
from dynarag_jax.launch.context import Context
from dynarag_jax.parts import Key, SharedRows, by_id
from dynarag_jax.processes import ProcessTeam


def sources(context: Context, given: Sequence[str], what: str) -> list[tuple[str, Path]]:
    """``FILE`` and ``NAME=FILE`` of a configuration as names and paths.

    Raises:
      InputError: there are none.
    """
    if not given:
        raise InputError(f"{context.stage}: name at least one file with --{what}")
    return [(name, context.path(path)) for name, path in map(split_name, given)]


def questions_by_output(context: Context, given: Sequence[str]) -> dict[str, Path]:
    """Question files by the name that their results get: ``q.jsonl``, also of ``q.jsonl.gz``.

    Raises:
      InputError: there are none, or two would be written to one file.
    """
    if not given:
        raise InputError(f"{context.stage}: name at least one file in 'questions'")
    found: dict[str, Path] = {}
    for path in map(context.path, given):
        name = f"{output_stem(path.name)}.jsonl"
        if name in found:
            raise InputError(
                f"{context.stage}: {found[name]} and {path} would both be written to {name}; "
                f"rename one"
            )
        found[name] = path
    return found


def opened(
    context: Context, path: Path, team: ProcessTeam, key: Key = by_id, afresh: bool = False
) -> SharedRows:
    """A file in parts that this process appends to, with the others; arguments as of its class."""
    rows = SharedRows(path, team, key, afresh)
    if rows.repaired:
        context.log(f"{path}: removed an unfinished last line of {rows.repaired} bytes")
    return rows


def inputs(kinds: dict[str, list[Path]]) -> dict[str, Path]:
    """Input files by a name of their own, for the manifest."""
    return {
        f"{kind} {number}" if len(paths) > 1 else kind: path
        for kind, paths in kinds.items()
        for number, path in enumerate(paths, 1)
    }
