"""Import a Hugging Face checkpoint, check it, and export it again.

    dynarag convert SOURCE TARGET --check
    dynarag convert org/name merged --adapters adapters --dtype bfloat16

SOURCE is a directory or hub id. Without TARGET it is only imported and checked for completeness.
Runs in one process, or in several that share the file system: each writes its part.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from dynarag_jax.exchange.convert import Convert, convert
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.positional import Positional


@dataclass(frozen=True)
class ConvertCheckpoint(Convert):
    """Import a Hugging Face checkpoint, check it, and export it again."""

    source: Positional[str] = ""
    """directory or hub id of the checkpoint"""
    target: Positional[str] = ""
    """directory to write; empty only imports and checks"""


def run(console: Console, options: ConvertCheckpoint) -> None:
    """Convert; the tensors' differences are printed where ``check`` asks for them."""
    first = jax.process_index() == 0
    differences = convert(options, console.print if first else lambda _: None)
    if differences is not None and first:
        console.print(
            f"checked: {options.target}, read back, against {options.source}: the largest "
            f"difference of each of {len(differences.tensors)} tensors, and of the logits for a "
            f"fixed random text, in float32"
        )
        width = max(map(len, differences.tensors))
        for name, difference in differences.tensors.items():
            console.print(f"{name:<{width}}  {difference:.3e}")
        console.print(f"{'logits':<{width}}  {differences.logits:.3e}")
