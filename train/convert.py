"""Import a Hugging Face checkpoint, check it, and export it again.

    python -m train.convert SOURCE TARGET --check
    python -m train.convert org/name merged --adapters adapters --dtype bfloat16

SOURCE is a directory or hub id. Without TARGET it is only imported and checked for completeness.
Runs in one process, or in several that share the file system: each writes its part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import jax

from dynarag_jax.config import Run
from dynarag_jax.exchange.convert import Convert, convert
from train.options import override
from train.program import guard, start_jax

SWITCHES = ("--check", "--overwrite")


def arguments(argv: Sequence[str]) -> list[str]:
    """SOURCE and TARGET by name, and switches with a value, as the options want them."""
    rest, named = list(argv), []
    for name in ("--source", "--target"):
        if rest and not rest[0].startswith("-"):
            named += [name, rest.pop(0)]
    for i, argument in enumerate(rest):
        named.append(argument)
        if argument in SWITCHES and (i + 1 == len(rest) or rest[i + 1].startswith("--")):
            named.append("True")
    return named


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Convert as the command line says; exits 0, or 2 with one line for a mistake."""

    def work() -> None:
        given = arguments(sys.argv[1:] if argv is None else argv)
        stage = override(
            {"": Convert()}, given or ["--help"],
            program="python -m train.convert SOURCE TARGET", description=__doc__ or "",
        )[""]  # fmt: skip
        start_jax(Run(directory="."))
        first = jax.process_index() == 0
        differences = convert(stage, print if first else lambda _: None)
        if differences is not None and first:
            width = max(map(len, differences.tensors))
            for name, difference in differences.tensors.items():
                print(f"{name:<{width}}  {difference:.3e}")
            print(f"{'logits':<{width}}  {differences.logits:.3e}")

    sys.exit(guard(work))


if __name__ == "__main__":
    main()
