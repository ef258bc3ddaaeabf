"""The text of an optimized XLA program: its computations, and how often each of them runs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_HEAD = re.compile(r"^\s*(?:ENTRY )?%?([\w.-]+) \((.*)\) -> .* \{$")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*)$")


@dataclass(frozen=True)
class ProgramLine:
    name: str
    operation: str
    result: str
    operands: tuple[str, ...]
    rest: str
    root: bool


@dataclass
class Computation:
    name: str
    parameters: str
    instructions: dict[str, ProgramLine]

    @property
    def root(self) -> ProgramLine | None:
        return next((one for one in self.instructions.values() if one.root), None)


def read_computations(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and which is entered first."""
    found: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if (head := _HEAD.match(line)) and not line.startswith("  "):
            current = Computation(head[1], head[2], {})
            found[head[1]] = current
            if line.startswith("ENTRY"):
                entry = head[1]
        elif (
            current is not None
            and (match := _LINE.match(line))
            and (made := _instruction(match[2], match[3], bool(match[1]))) is not None
        ):
            current.instructions[made.name] = made
    return found, entry


def _instruction(name: str, text: str, root: bool) -> ProgramLine | None:
    result, text = _balanced(text) if text.startswith("(") else _first_word(text)
    match = re.match(r"\s*([\w-]+)\(", text)
    if match is None:
        return None
    inside, rest = _balanced(text[match.end() - 1 :])
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    if match[1] in ("parameter", "constant"):
        rest = inside + rest
    return ProgramLine(name, match[1], result, operands, rest, root)


def _first_word(text: str) -> tuple[str, str]:
    word, _, rest = text.partition(" ")
    return word, " " + rest


def _balanced(text: str) -> tuple[str, str]:
    """The text to the bracket that closes the first one, and what follows."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def count_runs(
    computations: Mapping[str, Computation], entry: str, trips: Sequence[float] = ()
) -> tuple[dict[str, float], set]:
    """How often each computation runs that the program reaches, and those within fusions.

    Args:
      trips: of loops that run as often as their data say, the outermost first, then those inside
        of them; what is not given here counts once.
    """
    order = list(_reached(computations, entry))
    times: dict[str, float] = defaultdict(float)
    times[entry] = 1.0
    depth: dict[str, int] = defaultdict(int)  # in how many such loops a computation stands
    fused: set[str] = set()
    for name in order:
        for step in computations[name].instructions.values():
            for callee, factor in _calls(step, computations, computations[name]):
                inside = depth[name]
                if factor is None:
                    factor = trips[inside] if inside < len(trips) else 1.0
                    inside += 1
                times[callee] += times[name] * factor
                depth[callee] = max(depth[callee], inside)
                if step.operation == "fusion" or name in fused:
                    fused.add(callee)
    return dict(times), fused


def _reached(computations: Mapping[str, Computation], entry: str) -> Iterator[str]:
    """Computations that are reached, each after all that call it."""
    seen: set[str] = set()
    done: list[str] = []

    def visit(name: str) -> None:
        if name in seen or name not in computations:
            return
        seen.add(name)
        for step in computations[name].instructions.values():
            for callee, _ in _calls(step, computations, computations[name]):
                visit(callee)
        done.append(name)

    visit(entry)
    return reversed(done)


def _calls(
    step: ProgramLine, computations: Mapping[str, Computation], within: Computation
) -> list[tuple[str, float | None]]:
    """The computations that an instruction runs, and how often; None where the data decide."""
    named = dict(re.findall(r"\b(calls|to_apply|body|condition)=%?([\w.-]+)", step.rest))
    if step.operation == "while":
        trips = _trips(step, computations, within, named)
        return [(named["body"], trips), (named["condition"], None if trips is None else trips + 1)]
    if step.operation == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", step.rest)
        either = re.findall(r"\b(?:true|false)_computation=%?([\w.-]+)", step.rest)
        inside = re.findall(r"%?([\w.-]+)", branches[1]) if branches else either
        # Which branch runs is not known here: the average.
        return [(name, 1 / len(inside)) for name in inside]
    if step.operation in ("fusion", "call", "call-start", "async-start"):
        return [(named[key], 1.0) for key in ("calls", "to_apply") if key in named]
    return []


def _trips(
    step: ProgramLine,
    computations: Mapping[str, Computation],
    within: Computation,
    named: Mapping[str, str],
) -> float | None:
    """How often a loop runs: as the compiler noted it, or as a counter is compared; else None."""
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', step.rest):
        return float(known[1])
    one = computations.get(named.get("condition", ""))
    compares = one.root if one is not None else None
    if one is None or compares is None or not _is_comparison(compares, computations):
        return None
    constants = (_constant(one.instructions.get(name)) for name in compares.operands)
    limits = [limit for limit in constants if limit is not None]
    if not limits:
        return None
    counted = [
        int(place[1])
        for name in compares.operands
        if (made := one.instructions.get(name)) is not None
        and made.operation == "get-tuple-element"
        and (place := re.search(r"\bindex=(\d+)", made.rest))
    ]
    begins, by = 0, 1
    if counted:
        begins = _constant(_element(within, step.operands[0], counted[0])) or 0
        by = _added(computations, computations[named["body"]], counted[0]) or 1
    # A loop that the compiler unrolled counts by more than one.
    return float(max(0, -((begins - max(limits)) // by)))


def _constant(step: ProgramLine | None) -> int | None:
    """The number that an instruction is; None where it is none."""
    if step is None or step.operation != "constant":
        return None
    found = re.match(r"\((-?\d+)\)", step.rest)
    return int(found[1]) if found else None


def _element(one: Computation, name: str, place: int) -> ProgramLine | None:
    """What stands at a place of a tuple."""
    made = one.instructions.get(name)
    if made is None or made.operation != "tuple" or place >= len(made.operands):
        return None
    return one.instructions.get(made.operands[place])


def _added(computations: Mapping[str, Computation], body: Computation, place: int) -> int | None:
    """What a loop's body adds to its counter, at a place of what it carries."""
    made = _element(body, body.root.name, place) if body.root is not None else None
    if made is not None and made.operation == "fusion":
        called = re.search(r"\bcalls=%?([\w.-]+)", made.rest)
        body = computations.get(called[1] if called else "", body)
        made = body.root
    if made is None or made.operation != "add":
        return None
    numbers = (_constant(body.instructions.get(name)) for name in made.operands)
    return next((number for number in numbers if number), None)


def _is_comparison(step: ProgramLine, computations: Mapping[str, Computation]) -> bool:
    """Whether an instruction compares its own operands, in a fusion of that alone or by itself."""
    if step.operation != "fusion":
        return step.operation == "compare"
    called = re.search(r"\bcalls=%?([\w.-]+)", step.rest)
    inner = computations.get(called[1]) if called else None
    if inner is None or inner.root is None or inner.root.operation != "compare":
        return False
    made = [inner.instructions.get(name) for name in inner.root.operands]
    return all(one is not None and one.operation == "parameter" for one in made)
