"""The files of an index: ``manifest.json``, ``ids.json`` and the data, in one directory.

The manifest says what made the index, how large it is, what was measured, and the size and checksum
of every file. Paths in it are relative, so that the directory may be moved.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_json, sha256_file, write_json

FORMAT = 3
MANIFEST, IDS = "manifest.json", "ids.json"
# Directories of additions and removals, of which the manifest names one.
CHANGES = "changes-"


def sealed(place: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Names, relative to ``place``, with sizes and checksums."""
    return {
        path.relative_to(place).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in files
    }


def require_space(directory: Path, needed: int) -> None:
    """InputError if the disk that holds ``directory``, or will, has less than ``needed`` bytes."""
    existing = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{directory}: the index takes about {needed / 2**20:,.1f} MiB, the disk has "
            f"{free / 2**20:,.1f} MiB free; make room or choose another directory"
        )


def write_index(
    directory: PathLike,
    ids: Sequence[str],
    facts: Mapping[str, Any],
    write: Callable[[Path], dict[str, Any]],
    size: int,
    overwrite: bool,
) -> None:
    """Write an index as a directory, whole or not at all.

    Args:
      facts: what the manifest says beside the files.
      write: writes the data files into a directory and returns further facts.
      size: about how many bytes it writes.
    """
    folder = Path(directory)
    some = ids[:1000]
    require_space(folder, size + sum(len(i) + 6 for i in some) * len(ids) // max(1, len(some)))
    try:
        with atomic_directory(folder, overwrite) as temporary:
            write_json(temporary / IDS, list(ids))
            data = write(temporary)
            written = sorted(p for p in temporary.rglob("*") if p.is_file())
            manifest = {
                "format": FORMAT,
                **facts,
                "ids": IDS,
                **data,
                "files": sealed(temporary, written),
            }
            write_json(temporary / MANIFEST, manifest)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"{folder}: the disk ran full, nothing was kept ({error.strerror}); make room or "
            f"choose another directory"
        ) from None


def read_manifest(directory: PathLike) -> dict[str, Any]:
    """The manifest of an index; InputError if there is none or it does not say what it must."""
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise InputError(f"{directory}: no such index directory")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        version = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise InputError(
            f"{path}: field 'format' must be {FORMAT}, found {version!r:.40}; build the index again"
        )
    kinds = {"kind": str, "encoder": str, "count": int, "dim": int, "ids": str, "files": dict}
    for field, kind in kinds.items():
        value = manifest.get(field)
        if not isinstance(value, kind):
            raise InputError(
                f"{path}: field '{field}' must be {kind.__name__}, found {value!r:.40}"
            )
    return manifest


def check_files(directory: Path, files: dict[str, dict[str, Any]], checksums: bool = True) -> None:
    """Compare the files with the manifest's sizes and checksums.

    Raises:
      InputError: one is missing, cut off, changed, or does not belong there.
    """
    for name, wanted in files.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: this file of the index is missing; build the index again")
        if (size := path.stat().st_size) != wanted["bytes"]:
            raise InputError(
                f"{path}: holds {size:,} bytes, {MANIFEST} says {wanted['bytes']:,}; it was cut "
                f"off or changed, build the index again"
            )
        if checksums and sha256_file(path) != wanted["sha256"]:
            raise InputError(
                f"{path}: differs from the checksum in {MANIFEST}; build the index again"
            )
    present = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    # ScaNN would read a pickle of ids that lies beside its files.
    if pickles := sorted(name for name in present if name.endswith(".pkl")):
        raise InputError(
            f"{directory / pickles[0]}: a pickle can run any code when it is read; remove it"
        )
    # What a kill left of a change that was never made is no part of the index, and does no harm.
    strays = sorted(
        name
        for name in present - files.keys() - {MANIFEST}
        if not name.startswith((CHANGES, f".{CHANGES}", f".{MANIFEST}."))
    )
    if strays:
        raise InputError(f"{directory / strays[0]}: not a file of this index; remove it")
