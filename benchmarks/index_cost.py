"""What ScaNN takes to index 21 million passages, from what it takes here by the vector.

    python -m benchmarks.index_cost

An index of Wikipedia's 21 million passages has 9,168 partitions, found on a sample of 128 vectors
each. What that costs is a sum: something fixed, so much for each vector of the sample (k-means), so
much for each vector of the corpus (its partitions and codes). Three builds with those partitions,
which differ in sample and number, tell the three apart; with ``--check`` a fourth is foretold and
compared. Vectors are clustered ones (``benchmarks.index_vectors``). Tuning adds an exact search of
its queries over the whole corpus, measured too, and searches of the index.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from benchmarks.corpus import WIKIPEDIA
from benchmarks.index_vectors import clustered

QUERIES = 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--each", type=int, default=6, help="vectors a partition, of the smaller builds"
    )
    parser.add_argument("--check", action="store_true", help="a fourth build, foretold before")
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()

    from dynarag_jax.retrieval.index import ExactIndex, IndexConfig
    from dynarag_jax.retrieval.index import scann as room
    from dynarag_jax.retrieval.index.build import first_settings

    settings = first_settings(WIKIPEDIA, IndexConfig(reorder_type="bfloat16"))
    n = options.each * settings.leaves
    vectors, queries = clustered(2 * n, options.width, QUERIES)
    whole_sample = min(WIKIPEDIA, room.PER_LEAF * settings.leaves)

    def build(count: int, sample: int) -> float:
        """Seconds; the library's own training, but for the size of the sample."""
        room.PER_LEAF = sample // settings.leaves
        began = time.perf_counter()
        room.train(vectors[:count], settings)
        seconds = time.perf_counter() - began
        print(f"{count:,} vectors, {sample:,} of them sampled: {seconds:.1f} s", flush=True)
        return seconds

    print(f"{settings.leaves} partitions, {options.width} numbers, {os.cpu_count()} processors")
    plain, sampled, larger = build(n, n // 2), build(n, n), build(2 * n, n // 2)
    each_sampled = (sampled - plain) / (n - n // 2)
    each = (larger - plain) / n
    fixed = plain - each * n - each_sampled * (n // 2)

    def foretold(count: int, sample: int) -> float:
        return fixed + each * count + each_sampled * sample

    if options.check:
        seconds, told = build(2 * n, n), foretold(2 * n, n)
        print(f"  foretold {told:.1f} s, {seconds / told - 1:+.0%}")
    exact = ExactIndex(vectors)
    exact.search(queries, 50)
    began = time.perf_counter()
    exact.search(queries, 50)
    compared = (time.perf_counter() - began) / len(vectors)
    print(
        f"fixed {fixed:.1f} s, {1e6 * each_sampled:.0f} us a sampled vector, {1e6 * each:.0f} us "
        f"a vector; exact search of {QUERIES} queries {1e6 * compared:.1f} us a vector"
    )
    hours = np.array([foretold(WIKIPEDIA, whole_sample), compared * WIKIPEDIA]) / 3600
    print(
        f"{WIKIPEDIA:,} vectors, {whole_sample:,} sampled, on this machine: {hours[0]:.1f} h, and "
        f"{hours[1]:.2f} h of exact search for tuning"
    )


if __name__ == "__main__":
    main()
