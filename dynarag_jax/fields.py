"""Typed access to the fields of a JSON object: every mistake names the place and the value."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from dynarag_jax.errors import InputError, nearest


class Fields:
    """The fields of one JSON object, read by type.

    Raises:
      InputError: from every method, where a field is not of its type.
    """

    def __init__(self, where: str, values: dict[str, Any]):
        self.where, self.values = where, values

    def fail(self, name: str, mend: str) -> InputError:
        value = self.values.get(name, None)
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self.where}: field '{name}' {mend}, found {shown}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def string(self, name: str, default: str | None = None, blank: bool = False) -> str:
        if not self.has(name):
            if default is not None:
                return default
            hint = nearest(name, self.values)
            raise InputError(f"{self.where}: field '{name}' is missing{hint}")
        value = self.values[name]
        if isinstance(value, int) and not isinstance(value, bool) and name == "id":
            value = str(value)
        if not isinstance(value, str):
            raise self.fail(name, "must be a string")
        if not blank and not value.strip():
            raise self.fail(name, "must not be empty")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.fail(name, "must be a list of strings")
        return tuple(value)

    def integer(self, name: str, default: int, least: int) -> int:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(name, "must be an integer")
        if value < least:
            raise self.fail(name, f"must be {least} or more")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        value = self.values.get(name)
        if not isinstance(value, list) or not all(
            isinstance(v, int) and not isinstance(v, bool) for v in value
        ):
            raise self.fail(name, "must be a list of integers")
        return tuple(value)

    def number(self, name: str, default: float | None = None) -> float | None:
        value = self.values.get(name, default)
        if value is None:
            return None
        if not isinstance(value, bool) and isinstance(value, int | float):
            with contextlib.suppress(OverflowError):  # of integers beyond any float
                if math.isfinite(value):
                    return float(value)
        raise self.fail(name, "must be a finite number")

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.fail(name, "must be a list of numbers")
        # By far the most lists are of plain numbers, and files of rollouts hold millions of them.
        if all(type(x) is float and math.isfinite(x) for x in value):
            return tuple(value)
        each = Fields(f"{self.where}: {name}", {str(i): x for i, x in enumerate(value)})
        numbers = tuple(each.number(place) for place in each.values)
        if None in numbers:
            raise self.fail(name, "must be a list of numbers")
        return tuple(x for x in numbers if x is not None)

    def objects(self, name: str) -> list[dict[str, Any]]:
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.fail(name, "must be a list of objects")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(name, "must be an object")
        return value
