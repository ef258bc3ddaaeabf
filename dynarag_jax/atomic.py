"""Files and directories that appear whole or not at all, whenever their process is killed."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dynarag_jax.errors import InputError


def _prefix(path: Path | None = None) -> str:
    """How names of temporary files begin: for what, and of which process."""
    own = f".{platform.node().replace('.', '-')}-{os.getpid()}."
    return own if path is None else f".{path.name}{own}"


@functools.cache
def _clear_up(directory: Path) -> None:
    """Remove what processes of this machine that were killed left half written in a directory.

    What such a one had moved aside, and not yet replaced, comes back. Once a process: a directory
    may be large, and far away.
    """
    node = re.escape(platform.node().replace(".", "-"))
    form = re.compile(rf"\.(?P<name>.+?)(?P<old>\.old)?\.{node}-(?P<pid>\d+)\.\w+")
    for path in directory.iterdir():
        found = form.fullmatch(path.name)
        if found is None or _runs(int(found["pid"])):
            continue
        if found["old"]:
            kept, place = path / found["name"], directory / found["name"]
            if kept.exists() and not place.exists():
                os.replace(kept, place)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; rename it to ``path`` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(path.parent.absolute())
    encoding = None if "b" in mode else "utf-8"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
    try:
        with os.fdopen(handle, mode, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; rename it to ``path`` if the block succeeds.

    Raises:
      InputError: ``path`` exists already and ``overwrite`` is false.
    """
    path = Path(path)
    if path.parent.is_dir():
        _clear_up(path.parent.absolute())
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        if path.exists():
            # A directory cannot be replaced in one rename: move the old one aside first.
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old{_prefix()}"))
            os.replace(path, old / path.name)
            try:
                os.replace(temporary, path)
            except BaseException:
                # Where this fails, too, what stood is left aside: the next that writes brings it
                # back.
                os.replace(old / path.name, path)
                shutil.rmtree(old)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
