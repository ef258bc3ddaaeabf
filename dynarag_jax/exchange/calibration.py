"""How readily a policy ends a list, chosen on questions of its own and kept beside its weights.

``calibration.json`` in a model's directory holds two numbers that are added to the policy's scores:
to that of stopping behind a passage, and to that of reading nothing. Above 0 lists are shorter.
Of a greedy list a bias of ``b`` is a threshold: it stops as soon as the odds of stopping, against
the best passage that is left, exceed ``exp(-b)``. Servers of other projects know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import PAGE
from dynarag_jax.exchange.output import share_files, shared_directory
from dynarag_jax.fields import Fields
from dynarag_jax.files import PathLike, read_json, write_json
from dynarag_jax.processes import is_primary

CALIBRATION = "calibration.json"
FORMAT = 1
_TITLE = "\n## Calibration\n"
_NOTE = f"`{CALIBRATION}` holds it; dynarag_jax applies it, and other engines do not."
_FIELDS = ("format", "stop", "empty", "target", "reached", "questions", "file")


@dataclass(frozen=True)
class ListBias:
    """What is added to the scores of ending a list; natural logarithm of odds."""

    stop: float = 0.0
    """behind a passage"""
    empty: float = 0.0
    """of the empty list"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise InputError(f"bias: {name} = {value} must be finite")

    def __bool__(self) -> bool:
        return bool(self.stop or self.empty)


NEVER = ListBias(-1e9, -1e9)
"""Ends lists only where nothing else is left."""


@dataclass(frozen=True)
class Calibration:
    """A bias and how it was chosen.

    Attributes:
      target: what it was chosen for, by name: ``{"mean_k": 2.0}``; a quality has no number.
      reached: figures of the lists on the questions it was chosen on.
      questions: how many these were, and ``file`` where they stood.
    """

    bias: ListBias
    target: dict[str, float | None] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)
    questions: int = 0
    file: str = ""

    def __str__(self) -> str:
        wanted = ", ".join(n if v is None else f"{n} {v:g}" for n, v in self.target.items())
        found = ", ".join(f"{name} {value:.3f}" for name, value in self.reached.items())
        chosen = f" for {wanted}" if wanted else ""
        where = f" on {self.questions} questions of {self.file}" if self.file else ""
        return (
            f"calibrated: {self.bias.stop:+.4f} on stopping, {self.bias.empty:+.4f} on the empty "
            f"list, chosen{chosen}{where}" + (f" ({found})" if found else "")
        )


def read_calibration(directory: PathLike) -> Calibration | None:
    """The calibration of a model's directory; None where it has none.

    Raises:
      InputError: its file is of another version, or holds what this version does not know.
    """
    path = Path(directory) / CALIBRATION
    if not path.is_file():
        return None
    said = read_json(path)
    if not isinstance(said, Mapping) or said.get("format") != FORMAT:
        found = said.get("format") if isinstance(said, Mapping) else type(said).__name__
        raise InputError(f"{path}: field 'format' is {found!r}; this version reads {FORMAT}")
    if alien := [name for name in said if name not in _FIELDS]:
        raise InputError(f"{path}: field '{alien[0]}' is not known; there are {', '.join(_FIELDS)}")
    fields = Fields(str(path), dict(said))
    stop, empty = fields.number("stop"), fields.number("empty")
    for name, value in (("stop", stop), ("empty", empty)):
        if value is None:
            raise fields.fail(name, "must be a number")
    target = Fields(f"{path}: target", fields.mapping("target"))
    reached = Fields(f"{path}: reached", fields.mapping("reached"))
    return Calibration(
        ListBias(stop or 0.0, empty or 0.0),
        {name: target.number(name) for name in target.values},
        {name: reached.number(name) or 0.0 for name in reached.values},
        fields.integer("questions", 0, least=0),
        fields.string("file", default="", blank=True),
    )


def write_calibration(directory: PathLike, calibration: Calibration) -> None:
    """Write a calibration into a model's directory."""
    said: dict[str, Any] = asdict(calibration)
    bias = said.pop("bias")
    write_json(Path(directory) / CALIBRATION, {"format": FORMAT, **bias, **said})


def carry_calibration(source: PathLike, target: PathLike) -> Calibration | None:
    """Write the calibration of one model's directory into another's, where there is one.

    Its page says so, too. One process calls it.

    Raises:
      InputError: as ``read_calibration``.
    """
    found = read_calibration(source)
    if found is not None:
        write_calibration(target, found)
        _say_on_page(Path(target), found)
    return found


def save_calibrated(source: PathLike, target: PathLike, calibration: Calibration) -> None:
    """Write a model's directory anew with a calibration; files of the same disk are shared.

    Raises:
      InputError: the target cannot be written.
    """
    with shared_directory(target, overwrite=True) as temporary:
        if not is_primary():
            return
        share_files(source, temporary, copied=(CALIBRATION, PAGE))
        write_calibration(temporary, calibration)
        _say_on_page(temporary, calibration)


def _say_on_page(directory: Path, calibration: Calibration) -> None:
    page = directory / PAGE
    if page.is_file():
        text, _, _ = page.read_text(encoding="utf-8").partition(_TITLE)
        page.write_text(f"{text.rstrip()}\n{_TITLE}\n{calibration}. {_NOTE}\n", encoding="utf-8")
