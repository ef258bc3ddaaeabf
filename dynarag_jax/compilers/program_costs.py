"""What an optimized XLA program computes, moves and sends, read from its text.

XLA's own ``cost_analysis`` counts the body of a loop once, however often it runs; a model whose
layers are a loop would look like one layer. Here every instruction counts as often as it runs:
trip counts are read from the loops' conditions, and where only the data know them the caller says.

Counted are matrix products (multiplications and additions, two each), whether the compiler writes
them as dots or as convolutions; bytes that leave and enter a device's main memory, by operands and
results of what is not fused away; and what each collective makes a device send, when it is done by
rings: (g - 1) / g of the result for a gather among g devices, of the operand for a scatter of sums,
twice that for a sum of which all get the whole, all of it for a permutation.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dynarag_jax.compilers.program_text import (
    Computation,
    ProgramLine,
    count_runs,
    read_computations,
)

_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all",
)  # fmt: skip
# Instructions that move nothing by themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "async", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"),
}


@dataclass(frozen=True)
class Collective:
    """One collective operation: how often it runs, and what a device sends each time."""

    kind: str
    times: float
    sent: float
    """bytes"""
    largest: int
    """bytes of its largest array"""


@dataclass(frozen=True)
class ProgramCosts:
    """What one run of a program costs one device.

    Attributes:
      operations: of matrix products.
      traffic: bytes through main memory.
      collectives: of each kind.
      kernels: custom calls by name, and how often each runs; what they compute is not in
        ``operations``, since a compiler does not say it.
      largest: the largest arrays that are made, bytes and type, at most ten.
    """

    operations: float
    traffic: float
    collectives: tuple[Collective, ...]
    kernels: Mapping[str, float] = field(default_factory=dict)
    largest: tuple[tuple[int, str], ...] = ()

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(one.times * one.sent for one in self.collectives)


def read_program(text: str, trips: Sequence[float] = ()) -> ProgramCosts:
    """The costs of a compiled program from ``Compiled.as_text()``.

    Args:
      trips: of loops that run as often as their data say, the outermost first, then those inside
        of them; others count as often as the program says.
    """
    computations, entry = read_computations(text)
    times, fused = count_runs(computations, entry, trips)
    operations = traffic = 0.0
    collectives: list[Collective] = []
    kernels: dict[str, float] = defaultdict(float)
    sizes: dict[str, int] = {}
    for name, often in times.items():
        one = computations[name]
        for step in one.instructions.values():
            operations += often * _products(step, one)
            if (found := _collective(step, one, often, name in fused)) is not None:
                collectives.append(found)
            if step.operation == "custom-call" and (kernel := _kernel(step)):
                kernels[kernel] += often
            if name not in fused:
                traffic += often * _traffic(step, one, computations)
                if step.operation not in _FREE:
                    for shape in _ARRAY.finditer(step.result):
                        sizes[shape[0].split("{")[0]] = _bytes(shape)
    largest = sorted(((size, shape) for shape, size in sizes.items()), reverse=True)[:10]
    return ProgramCosts(operations, traffic, tuple(collectives), dict(kernels), tuple(largest))


def _dimensions(shape: re.Match[str]) -> list[int]:
    return [int(size) for size in shape[2].split(",") if size]


def _bytes(shape: re.Match[str]) -> int:
    kind = shape[1]
    bits = _BITS.get(kind)
    if bits is None:
        digits = re.search(r"\d+", kind)
        bits = int(digits[0]) if digits else 0
    return math.prod(_dimensions(shape)) * bits // 8


def _total(text: str, in_main_memory: bool = False) -> int:
    """Bytes of all arrays of a type; of those alone that lie in main memory, if so asked."""
    return sum(
        _bytes(shape)
        for shape in _ARRAY.finditer(text)
        if not (in_main_memory and re.search(r"S\(\d+\)", shape[3] or ""))
    )


def _result_of(name: str, one: Computation) -> str:
    step = one.instructions.get(name)
    return step.result if step else ""


def _array(text: str) -> re.Match[str] | None:
    return _ARRAY.search(text)


def _products(step: ProgramLine, one: Computation) -> float:
    """Multiplications and additions of a matrix product; 0 for other instructions."""
    if step.operation not in ("dot", "convolution") or len(step.operands) < 2:
        return 0.0
    left, right = (_array(_result_of(name, one)) for name in step.operands[:2])
    made = _array(step.result)
    if left is None or right is None or made is None:
        return 0.0
    if step.operation == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", step.rest)
        sizes = _dimensions(left)
        inner = [sizes[int(i)] for i in contracted[1].split(",") if i] if contracted else []
        return 2.0 * math.prod(_dimensions(made)) * math.prod(inner)
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", step.rest)
    if labels is None:
        return 0.0
    lhs = dict(zip(labels[1], _dimensions(left), strict=False))
    rhs = dict(zip(labels[2], _dimensions(right), strict=False))
    out = dict(zip(labels[3], _dimensions(made), strict=False))
    spatial = sorted(name for name in out if name.isdigit())
    window = _window(step.rest, len(spatial))
    taken = 1
    for name, (size, stride, low, dilated, base) in zip(spatial, window, strict=True):
        taken *= _valid(size, stride, low, dilated, base, lhs[name], out[name])
    return 2.0 * rhs["i"] * out["f"] * out["b"] * taken / _group(step.rest, "batch_group_count")


def _group(rest: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", rest)
    return int(found[1]) if found else 1


def _window(rest: str, count: int) -> list[tuple[int, int, int, int, int]]:
    """Size, stride, padding before, and both dilations of each dimension of a window."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    said = dict(part.split("=") for part in found[1].split()) if found else {}

    def sizes(name: str, plain: int) -> list[int]:
        values = said.get(name, "").split("x") if name in said else [str(plain)] * count
        return [int(value.split("_")[0]) for value in values]

    return list(
        zip(
            sizes("size", 1), sizes("stride", 1), sizes("pad", 0), sizes("rhs_dilate", 1),
            sizes("lhs_dilate", 1), strict=True,
        )
    )  # fmt: skip


def _valid(size: int, stride: int, low: int, dilated: int, base: int, read: int, made: int) -> int:
    """How many pairs of a window's place and a result's meet a number and not padding."""
    total = 0
    for kernel in range(size):
        for place in range(made):
            at = place * stride - low + kernel * dilated
            total += at >= 0 and at % base == 0 and at // base < read
    return total


def _collective(
    step: ProgramLine, one: Computation, often: float, in_fusion: bool
) -> Collective | None:
    kind = step.operation.removesuffix("-start")
    if kind not in _COLLECTIVES:
        return None
    if in_fusion and "u32[]" in one.parameters and "s32[2]" in one.parameters:
        return None  # goes on with what another fusion began
    read = sum(_total(_result_of(name, one)) for name in step.operands)
    made = _total(step.result)
    if step.operation.endswith("-start"):
        made = max(made - read, 0) or made  # its result holds the operands, too
    if "all-reduce-scatter" in one.name and kind == "all-reduce":
        kind = "reduce-scatter"
    among = _among(step.rest)
    share = (among - 1) / among if among else 1.0
    sent = {
        "all-gather": share * made,
        "reduce-scatter": share * read,
        "all-reduce": 2 * share * read,
        "collective-permute": float(read),
    }.get(kind, share * read)
    arrays = [_bytes(shape) for shape in _ARRAY.finditer(step.result)]
    return Collective(kind, often, sent, max(arrays, default=0))


def _among(rest: str) -> int:
    """How many devices a collective joins; 0 where it does not say."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(counted[2])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return 0


def _kernel(step: ProgramLine) -> str:
    """The name of a kernel that is not XLA's own; empty where it is."""
    target = re.search(r'custom_call_target="([^"]*)"', step.rest)
    if target is None:
        return ""
    if target[1] == "tpu_custom_call":
        return re.sub(r"[.\d]+$", "", step.name)
    return target[1] if target[1].startswith("__") else ""


def _traffic(step: ProgramLine, one: Computation, computations: Mapping[str, Computation]) -> float:
    """Bytes of main memory that an instruction reads and writes."""
    operation = step.operation.removesuffix("-start")
    if operation in _FREE or operation in _COLLECTIVES or operation.endswith("-done"):
        return 0.0  # what was begun counts where it begins
    if operation in ("slice", "dynamic-slice"):
        return _part_traffic(_made(step), _result_of(step.operands[0], one))
    if operation == "dynamic-update-slice":
        whole, update = (_result_of(name, one) for name in step.operands[:2])
        return _part_traffic(update, whole)
    if operation == "copy" and step.operation != operation:
        return float(_total(step.result, in_main_memory=True))  # holds where from and where to
    if operation != "fusion":
        read = sum(_total(_result_of(name, one), in_main_memory=True) for name in step.operands)
        return float(read + _total(_made(step), in_main_memory=True))
    called = re.search(r"\bcalls=%?([\w.-]+)", step.rest)
    inner = computations.get(called[1]) if called else None
    if inner is None:
        return float(_total(step.result, in_main_memory=True))
    return _fusion_traffic(step, one, inner, computations)


def _made(step: ProgramLine) -> str:
    """The type of what an instruction makes; the result of one that begins holds operands before
    it, and a flag behind."""
    if not step.operation.endswith("-start"):
        return step.result
    arrays = list(_ARRAY.finditer(step.result))
    return ", ".join(shape[0] for shape in arrays[len(step.operands) :] if shape[2])


def _part_traffic(part: str, whole: str) -> float:
    """Bytes of a part that is read from, or written into, the whole: where either lies there."""
    size = _total(part)
    return float(_total(part, in_main_memory=True) + (size if _total(whole, True) else 0))


def _fusion_traffic(
    step: ProgramLine,
    one: Computation,
    inner: Computation,
    computations: Mapping[str, Computation],
) -> float:
    """As ``_traffic``: of operands of which a slice is read, or written in place, the slice."""
    parameters, users = _parameters(inner), _users(inner)
    total = 0.0
    in_place = 0
    for number, operand in enumerate(step.operands):
        text = _result_of(operand, one)
        size = _total(text, in_main_memory=True)
        name = parameters.get(number, "")
        readers = users.get(name, [])
        if size and any(r.operation == "dynamic-update-slice" for r in readers):
            updates = (r for r in readers if r.operation == "dynamic-update-slice")
            in_place += size
            size = sum(_total(_result_of(r.operands[1], inner)) for r in updates)
            total += size
        elif size:
            size = _read(name, size, inner, computations)
        total += size
    return total + max(_total(step.result, in_main_memory=True) - in_place, 0)


def _parameters(inner: Computation) -> dict[int, str]:
    """The names of a computation's parameters, by number."""
    return {
        int(match[1]): made.name
        for made in inner.instructions.values()
        if made.operation == "parameter" and (match := re.match(r"\((\d+)\)", made.rest))
    }


def _users(inner: Computation) -> dict[str, list[ProgramLine]]:
    """The instructions that read each array of a computation."""
    users: dict[str, list[ProgramLine]] = defaultdict(list)
    for used in inner.instructions.values():
        for name in dict.fromkeys(used.operands):
            users[name].append(used)
    return users


def _read(name: str, size: int, inner: Computation, computations: Mapping[str, Computation]) -> int:
    """Bytes that a fusion reads of an array: of slices theirs, also where a fusion inside takes
    them."""
    total = 0
    readers = _users(inner).get(name, [])
    for reader in readers:
        called = re.search(r"\bcalls=%?([\w.-]+)", reader.rest)
        within = computations.get(called[1]) if called else None
        if reader.operation in ("slice", "dynamic-slice"):
            total += _total(reader.result)
        elif reader.operation == "bitcast":
            total += _read(reader.name, size, inner, computations)
        elif reader.operation == "fusion" and within is not None:
            parameters = _parameters(within)
            for number, operand in enumerate(reader.operands):
                if operand == name:
                    total += _read(parameters.get(number, ""), size, within, computations)
        else:
            return size
    return min(size, total) if readers else size
