"""``--plan --plan.compile v5p:4x4x4``: what the target's own compiler says of a stage's step.

    python -m train.sft configs/llama3_8b.py --init ORG/NAME --plan --plan.compile v5p:4x4x4

The step is compiled as it would run there, from shapes, on whatever machine this is; a compilation
takes minutes, and what it found is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from dynarag_jax.compilers.program_costs import Collective, ProgramCosts
from dynarag_jax.compilers.topologies import (
    Compiled,
    Topology,
    by_kind,
    compile_program,
    describe,
    roofline,
)
from dynarag_jax.files import read_json, write_json
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.compiled import lower_step
from dynarag_jax.training.config import Train
from dynarag_jax.training.flops import PaddedShape
from dynarag_jax.training.plan import USABLE, MemoryPlan

GIB, GB = 2**30, 1e9
FORWARD, BACKWARD = 1.0, 2.5
"""operations of an attention kernel, forward being two products a tile and backward five"""


def compiled_lines(
    topology: Topology,
    card: str,
    stage: Train,
    cfg: DecoderConfig,
    streams: Mapping[str, PaddedShape],
    sizes: tuple[int, int, int],
    plan: MemoryPlan,
) -> list[str]:
    """Compile a stage's step for a topology, and say what came out.

    Raises:
      TooLarge: it does not fit, as the compiler says.
      InputError, MissingExtra: there is no such topology, or no compiler of it.
    """
    if not os.environ.get("JAX_PLATFORMS"):
        # The compiler is wanted, not the machine it is for, which JAX would look for.
        jax.config.update("jax_platforms", "cpu")
    mesh = make_mesh(*sizes, devices=describe(topology, card), slices=topology.slices)
    lowered = lower_step(stage, cfg, streams, mesh)
    began = time.monotonic()
    found, kept = _compiled(lowered, topology)
    seconds = time.monotonic() - began
    how = "kept from before" if kept else f"compiled in {seconds:.0f} s"
    compiler = "libtpu" if topology.is_tpu else "jaxlib"
    head = f"{topology.name} by its compiler ({compiler} {_version(compiler)}; {how})"
    return [head, *_lines(found, topology, cfg, streams, plan)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _compiled(lowered: jax.stages.Lowered, topology: Topology) -> tuple[Compiled, bool]:
    """What the compiler says, kept by the program's text and the compilers' versions."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_of = [lowered.as_text(), topology.name, str(topology.slices)]
    made_of += [_version(package) for package in ("jax", "jaxlib", "libtpu", "dynarag_jax")]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    path = Path(cache) / "dynarag_jax" / "compiled" / f"{key}.json"
    if path.is_file():
        return _from_json(read_json(path)), True
    found = compile_program(lowered)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dataclasses.asdict(found))
    return found, False


def _from_json(value: Any) -> Compiled:
    costs = value["costs"]
    collectives = tuple(Collective(**one) for one in costs["collectives"])
    largest = tuple((size, shape) for size, shape in costs["largest"])
    costs = ProgramCosts(**costs | {"collectives": collectives, "largest": largest})
    return Compiled(**value | {"costs": costs})


def attention_operations(
    cfg: DecoderConfig, streams: Mapping[str, PaddedShape], kernels: Mapping[str, float], of: int
) -> float:
    """Operations of the prompts' attention kernels on one of ``of`` devices, from shapes.

    A compiler does not say what a kernel computes. Every run of one is a layer of one stream.
    """
    if not kernels:
        return 0.0
    layer = [
        4 * rows.batch * cfg.heads * cfg.head_size * rows.prompt * (rows.prompt + 1) / 2
        for rows in streams.values()
    ]
    each = sum(layer) / len(layer) / of
    forward = sum(n for name, n in kernels.items() if "fwd" in name or name.endswith("Forward"))
    backward = sum(n for name, n in kernels.items() if "dkv" in name or "Backward" in name)
    return each * (FORWARD * forward + BACKWARD * backward)


def _lines(
    found: Compiled,
    topology: Topology,
    cfg: DecoderConfig,
    streams: Mapping[str, PaddedShape],
    plan: MemoryPlan,
) -> list[str]:
    device = topology.accelerator
    count = topology.devices
    costs = found.costs
    kernels = attention_operations(cfg, streams, costs.kernels, count)
    whole = dataclasses.replace(costs, operations=costs.operations + kernels)
    model = plan.work.model / count
    bounds = roofline(whole, device)
    usable = USABLE * device.memory
    verdict = "fits" if found.held <= usable else "DOES NOT FIT"
    largest = ", ".join(f"{shape} {size / GIB:.2f}" for size, shape in costs.largest[:3])
    sent = "; ".join(
        f"{kind} {times:.0f} times, {of / GB:.3g}"
        for kind, (times, of) in by_kind(costs.collectives).items()
    )
    return [
        f"  arguments             {found.arguments / GIB:10.2f} GiB",
        f"  temporary             {found.temporary / GIB:10.2f} GiB  the largest: {largest}",
        f"  in all                {found.held / GIB:10.2f} GiB  the plan says "
        f"{plan.total / GIB:.2f}, {plan.total / found.held - 1:+.0%}",
        f"  {verdict}: {found.held / usable:.0%} of the usable {usable / GIB:.1f} GiB",
        f"  {whole.operations:.3e} operations, {whole.operations / model:.2f} x the model's"
        + (f" ({kernels:.2e} in kernels, by their shapes)" if kernels else ""),
        f"  {costs.traffic / GB:.3g} GB through memory, {costs.sent / GB:.3g} GB sent"
        + (f": {sent}" if sent else ""),
        f"  at least {bounds.seconds:.3g} s a step, bound by {bounds.bound} (compute "
        f"{bounds.compute:.3g}, memory {bounds.memory:.3g}, links {bounds.links:.3g}): MFU of "
        f"{model / device.peak / bounds.seconds:.0%} at most",
    ]
