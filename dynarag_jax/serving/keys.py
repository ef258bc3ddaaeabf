"""API keys, from a file and the environment; never from a command line, which others can read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.files import require_file


@dataclass(frozen=True)
class KeyOptions:
    """Who may use a server."""

    file: str = ""
    """file of API keys, one a line; lines that begin with # are passed over"""
    variable: str = "DYNARAG_API_KEY"
    """environment variable that holds one more key, if it is set"""

    def read(self) -> tuple[str, ...]:
        """The keys; none leaves the server open.

        Raises:
          InputError: the file is not there or holds none.
        """
        keys = [os.environ.get(self.variable, "").strip()] if self.variable else []
        if self.file:
            lines = require_file(Path(self.file), "file of keys").read_text().splitlines()
            found = [line.strip() for line in lines]
            found = [line for line in found if line and not line.startswith("#")]
            if not found:
                raise InputError(f"{self.file}: holds no key; write one a line")
            keys += found
        return tuple(dict.fromkeys(key for key in keys if key))
