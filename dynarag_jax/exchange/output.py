"""A directory that several processes write together, and that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike
from dynarag_jax.processes import agree, is_primary, raise_together, wait

Failure = OSError | InputError


def share_files(source: PathLike, target: Path, copied: Collection[str] = ()) -> None:
    """Put the files of a directory into another; those of one disk are shared, not copied.

    What is written anew later, under a temporary name first, is no longer shared.

    Args:
      copied: names of files that are copied all the same.
    """
    source = Path(source)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.name not in copied:
            with contextlib.suppress(OSError):  # another disk, or one without links
                os.link(path.resolve(), place)
        if not place.exists():
            shutil.copyfile(path, place)


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
                if is_primary():
                    temporary = stack.enter_context(atomic_directory(path, overwrite))
            except (OSError, InputError) as error:
                failure = error
            raise_together(failure)
            temporary = Path(agree(str(temporary.absolute())))
            try:
                if not temporary.is_dir():
                    raise InputError(f"{path}: not a directory that all processes share")
                yield temporary
            except (OSError, InputError) as error:
                failure = error
            raise_together(failure)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); nothing is left of it") from None
    # Nobody goes on, to read it perhaps, before it has its name.
    wait("the directory has its name")
