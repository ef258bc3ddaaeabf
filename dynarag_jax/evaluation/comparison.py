"""Two systems on the same questions: paired differences, their intervals and p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.evaluation.scoring import Row
from dynarag_jax.evaluation.summary import headline, names
from dynarag_jax.evaluation.tables import markdown, number, shown
from dynarag_jax.metrics.intervals import Difference, paired_bootstrap_columns


@dataclass(frozen=True)
class Compared:
    """One system minus another on a dataset's questions, or on those of one type.

    Attributes:
      a, b: names; positive differences say that ``a`` has more.
      differences: by figure, over the questions where both have it.
      wins, losses: questions on which ``a`` has more of the headline, and less.
      p_values: by figure, of the randomization test (``randomization``).
      adjusted: the headline's p-value, adjusted by Holm for all comparisons of the same dataset
        (and type).
    """

    dataset: str
    a: str
    b: str
    headline: str
    differences: dict[str, Difference]
    p_values: dict[str, float]
    type: str = ""
    wins: int = 0
    losses: int = 0
    adjusted: float | None = None


def randomization(differences: np.ndarray, samples: int = 10_000, seed: int = 0) -> np.ndarray:
    """Two-sided p-values of the paired randomization test of each column of f64[Q, F].

    If neither system were better, each question's difference would as well have had the other
    sign (Fisher 1935; Smucker, Allan and Carterette 2007 for retrieval). All 2^Q assignments of
    signs are tried where they are not more than ``samples``, else that many at random, the observed
    one added.

    Returns:
      f64[F]; never 0, and 1 where nothing differs.
    """
    n = len(differences)
    observed = np.abs(differences.sum(axis=0))
    slack = 1e-9 * np.abs(differences).sum(axis=0)
    exact = n < 60 and 2**n <= samples
    rng = np.random.default_rng(seed)
    count, tried = np.zeros(differences.shape[1]), 0
    total = 2**n if exact else samples
    block = max(1, (1 << 21) // n)
    for start in range(0, total, block):
        rows = min(block, total - start)
        if exact:
            numbers = np.arange(start, start + rows)[:, None]
            bits = (numbers >> np.arange(n)) & 1
        else:
            bits = rng.integers(0, 2, size=(rows, n), dtype=np.int8)
        sums = (1.0 - 2.0 * bits) @ differences
        count += (np.abs(sums) >= observed - slack).sum(axis=0)
        tried += rows
    return count / tried if exact else (count + 1) / (tried + 1)


def compare_rows(a: Sequence[Row], b: Sequence[Row], seed: int = 0, type_: str = "") -> Compared:
    """Compare two systems' rows, which are of the same questions in the same order.

    Raises:
      InputError: they are not.
    """
    if [row.id for row in a] != [row.id for row in b] or not a:
        raise InputError("two systems are compared on the same questions in the same order")
    first, second = [r.figures() for r in a], [r.figures() for r in b]
    groups: dict[tuple[bool, ...], list[str]] = {}
    wanted = [name for name in names(a) if any(name in v for v in second)]
    for name in wanted:
        both = tuple(name in x and name in y for x, y in zip(first, second, strict=True))
        if any(both):
            groups.setdefault(both, []).append(name)
    differences: dict[str, Difference] = {}
    tested: dict[str, float] = {}
    for both, group in groups.items():
        pick = lambda values: np.array(  # noqa: E731
            [[v[n] for n in group] for v, there in zip(values, both, strict=True) if there]  # noqa: B023
        )
        one, other = pick(first), pick(second)
        columns = paired_bootstrap_columns(one, other, seed=seed)
        differences |= dict(zip(group, columns, strict=True))
        tested |= dict(zip(group, randomization(one - other, seed=seed).tolist(), strict=True))
    main = headline(a[0].dataset, a)
    gains = [
        x[main] - y[main] for x, y in zip(first, second, strict=True) if main in x and main in y
    ]
    return Compared(
        dataset=a[0].dataset,
        a=a[0].system,
        b=b[0].system,
        headline=main,
        differences={name: differences[name] for name in wanted if name in differences},
        p_values=tested,
        type=type_,
        wins=sum(g > 0 for g in gains),
        losses=sum(g < 0 for g in gains),
    )


def compare(
    rows: dict[str, list[Row]], baseline: str, seed: int = 0, every: bool = False
) -> list[Compared]:
    """Every other system minus ``baseline``, by dataset and by type of question.

    Args:
      rows: each system's, over the same questions.
      baseline: a system's name; empty takes the first.
      every: all pairs of systems, each minus those before it, instead.

    Raises:
      InputError: there is no such system, or only one.
    """
    systems = list(rows)
    if len(systems) < 2:
        raise InputError(
            f"a comparison needs two systems or more, found {', '.join(systems) or 'none'}; name "
            f"another file of predictions"
        )
    baseline = baseline or systems[0]
    if baseline not in rows:
        raise InputError(
            f"no system '{baseline}' to compare with{nearest(baseline, systems)}; there are "
            f"{', '.join(systems)}"
        )
    pairs = [(a, baseline) for a in systems if a != baseline]
    if every:
        pairs = [(a, b) for i, a in enumerate(systems) for b in systems[:i]]
    comparisons: list[Compared] = []
    for dataset in dict.fromkeys(row.dataset for of_system in rows.values() for row in of_system):
        part = {s: [r for r in rows[s] if r.dataset == dataset] for s in systems}
        both = [(a, b) for a, b in pairs if part[a] and part[b]]
        for type_ in ["", *sorted({r.type for r in part[both[0][0]] if r.type})] if both else ():
            typed = {s: [r for r in part[s] if not type_ or r.type == type_] for s in systems}
            comparisons += holm([compare_rows(typed[a], typed[b], seed, type_) for a, b in both])
    if not comparisons:
        raise InputError(f"no two systems answer the same dataset: {', '.join(systems)}")
    return comparisons


def holm(group: Sequence[Compared]) -> list[Compared]:
    """The comparisons with their headlines' p-values adjusted together (Holm 1979)."""
    p_values = {i: c.p_values[c.headline] for i, c in enumerate(group) if c.headline in c.p_values}
    adjusted: dict[int, float] = {}
    least = 0.0
    for rank, i in enumerate(sorted(p_values, key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return [replace(c, adjusted=adjusted.get(i)) for i, c in enumerate(group)]


def compared_to_json(compared: Compared) -> dict[str, Any]:
    """The JSON object of a comparison."""
    return vars(compared) | {"differences": {n: asdict(d) for n, d in compared.differences.items()}}


def _cell(compared: Compared, figure: str) -> list[str]:
    difference = compared.differences[figure]
    signed = lambda value: ("+" if value >= 0 else "−") + number(figure, abs(value))  # noqa: E731
    low, high = signed(difference.low), signed(difference.high)
    return [
        shown(figure),
        f"{signed(difference.mean)} [{low}, {high}]",
        f"{compared.p_values[figure]:.2g}",
    ]


def comparison_table(compared: Sequence[Compared]) -> str:
    """The differences as a Markdown page: the headline by type, then every figure."""
    parts = []
    for dataset in dict.fromkeys(c.dataset for c in compared):
        group = [c for c in compared if c.dataset == dataset]
        several = len({(c.a, c.b) for c in group}) > 1
        head = ["a − b", "type", "questions", "figure", "difference", "p"]
        head += ["p (Holm)"] if several else []
        head += ["a better", "b better"]
        rows = []
        for c in group:
            if c.headline not in c.differences:
                continue
            difference = c.differences[c.headline]
            row = [f"{c.a} − {c.b}", c.type or "all", f"{difference.n:,}", *_cell(c, c.headline)]
            row += [f"{c.adjusted:.2g}"] if several else []
            rows.append([*row, str(c.wins), str(c.losses)])
        parts += [f"## {dataset}", markdown(head, rows), "### Every figure"]
        rows = [
            [f"{c.a} − {c.b}", f"{difference.n:,}", *_cell(c, figure)]
            for c in group
            if not c.type
            for figure, difference in c.differences.items()
        ]
        parts.append(markdown(["a − b", "questions", "figure", "difference", "p"], rows))
    parts.append(
        "Differences of shares in points. [low, high]: 95 % interval of the paired difference, "
        "bootstrap over questions; p: two-sided, paired randomization test; compare.json has the "
        "bootstrap's p-values, too."
    )
    return "\n\n".join(parts) + "\n"
