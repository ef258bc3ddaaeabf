"""What other settings of ScaNN would give: the index of ``benchmarks.index``, one thing changed.

    python -m benchmarks.index_settings CACHE

On the real vectors that ``benchmarks.index_vectors`` left in CACHE, each variant is tuned to
recall@40 of 0.95 on 1,000 questions and timed on 1,000 others: queries a second, one at a time and
in batches, medians of 5 rounds. The variants are timed one after the other, not in turn.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import K, recall_of, seconds_of

TARGET, TIMED, ALONE, ROUNDS = 0.95, 1000, 300, 5
# Name: partitions, type scored again, numbers a code stands for, options of the partitions.
VARIANTS: dict[str, tuple[int, str, int, dict[str, Any]]] = {
    "the default": (632, "float32", 2, {}),
    "316 partitions": (316, "float32", 2, {}),
    "1,264 partitions": (1264, "float32", 2, {}),
    "bfloat16 scored again": (632, "bfloat16", 2, {}),
    "codes for 3 numbers, bfloat16": (632, "bfloat16", 3, {}),
    "codes for 4 numbers, bfloat16": (632, "bfloat16", 4, {}),
    "codes for 8 numbers, bfloat16": (632, "bfloat16", 8, {}),
    "without SOAR": (632, "float32", 2, {"soar_lambda": None}),
    "centers in eight bits": (632, "float32", 2, {"quantize_centroids": True}),
    "anisotropic centers": (632, "float32", 2, {"avq": 4.0}),
    "spherical k-means": (632, "float32", 2, {"spherical": True}),
}


def main() -> None:
    """Build, tune, time, print a row each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path, help="directory that index_vectors filled")
    options = parser.parse_args()

    from dynarag_jax.retrieval.index import ExactIndex, Rows
    from dynarag_jax.retrieval.index import scann as room
    from dynarag_jax.retrieval.index import tuning as tuner

    x, queries = (np.load(options.cache / f"{name}.npy") for name in ("real", "queries"))
    queries = queries[np.random.default_rng(0).permutation(len(queries))]
    timed, tuning = queries[:TIMED], queries[TIMED : 2 * TIMED]
    rows = Rows(x)
    exact = ExactIndex(x).search(timed, K)[0]
    sample = tuner.sample_queries(rows, tuning, len(tuning))
    measure = tuner.recall_meter(rows, *sample, K, TARGET)
    scann = room.import_scann()
    print("| setting | partitions, scored again | recall | one at a time | in batches |")
    print("|---|---|---|---|---|")
    for name, (leaves, kind, block, more) in VARIANTS.items():
        # What the tuner counts a query's bytes by.
        room.BLOCK_WIDTH = tuner.BLOCK_WIDTH = block
        soared = more.get("soar_lambda", room.SOAR) is not None
        tuner.PLACES = room.PLACES if soared else 1
        tree = {"soar_lambda": room.SOAR, "random_init": False} | more
        builder = scann.builder(x, K, "dot_product").tree(
            num_leaves=leaves,
            num_leaves_to_search=leaves // 20,
            training_sample_size=min(len(x), room.PER_LEAF * leaves),
            **{option: value for option, value in tree.items() if value is not None},
        )
        builder = builder.score_ah(
            block, anisotropic_quantization_threshold=0.2, training_sample_size=room.CODE_SAMPLE
        )
        searcher = builder.reorder(2 * K, room._reorder_types()[kind]).build()
        settings = room.ScannSettings("partitioned", K, leaves, leaves // 20, 2 * K, kind)  # type: ignore[arg-type]
        index, reached = tuner.tune(
            room.ScannIndex(searcher, len(x), x.shape[1], settings), measure
        )
        found = recall_of(index.search(timed, K)[0], exact)
        index.search(timed[:1], K)
        alone, whole = [], []
        for _ in range(ROUNDS):
            each = seconds_of(lambda i=index: [i.search(q[None], K) for q in timed[:ALONE]])
            alone.append(ALONE / each)
            whole.append(TIMED / seconds_of(lambda i=index: i.search(timed, K)))
        looked, again = index.settings.leaves_searched, index.settings.reorder
        print(
            f"| {name} | {looked} of {leaves}, {again}{'' if reached else ' (not reached)'} | "
            f"{found:.3f} | {statistics.median(alone):,.0f} | {statistics.median(whole):,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
