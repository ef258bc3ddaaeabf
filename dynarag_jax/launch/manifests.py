"""What a stage's record is made of: its configuration as JSON, hashes, versions, devices."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import typing
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dynarag_jax.config import SAME_RESULT
from dynarag_jax.files import fingerprint, read_json, sha256_file, write_json

PACKAGES = (
    "dynarag_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scann",
    "rax",
    "libtpu",
)
"""Packages whose versions a manifest records, where they are installed."""

LARGE = 16 << 20
"""Bytes from which on a file's hash is remembered instead of computed at every start."""


class Hashes:
    """Hashes of files and directories; those of large files are kept in a file of their own."""

    def __init__(self, memory: Path):
        self._memory = memory

    def content(self, path: Path) -> str:
        """SHA-256 of a file; of a directory, a fingerprint of file names and their hashes."""
        if path.is_file():
            return self._file(path)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return fingerprint({p.relative_to(path).as_posix(): self._file(p) for p in files})

    def _file(self, path: Path) -> str:
        """The hash of a file; a large one's is remembered as long as size and time stand."""
        status = path.stat()
        if status.st_size < LARGE:
            return sha256_file(path)
        known = read_json(self._memory) if self._memory.exists() else {}
        name, stamp = str(path.absolute()), [status.st_size, status.st_mtime_ns]
        if known.get(name, [None])[0] != stamp:
            known[name] = [stamp, sha256_file(path)]
            write_json(self._memory, known)
        return known[name][1]


def plain(value: Any) -> Any:
    """A configuration as JSON: dataclasses as objects that name their ``class``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__} | fields
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value if isinstance(value, str | int | float | None) else str(value)


def significant(recorded: Any, config: Any) -> Any:
    """A recorded configuration without the fields that change nothing of the result.

    Args:
      recorded: as ``plain`` gave it.
      config: the configuration it is compared with, whose classes mark such fields.
    """
    if dataclasses.is_dataclass(config) and isinstance(recorded, Mapping):
        hints = typing.get_type_hints(type(config), include_extras=True)
        marked = {name for name, hint in hints.items() if SAME_RESULT in typing.get_args(hint)}
        return {
            name: significant(value, getattr(config, name, None))
            for name, value in recorded.items()
            if name not in marked
        }
    if isinstance(config, Mapping) and isinstance(recorded, Mapping):
        return {name: significant(value, config.get(name)) for name, value in recorded.items()}
    if isinstance(config, list | tuple) and isinstance(recorded, list):
        inner = [*config, *[None] * len(recorded)]
        return [significant(value, one) for value, one in zip(recorded, inner, strict=False)]
    return recorded


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """What changed between two JSON values, one phrase each."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = dict.fromkeys([*before, *after])
        return [
            phrase
            for name in names
            for phrase in differences(
                before.get(name), after.get(name), f"{where}.{name}" if where else name
            )
        ]
    if before == after:
        return []
    field = where.removeprefix("config.")
    if where.startswith("inputs."):
        name = where.removeprefix("inputs.")
        return [f"input '{name}' " + ("changed" if before and after else "is new or gone")]
    return [f"{field} was {before!r} and is {after!r}"]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of the packages that a result may depend on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def devices() -> dict[str, Any]:
    """What JAX runs on."""
    seen = jax.devices()
    return {
        "platform": seen[0].platform,
        "kind": seen[0].device_kind,
        "count": len(seen),
        "processes": jax.process_count(),
    }


def manifest_of(directory: Path, stages: Iterable[str]) -> dict[str, Any]:
    """What the stages of a run directory stand for, those that have run, in order."""
    records = {}
    for name in stages:
        if (path := directory / name / "run.json").is_file():
            records[name] = read_json(path)
    fields = ("config", "seed", "inputs", "versions", "devices")
    return {name: {f: record.get(f) for f in fields} for name, record in records.items()}
