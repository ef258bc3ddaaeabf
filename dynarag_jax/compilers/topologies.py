"""Programs compiled for machines that are not here, and what their compilers say of them.

XLA's compilers for TPUs and GPUs need neither: a *topology* describes the chips, a program is
lowered from shapes under a mesh of them and compiled, and the result tells what a device holds,
computes, moves and sends. That is a measurement of the program, not of its time; the time below is
the least that the makers' numbers allow (the roofline model: Williams, Waterman, Patterson 2009).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dynarag_jax.compilers.program_costs import Collective, ProgramCosts, read_program
from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.hardware import Accelerator, accelerator

CHIPS_OF_A_HOST = 4
"""of the TPUs whose slices have hosts of four chips, which is what libtpu asks the name for"""


@dataclass(frozen=True)
class Topology:
    """Devices that a program is compiled for.

    Attributes:
      name: as it was asked for: ``v5p:4x4x4``, ``h100:2x8``.
      kind: of the accelerator.
      shape: of a TPU slice; hosts and devices of each, of GPUs.
      slices: joined by a slower network.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def accelerator(self) -> Accelerator:
        """What one of the devices is."""
        return accelerator(self.kind)

    @property
    def devices(self) -> int:
        """How many devices there are, in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def wraps(self) -> tuple[bool, bool, bool]:
        """Along which sizes of a TPU slice its links close to a ring.

        Three-dimensional slices are tori where all sizes are multiples of 4, the cubes that optical
        switches join (arXiv 2304.01433, section 2); a v5e's or v6e's side of 16 is a whole pod's.
        The compiler does not ask: told of no rings, it writes other collectives.
        """
        if len(self.shape) == 3:
            closed = all(size % 4 == 0 for size in self.shape)
            return closed, closed, closed
        first, second = self.shape
        return first == 16, second == 16, False

    @property
    def is_tpu(self) -> bool:
        """Whether they are TPUs."""
        return self.accelerator.kinds[0].startswith("TPU")


def read_topology(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as ``v5p:4x4x4``, ``v5e:2x4``, ``h100:8`` or ``h100:2x8``.

    Raises:
      InputError: it is none.
    """
    kind, _, sizes = name.partition(":")
    accelerator(kind)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", sizes):
        raise InputError(
            f"plan.compile = '{name}': give a kind and a shape: v5p:4x4x4, v5e:16x16, h100:8, "
            f"h100:2x8 (hosts x devices)"
        )
    shape = tuple(int(size) for size in sizes.split("x"))
    found = Topology(name, kind, shape, max(slices, 1))
    if found.is_tpu and len(shape) != (3 if kind in ("v4", "v5p") else 2):
        raise InputError(
            f"plan.compile = '{name}': slices of a {kind} have "
            f"{'three' if kind in ('v4', 'v5p') else 'two'} sizes, such as "
            f"{'v5p:4x4x4' if kind in ('v4', 'v5p') else 'v5e:4x4'}"
        )
    if not found.is_tpu and len(shape) > 2:
        raise InputError(f"plan.compile = '{name}': GPUs are hosts x devices, or devices alone")
    return found


def describe(topology: Topology, card: str = "") -> Sequence[Any]:
    """The devices of a topology; none of them is here.

    Args:
      card: file with XLA's description of the GPU (a ``GpuTargetConfigProto`` as text), which a
        GPU topology needs and no package carries; XLA's sources have one a card.

    Raises:
      MissingExtra: the compiler is not installed.
      InputError: there is no such topology, or it lacks its card's description.
    """
    if topology.is_tpu:
        return _describe_tpus(topology)
    from jax.experimental import topologies

    if not card:
        raise InputError(
            f"plan.compile = '{topology.name}': set plan.card to a file with XLA's description of "
            f"the GPU (xla/backends/gpu/target_config/specs/*.txtpb in XLA's sources)"
        )
    if not Path(card).is_file():
        raise InputError(f"plan.card = '{card}': no such file")
    hosts, each = topology.shape if len(topology.shape) == 2 else (1, topology.shape[0])
    try:
        return topologies.get_topology_desc(
            platform="cuda",
            target_config=Path(card).read_text(encoding="utf-8"),
            topology=f"{topology.slices}x{hosts}x{each}",
        ).devices
    except Exception as error:  # noqa: BLE001 - of many classes: no plugin, a wrong description
        raise InputError(
            f"plan.compile = '{topology.name}': the compiler of GPUs does not answer "
            f"({_short(error)}); it comes with pip install 'dynarag_jax[cuda]', and needs "
            f"JAX_PLATFORMS=cpu where there is no GPU"
        ) from None


def _describe_tpus(topology: Topology) -> Sequence[Any]:
    from importlib.util import find_spec

    from jax.experimental import topologies

    if find_spec("libtpu") is None:
        raise MissingExtra("libtpu", "compile", f"plan.compile = '{topology.name}'")
    # libtpu asks its surroundings which machine it is on, unless they are told; one process may
    # hold its lock, and another compile all the same.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{topology.kind}-{CHIPS_OF_A_HOST}",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.kind == "v4":  # whose chips' two cores are one device
        more["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, wrap=topology.wraps, **more
        ).devices
    except Exception as error:  # noqa: BLE001 - jaxlib raises plain runtime errors
        raise InputError(
            f"plan.compile = '{topology.name}': the compiler knows no such slice ({_short(error)})"
        ) from None


@dataclass(frozen=True)
class ProgramMade:
    """What a compiler made, for one device.

    Attributes:
      arguments, outputs, temporary: bytes of memory; outputs that take arguments' places are not
        counted again.
      peak: bytes that are in use at most at one time, all of these among them.
      text: of the optimized program.
    """

    arguments: int
    outputs: int
    temporary: int
    peak: int
    text: str


@dataclass(frozen=True)
class Compiled:
    """What a compiler says of a program, for one device and one run of it.

    Attributes:
      arguments, outputs, temporary, peak: bytes of memory, as of ``ProgramMade``.
      costs: operations, bytes and collectives.
    """

    arguments: int
    outputs: int
    temporary: int
    peak: int
    costs: ProgramCosts


def held_bytes(found: Compiled, topology: Topology) -> int:
    """Bytes that a device holds while the program runs.

    GPUs take what is temporary as one block beside arguments and outputs. Of TPUs it is what is in
    use at most: the figure of temporary memory that libtpu gives is more than it assigns, and it
    compiles programs for which that would be too much (docs/benchmarks.md).
    """
    if topology.is_tpu:
        return found.peak
    return found.arguments + found.outputs + found.temporary


class TooLarge(InputError):
    """The program does not fit into a device's memory, as its compiler says."""


class CompilerFails(InputError):
    """The target's compiler fails on a program, and not for its size."""


def compile_text(lowered: jax.stages.Lowered) -> ProgramMade:
    """Compile for the devices that a program was lowered for.

    Raises:
      TooLarge: a device has too little memory; the line has the compiler's own words.
      CompilerFails: with its own words, too.
    """
    try:
        program = lowered.compile()
    except Exception as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" in text:
            raise TooLarge(_short(error, 400)) from None
        if not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        raise CompilerFails(
            f"the target's compiler fails on this program ({_short(error, 400)})"
        ) from None
    memory: Any = program.memory_analysis()
    arguments, aliased = memory.argument_size_in_bytes, memory.alias_size_in_bytes
    outputs = memory.output_size_in_bytes - aliased
    temporary, peak = memory.temp_size_in_bytes, memory.peak_memory_in_bytes
    return ProgramMade(arguments, outputs, temporary, peak, program.as_text() or "")


def read_made(made: ProgramMade, trips: Sequence[float] = ()) -> Compiled:
    """What a compiled program costs.

    Args:
      trips: of loops that run as often as their data say, as of ``read_program``.
    """
    costs = read_program(made.text, trips)
    return Compiled(made.arguments, made.outputs, made.temporary, made.peak, costs)


def compile_program(lowered: jax.stages.Lowered, trips: Sequence[float] = ()) -> Compiled:
    """Compile, and read what came out; raises and arguments as of the two above."""
    return read_made(compile_text(lowered), trips)


@dataclass(frozen=True)
class Roofline:
    """The least seconds that a program's operations, memory traffic and sending take."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """If all three overlap wholly: the longest of them."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """What the longest is."""
        names = {"compute": self.compute, "memory": self.memory, "links": self.links}
        return max(names, key=lambda name: names[name])


def roofline(costs: ProgramCosts, device: Accelerator) -> Roofline:
    """The bounds of a program on a device, by the maker's numbers."""
    return Roofline(
        costs.operations / device.peak,
        costs.traffic / device.bandwidth,
        costs.sent / device.links,
    )


def by_kind(collectives: Sequence[Collective]) -> dict[str, tuple[float, float]]:
    """How often each kind of collective runs, and the bytes that a device sends by it."""
    found: dict[str, tuple[float, float]] = {}
    for one in collectives:
        times, sent = found.get(one.kind, (0.0, 0.0))
        found[one.kind] = (times + one.times, sent + one.times * one.sent)
    return dict(sorted(found.items()))


def _short(error: Exception, most: int = 200) -> str:
    return " ".join(str(error).split())[:most]
