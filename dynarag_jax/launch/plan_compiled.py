"""``--plan --plan.compile v5p:4x4x4``: what the target's own compiler says of a stage's programs.

    python -m train.sft configs/llama3_8b.py --init ORG/NAME --plan --plan.compile v5p:4x4x4

A program is compiled as it would run there, from shapes, on whatever machine this is; a compilation
takes minutes, and what it found is kept.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dynarag_jax.atomic import atomic_write
from dynarag_jax.compilers.topologies import (
    Compiled,
    ProgramMade,
    Roofline,
    Topology,
    by_kind,
    compile_text,
    describe,
    held_bytes,
    read_made,
    roofline,
)
from dynarag_jax.errors import InputError
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.sharding import Sizes, mesh_of
from dynarag_jax.training.compiled import lower_step
from dynarag_jax.training.config import Train
from dynarag_jax.training.flops import PaddedShape, visible_keys
from dynarag_jax.training.plan import USABLE, MemoryPlan

GIB, GB = 2**30, 1e9
FORWARD, BACKWARD = 1.0, 2.5
"""operations of an attention kernel, forward being two products a tile and backward five"""


@dataclass(frozen=True)
class CompilerReport:
    """What the target's compiler says of a program.

    Attributes:
      found: the compiler's own figures, for one device and one run.
      how: whether it was compiled now, and in how many seconds, or its report was kept.
      kernels: operations in kernels, by their shapes; a compiler does not say them.
      model: operations that the model has, on one device.
      bounds: what its operations, kernels included, its memory traffic and sending take at least.
    """

    found: Compiled
    how: str
    kernels: float
    model: float
    bounds: Roofline

    @property
    def operations(self) -> float:
        """On one device, kernels included."""
        return self.found.costs.operations + self.kernels


def mesh_for(topology: Topology, card: str, sizes: Sizes) -> Mesh:
    """The mesh over devices that are not here.

    Raises:
      InputError, MissingExtra: there is no such topology, or no compiler of it.
    """
    devices = devices_for(topology, card)
    return mesh_of(sizes, devices, topology.slices)


def devices_for(topology: Topology, card: str) -> Sequence[Any]:
    """The devices that are not here; raises as ``mesh_for``."""
    if not os.environ.get("JAX_PLATFORMS"):
        # The compiler is wanted, not the machine it is for, which JAX would look for.
        jax.config.update("jax_platforms", "cpu")
    return describe(topology, card)


def compile_step(
    topology: Topology,
    card: str,
    stage: Train,
    cfg: DecoderConfig,
    streams: Mapping[str, PaddedShape],
    sizes: Sizes,
    plan: MemoryPlan,
) -> CompilerReport:
    """Compile a training stage's step for a topology.

    Raises:
      TooLarge: it does not fit, as the compiler says.
      CompilerFails: it fails otherwise.
      InputError, MissingExtra: there is no such topology, or no compiler of it; or JAX makes this
        model's programs only where such a GPU is.
    """
    mesh = mesh_for(topology, card, sizes)
    try:
        lowered = lower_step(stage, cfg, streams, mesh)
    except NotImplementedError as error:
        # JAX asks the GPU that is here what cuDNN can do: heads of more than 128 need Hopper.
        raise InputError(
            f"plan.compile = '{topology.name}': JAX writes no program of this model for a GPU that "
            f"is not here ({error}); --model.attention plain compiles attention by XLA instead"
        ) from None
    count = topology.devices
    return compile_report(
        lowered,
        topology,
        plan.work.model / count,
        lambda kernels: attention_operations(cfg, streams, kernels, count),
    )


def compile_report(
    lowered: jax.stages.Lowered,
    topology: Topology,
    model: float,
    kernels: Callable[[Mapping[str, float]], float] = lambda runs: 0.0,
    trips: Sequence[float] = (),
) -> CompilerReport:
    """Compile a program, or find what was said of it before.

    Args:
      model: operations that the model has, on one device.
      kernels: operations of kernels, from how often each runs.
      trips: of loops whose data decide, as of ``read_program``.

    Raises:
      TooLarge: it does not fit, as the compiler says.
    """
    began = time.monotonic()
    found, kept = _compiled(lowered, topology, trips)
    how = "kept from before" if kept else f"compiled in {time.monotonic() - began:.0f} s"
    inside = kernels(found.costs.kernels)
    whole = dataclasses.replace(found.costs, operations=found.costs.operations + inside)
    return CompilerReport(found, how, inside, model, roofline(whole, topology.accelerator))


def compiler_version(topology: Topology) -> str:
    """The compiler's package and version."""
    package = "libtpu" if topology.is_tpu else "jaxlib"
    return f"{package} {_version(package)}"


def head_line(report: CompilerReport, topology: Topology) -> str:
    """Who says what follows."""
    return f"{topology.name} by its compiler ({compiler_version(topology)}; {report.how})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _compiled(
    lowered: jax.stages.Lowered, topology: Topology, trips: Sequence[float]
) -> tuple[Compiled, bool]:
    """What the compiler says, kept by the program's text and the compilers' versions.

    Kept is what was made and not how it was read, so that a better reading needs no compiler.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_of = [lowered.as_text(), topology.name, str(topology.slices)]
    made_of += [str(topology.wraps)] if topology.is_tpu else []
    made_of += [_version(package) for package in ("jax", "jaxlib", "libtpu")]
    # What compilers are told outside the program.
    made_of += [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    path = Path(cache) / "dynarag_jax" / "compiled" / f"{key}.json.gz"
    if path.is_file():
        return read_made(ProgramMade(**json.loads(gzip.decompress(path.read_bytes()))), trips), True
    made = compile_text(lowered)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.dumps(dataclasses.asdict(made)).encode()
    with atomic_write(path, "wb") as file:
        file.write(gzip.compress(kept, mtime=0))
    return read_made(made, trips), False


def attention_operations(
    cfg: DecoderConfig, streams: Mapping[str, PaddedShape], kernels: Mapping[str, float], of: int
) -> float:
    """Operations of the prompts' attention kernels on one of ``of`` devices, from shapes.

    A compiler does not say what a kernel computes. Every run of one is a layer of one stream; where
    some layers have a window, the mean layer.
    """
    if not kernels:
        return 0.0
    layer = [
        4 * rows.batch * cfg.heads * cfg.head_size
        * visible_keys(cfg, dataclasses.replace(rows, branch=1)) / cfg.layers
        for rows in streams.values()
    ]  # fmt: skip
    return kernel_operations(sum(layer) / len(layer) / of, kernels)


def kernel_operations(layer: float, kernels: Mapping[str, float]) -> float:
    """Operations of attention kernels, of which each run attends ``layer`` operations' worth."""
    # Splash attention's names say fwd, dkv and dq (which comes with dkv); cuDNN's, Backward or not.
    backward = sum(n for name, n in kernels.items() if "dkv" in name or "Backward" in name)
    forward = sum(
        n
        for name, n in kernels.items()
        if "fwd" in name or (name.startswith("__cudnn$fmha") and "Backward" not in name)
    )
    return layer * (FORWARD * forward + BACKWARD * backward)


def report_lines(
    report: CompilerReport,
    topology: Topology,
    planned: int,
    what: str = "a step",
    beside: int = 0,
) -> list[str]:
    """What the compiler said, in lines to print.

    Args:
      planned: bytes that the plan says a device holds.
      what: one run of the program.
      beside: bytes that lie on a device while it runs, and are none of its arguments.
    """
    device, found = topology.accelerator, report.found
    costs, bounds = found.costs, report.bounds
    usable = USABLE * device.memory
    held = held_bytes(found, topology) + beside
    verdict = "fits" if held <= usable else "DOES NOT FIT"
    largest = ", ".join(f"{shape} {size / GIB:.2f}" for size, shape in costs.largest[:3])
    sent = "; ".join(
        f"{kind} {times:.0f} times, {of / GB:.3g}"
        for kind, (times, of) in by_kind(costs.collectives).items()
    )
    return [
        f"  arguments             {found.arguments / GIB:10.2f} GiB",
        *([f"  beside them           {beside / GIB:10.2f} GiB"] if beside else []),
        f"  temporary             {found.temporary / GIB:10.2f} GiB  the largest: {largest}",
        f"  at most at one time   {held / GIB:10.2f} GiB  the plan says "
        f"{planned / GIB:.2f}, {planned / held - 1:+.0%}",
        f"  {verdict}: {held / usable:.0%} of the usable {usable / GIB:.1f} GiB",
        f"  {report.operations:.3e} operations, {report.operations / report.model:.2f} x the "
        f"model's"
        + (f" ({report.kernels:.2e} in kernels, by their shapes)" if report.kernels else ""),
        f"  {costs.traffic / GB:.3g} GB through memory, {costs.sent / GB:.3g} GB sent"
        + (f": {sent}" if sent else ""),
        f"  at least {bounds.seconds:.3g} s {what}, bound by {bounds.bound} (compute "
        f"{bounds.compute:.3g}, memory {bounds.memory:.3g}, links {bounds.links:.3g}): MFU of "
        f"{report.model / device.peak / bounds.seconds:.0%} at most",
    ]
