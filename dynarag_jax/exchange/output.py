"""A directory that several processes write together, and that appears whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, atomic_directory

_NAME_BYTES = 4096


@contextlib.contextmanager
def shared_directory(path: PathLike, overwrite: bool = False) -> Iterator[Path]:
    """As ``files.atomic_directory``, for all processes of a run; they share the file system.

    Every process gets the same temporary directory; the first one renames it when all are done.

    Raises:
      InputError: ``path`` exists and ``overwrite`` is false, or it cannot be written (permission,
        full disk). Nothing is left behind.
    """
    try:
        if jax.process_index() == 0:
            with atomic_directory(path, overwrite) as temporary:
                _announce(temporary)
                yield temporary
                _meet("written")
        else:
            yield _announced(path)
            _meet("written")
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); nothing is left of it") from None
    _meet("renamed")


def _announce(path: Path) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        name = np.zeros(_NAME_BYTES, np.uint8)
        raw = str(path.absolute()).encode()
        name[: len(raw)] = list(raw)
        multihost_utils.broadcast_one_to_all(name)


def _announced(path: PathLike) -> Path:
    from jax.experimental import multihost_utils

    name = np.asarray(multihost_utils.broadcast_one_to_all(np.zeros(_NAME_BYTES, np.uint8)))
    temporary = Path(bytes(name[name > 0]).decode())
    if not temporary.is_dir():
        raise InputError(f"{path}: the processes do not share this directory; choose one they do")
    return temporary


def _meet(what: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"export {what}")
