"""Queries per second at a recall, beside FAISS on the same vectors, in one run.

    python -m benchmarks.index_vectors CACHE --data FOLDER      # once: 100,000 real vectors
    python -m benchmarks.index CACHE                            # all of it
    python -m benchmarks.index CACHE --part synthetic --count 150000    # a trial

Ours is ``build_index``, which tunes itself to the target. FAISS's flat index is exact. IVF with
4-bit PQ (fast scan, the best codes refined by float32 vectors; two numbers of lists, several of
candidates, the fewest probes for each found by bisection) and HNSW (efSearch by bisection) get the
fastest settings that reach the target, chosen by time on the very queries that are timed. Ours is
tuned on other queries. Recall is that of the 40 best of exact search.

Every system gets the same threads: one for single queries, all for batches. In turn, ``--rounds``
times; printed are medians, ratios with their range over rounds, seconds to build and memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_vectors import clustered

K = 40
TARGETS = (0.95, 0.99)
Search = Callable[[np.ndarray], np.ndarray]


@dataclass
class System:
    """One of those compared, at one target."""

    name: str
    settings: str
    search: Search
    recall: float
    single: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)


@dataclass
class Built:
    """What building one took."""

    name: str
    seconds: float
    megabytes: float


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path, help="directory that index_vectors filled")
    parser.add_argument("--part", choices=("real", "synthetic", "both"), default="both")
    parser.add_argument("--count", type=int, default=1_000_000, help="synthetic vectors")
    parser.add_argument("--width", type=int, default=128, help="of synthetic vectors")
    parser.add_argument("--queries", type=int, default=1000, help="timed; as many tune ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--leaves", type=int, default=0, help="partitions of ours; 0: the default")
    parser.add_argument("--hnsw-links", type=int, default=16)
    parser.add_argument("--hnsw-construction", type=int, default=80)
    parser.add_argument(
        "--hnsw-up-to", type=int, default=1_000_000, help="vectors; its build is slow"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def recall_of(positions: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of ``exact`` [q, K] found."""
    return float(
        np.mean([len({*a} & {*b}) / K for a, b in zip(positions[:, :K], exact, strict=True)])
    )


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def resident() -> float:
    """Megabytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def build(name: str, make: Callable[[], Any], built: list[Built]) -> Any:
    """Make an index and note what it took."""
    before = resident()
    began = time.perf_counter()
    index = make()
    built.append(Built(name, time.perf_counter() - began, resident() - before))
    print(f"  {name}: {built[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    return index


def fewest(search: Callable[[int], float], most: int, target: float) -> tuple[int, float] | None:
    """The smallest setting in 1..most whose recall reaches the target, which grows with it."""
    if (best := search(most)) < target:
        return None
    low, high = 0, most
    while high - low > max(1, low // 16):
        middle = max(1, high // 4) if low == 0 and high > 16 else (low + high) // 2
        found = search(middle)
        low, high, best = (low, middle, found) if found >= target else (middle, high, best)
    return high, best


def ours(
    x: np.ndarray,
    tuning: np.ndarray,
    queries: np.ndarray,
    exact: np.ndarray,
    built: list[Built],
    leaves: int,
) -> dict[float, list[System]]:
    """``build_index`` at the first target; at the others the same partitions, tuned again."""
    from dynarag_jax.retrieval.index import IndexConfig, Rows, ScannIndex, build_index
    from dynarag_jax.retrieval.index.tuning import recall_meter, sample_queries, tune

    config = IndexConfig(
        "scann",
        target_recall=TARGETS[0],
        at=K,
        first_recall=0,
        sample=len(tuning),
        leaves=leaves,
    )
    first = build("ours, tuned", lambda: build_index(x, config, tuning), built)
    systems = {}
    for target in TARGETS:
        index = first
        if target != TARGETS[0]:
            assert isinstance(first, ScannIndex)
            rows = Rows(x)
            sample = sample_queries(rows, tuning, len(tuning))
            index, _ = tune(first, recall_meter(rows, *sample, K, target))
        print(f"  {index.description}", file=sys.stderr, flush=True)

        def search(q: np.ndarray, index: Any = index) -> np.ndarray:
            return index.search(q, K)[0]

        found = recall_of(search(queries), exact)
        systems[target] = [System("ours", index.description.split(": ")[-1], search, found)]
    return systems


def faiss_systems(
    x: np.ndarray, queries: np.ndarray, exact: np.ndarray, built: list[Built], o: argparse.Namespace
) -> dict[float, list[System]]:
    """FAISS's three, tuned to each target on the very queries that are timed."""
    import faiss

    faiss.omp_set_num_threads(o.threads)
    count, width = x.shape
    kind = faiss.METRIC_INNER_PRODUCT
    systems: dict[float, list[System]] = {target: [] for target in TARGETS}

    flat = build("FAISS flat", lambda: faiss.index_factory(width, "Flat", kind), built)
    began = time.perf_counter()
    flat.add(x)
    built[-1].seconds += time.perf_counter() - began
    for target in TARGETS:
        systems[target].append(System("FAISS flat", "", lambda q: flat.search(q, K)[1], 1.0))

    lists = round(count**0.5)

    def ivf_of(lists: int) -> Any:
        index = faiss.index_factory(width, f"IVF{lists},PQ{width // 2}x4fs,RFlat", kind)
        index.train(x[np.random.default_rng(0).permutation(count)[: 100 * lists]])
        index.add(x)
        return index

    for number in (lists, 2 * lists):
        name = f"FAISS IVF{number}-PQ{width // 2}x4fs,RFlat"
        index = build(name, lambda n=number: ivf_of(n), built)
        for target in TARGETS:
            choices = [
                choice
                for factor in (1.5, 2, 3, 5, 8, 12)
                if (choice := probed(name, index, number, factor, queries, exact, target))
            ]
            systems[target] += fastest(choices, queries)
    if count <= o.hnsw_up_to:

        def hnsw_of() -> Any:
            index = faiss.IndexHNSWFlat(width, o.hnsw_links, kind)
            index.hnsw.efConstruction = o.hnsw_construction
            index.add(x)
            return index

        name = f"FAISS HNSW{o.hnsw_links}"
        graph = build(name, hnsw_of, built)
        for target in TARGETS:

            def with_ef(ef: int) -> Search:
                def search(q: np.ndarray) -> np.ndarray:
                    graph.hnsw.efSearch = ef
                    return graph.search(q, K)[1]

                return search

            if found := fewest(lambda ef: recall_of(with_ef(ef)(queries), exact), 1024, target):
                systems[target].append(
                    System(name, f"efSearch {found[0]}", with_ef(found[0]), found[1])
                )
            else:
                print(f"  {name} does not reach {target} with efSearch 1024", file=sys.stderr)
    return systems


def probed(
    name: str,
    index: Any,
    lists: int,
    factor: float,
    queries: np.ndarray,
    exact: np.ndarray,
    target: float,
) -> System | None:
    """FAISS's IVF with the fewest probes that reach the target, at most half of the lists."""
    import faiss

    inner: Any = faiss.downcast_index(index.base_index)

    def with_probes(probes: int) -> Search:
        def search(q: np.ndarray) -> np.ndarray:
            inner.nprobe, index.k_factor = probes, factor
            return index.search(q, K)[1]

        return search

    most = max(64, lists // 2)
    if not (found := fewest(lambda p: recall_of(with_probes(p)(queries), exact), most, target)):
        return None
    text = f"nprobe {found[0]}, k_factor {factor:g}"
    return System(name, text, with_probes(found[0]), found[1])


def fastest(choices: list[System], queries: np.ndarray) -> list[System]:
    """The choice that answers a batch fastest, and the one that answers single queries fastest."""
    if not choices:
        return []
    some = queries[: min(100, len(queries))]
    whole = min(choices, key=lambda c: min(seconds_of(lambda: c.search(queries)) for _ in range(3)))
    alone = min(
        choices,
        key=lambda c: min(seconds_of(lambda: [c.search(q[None]) for q in some]) for _ in range(2)),
    )
    return [whole] if whole is alone else [whole, alone]


def compare(name: str, x: np.ndarray, queries: np.ndarray, o: argparse.Namespace) -> None:
    """One set of vectors: build, tune, time, print."""
    import faiss

    from dynarag_jax.retrieval.index import ExactIndex

    timed, tuning = queries[: o.queries], queries[o.queries : 2 * o.queries]
    print(
        f"\n{name}: {len(x):,} vectors of {x.shape[1]} numbers, {len(timed)} queries, "
        f"{o.threads} threads, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    reference = ExactIndex(x)
    exact = reference.search(timed, K)[0]
    built: list[Built] = []
    systems = ours(x, tuning, timed, exact, built, o.leaves)
    for target, more in faiss_systems(x, timed, exact, built, o).items():
        systems[target] += more
    exactly = System("ours, exact", "", lambda q: reference.search(q, K)[0], 1.0)
    for target in TARGETS:
        here = [*systems[target], exactly]
        for system in here:
            system.single, system.batched = [], []
            slow = system.name in ("FAISS flat", "ours, exact")
            alone = timed[: 20 if slow else min(300, len(timed))]
            batch = timed[: 256 if slow else len(timed)]
            system.search(batch)
            system.search(alone[:1])
        for _ in range(o.rounds):
            for system in here:
                slow = system.name in ("FAISS flat", "ours, exact")
                alone = timed[: 20 if slow else min(300, len(timed))]
                batch = timed[: 256 if slow else len(timed)]
                faiss.omp_set_num_threads(1)
                took = seconds_of(lambda a=alone, s=system: [s.search(q[None]) for q in a])
                system.single.append(len(alone) / took)
                faiss.omp_set_num_threads(o.threads)
                took = seconds_of(lambda b=batch, s=system: s.search(b))
                system.batched.append(len(batch) / took)
        report(target, here)
    print("to build:")
    for each in built:
        print(
            f"  {each.name}: {each.seconds:.1f} s ({1e6 * each.seconds / len(x):.0f} s a million), "
            f"{each.megabytes:.0f} MB more in memory"
        )


def report(target: float, systems: list[System]) -> None:
    """A table for one target, and ours beside the best of FAISS."""
    print(f"recall@{K} >= {target}:")
    for s in systems:
        print(
            f"  {s.name} ({s.settings}) recall {s.recall:.4f}: single "
            f"{statistics.median(s.single):,.0f}/s, batched {statistics.median(s.batched):,.0f}/s"
        )
    for mode in ("single", "batched"):
        peers = [s for s in systems if s.name.startswith("FAISS")]
        best = max(peers, key=lambda s: statistics.median(getattr(s, mode)))
        ratios = [
            a / b for a, b in zip(getattr(systems[0], mode), getattr(best, mode), strict=True)
        ]
        print(
            f"  {mode}: ours {statistics.median(ratios):.2f} [{min(ratios):.2f}, "
            f"{max(ratios):.2f}] x the best of FAISS, {best.name} ({best.settings})",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    o = arguments()
    if o.part != "synthetic":
        x, queries = (np.load(o.cache / f"{name}.npy") for name in ("real", "queries"))
        # Questions come in the order of their file: shuffled, so that both halves are alike.
        queries = queries[np.random.default_rng(0).permutation(len(queries))]
        compare("real", x, queries, o)
    if o.part != "real":
        compare("synthetic", *clustered(o.count, o.width, 2 * o.queries), o)


if __name__ == "__main__":
    main()
