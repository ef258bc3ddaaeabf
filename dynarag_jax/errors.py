"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """A mistake in the user's files, arguments or configuration.

    The message is one line that names the file, line, field and value where they are known, and
    says how to mend it. Programs print it and exit with code 2; they never show a traceback for it.
    """


class MissingExtra(InputError):
    """An optional package is needed and absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'dynarag_jax[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
