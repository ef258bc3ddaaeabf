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

Failure = OSError | InputError


@contextlib.contextmanager
def shared_directory(path: PathLike, overwrite: bool = False) -> Iterator[Path]:
    """As ``files.atomic_directory``, for all processes of a run; they share the file system.

    Every process gets the same temporary directory; the first one renames it when all are done. If
    one of them fails to write, all of them raise.

    Raises:
      InputError: ``path`` exists and ``overwrite`` is false, or it cannot be written (permission,
        full disk). Nothing is left behind.
    """
    try:
        with contextlib.ExitStack() as stack:
            failure: Failure | None = None
            temporary = Path()
            try:
                if jax.process_index() == 0:
                    temporary = stack.enter_context(atomic_directory(path, overwrite))
            except (OSError, InputError) as error:
                failure = error
            agree(failure)
            temporary = _same_everywhere(temporary)
            try:
                if not temporary.is_dir():
                    raise InputError(f"{path}: not a directory that all processes share")
                yield temporary
            except (OSError, InputError) as error:
                failure = error
            agree(failure)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); nothing is left of it") from None
    # Nobody goes on, to read it perhaps, before it has its name.
    agree(None)


def agree(failure: Failure | None) -> None:
    """Raise on every process if one of them has a failure: its own, or that another has one."""
    failed = failure is not None
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = bool(np.any(multihost_utils.process_allgather(np.array(failed))))
    if failed:
        raise failure or OSError("another process could not write its part")


def _same_everywhere(path: Path) -> Path:
    """The first process's path."""
    if jax.process_count() == 1:
        return path
    from jax.experimental import multihost_utils

    name = np.zeros(_NAME_BYTES, np.uint8)
    raw = str(path.absolute()).encode()
    name[: len(raw)] = list(raw)
    name = np.asarray(multihost_utils.broadcast_one_to_all(name)).astype(np.uint8)
    return Path(bytes(name[name > 0]).decode())
