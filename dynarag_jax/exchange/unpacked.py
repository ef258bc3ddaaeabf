"""Models that are unpacked once, into the user's cache: all else reads one kind of directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError
from dynarag_jax.files import fingerprint


def cached_place(kind: str, name: str, state: Sequence[Any]) -> Path:
    """Where what is called so, in such a state, is unpacked; nothing is made."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "dynarag_jax" / kind / f"{name}-{fingerprint(list(state))}"


def unpacked_once(target: Path, write: Callable[[Path], None]) -> Path:
    """The directory, written whole by ``write`` unless it is there.

    Raises:
      InputError: of ``write``.
    """
    if not target.is_dir():
        try:
            with atomic_directory(target) as place:
                write(place)
        except InputError:
            if not target.is_dir():  # another process was faster
                raise
    return target
