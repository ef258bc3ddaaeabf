"""Padding of training batches: a few lengths chosen from the data, beside what others do.

    python -m benchmarks.padding questions.jsonl.gz

The file holds questions with their passages ({question, answers, ctxs: [{title, text}]}, such as
the 20-passage file of Lost in the Middle). Prints, for an epoch of lists and of answers, the share
of prompt positions that hold no token, and how many shapes of a step must be compiled: padded to
the limit; in random order, each batch to its longest; by transformers' length grouping, each batch
to its longest; and ours. Lengths are those of a BPE tokenizer trained on the file.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SEED, BATCH = 0, 32


def lengths_of(path: Path, limit: int) -> dict[str, np.ndarray]:
    """Prompt lengths of the lists and of the answers from the needed and some random passages."""
    from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
    from dynarag_jax.files import read_jsonl
    from dynarag_jax.prompts import PromptConfig, answer_prompt, rerank_prompt
    from dynarag_jax.records import Passage, Question

    questions = [
        Question(
            str(number),
            line["question"],
            passages=tuple(
                Passage(str(i), p["text"], p.get("title") or "") for i, p in enumerate(line["ctxs"])
            ),
        )
        for number, line in read_jsonl(path)
        if number <= limit
    ]
    prompts = PromptConfig(ids=20)
    texts = [p.text for q in questions for p in q.passages]
    with tempfile.TemporaryDirectory() as place:
        train_bpe(texts, Path(place) / "bpe", 8192)
        tokenizer: Any = load_tokenizer(Path(place) / "bpe")
    rng = random.Random(SEED)
    found: dict[str, list[int]] = {"lists": [], "answers": []}
    for q in questions:
        found["lists"].append(
            len(rerank_prompt(tokenizer, q, prompts.style, prompts.rerank_tokens, 20).tokens)
        )
        n = min(len(q.passages), 20)
        chosen = rng.sample(range(1, n + 1), rng.randint(0, min(n, 15)))
        found["answers"].append(
            len(
                answer_prompt(
                    tokenizer, q, chosen, prompts.style, prompts.answer_prompt_tokens
                ).tokens
            )
        )
    return {name: np.array(lengths) for name, lengths in found.items()}


def batches_of(indices: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The lengths of whole batches in an order of examples."""
    whole = len(indices) // BATCH * BATCH
    return list(lengths[indices[:whole]].reshape(-1, BATCH))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--limit", type=int, default=100_000)
    args = parser.parse_args()

    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from dynarag_jax.training.bucketing import BucketedStream, LengthBuckets

    lengths = lengths_of(args.questions, args.limit)
    limits = {"lists": 8192, "answers": 4096}
    steps = len(lengths["lists"]) // BATCH
    print(f"{len(lengths['lists'])} questions, {steps} steps of {BATCH} lists and {BATCH} answers")
    for name, of in lengths.items():
        low, middle, high = (int(x) for x in np.quantile(of, (0.05, 0.5, 0.95)))
        print(f"{name}: 5 % of prompts below {low} tokens, half below {middle}, 95 % below {high}")

    def report(what: str, padded: dict[str, list[tuple[np.ndarray, int]]]) -> None:
        shares = [
            1 - sum(int(x.sum()) for x, _ in rows) / sum(n * len(x) for x, n in rows)
            for rows in padded.values()
        ]
        shapes = len(set(zip(*([n for _, n in rows] for rows in padded.values()), strict=True)))
        print(f"{what:42} {shares[0]:8.1%} {shares[1]:8.1%} {shapes:8}")

    def to_longest(batches: list[np.ndarray]) -> list[tuple[np.ndarray, int]]:
        return [(x, int(x.max())) for x in batches]

    print(f"{'':42} {'lists':>8} {'answers':>8} {'shapes':>8}")
    mixed = {
        name: batches_of(np.random.default_rng(SEED).permutation(len(of)), of)
        for name, of in lengths.items()
    }
    report("the limit", {n: [(x, limits[n]) for x in rows] for n, rows in mixed.items()})
    report("random order, longest of the batch", {n: to_longest(x) for n, x in mixed.items()})
    theirs = {}
    for name, of in lengths.items():
        generator = torch.Generator().manual_seed(SEED)
        indices = get_length_grouped_indices(of.tolist(), BATCH, generator=generator)
        theirs[name] = to_longest(batches_of(np.array(indices), of))
    report("transformers' length grouping, longest", theirs)
    for buckets in (2, 4, 8):
        orders = {n: np.random.default_rng(SEED).permutation(len(of)) for n, of in lengths.items()}

        def measure(name: str, position: int, orders: dict = orders) -> int:
            return int(lengths[name][orders[name][position % len(orders[name])]])

        streams = {
            name: BucketedStream(
                len(of), BATCH, limits[name], lambda p, name=name: measure(name, p)
            )
            for name, of in lengths.items()
        }
        groups = LengthBuckets(streams, buckets, SEED, steps)
        ours = {}
        for name in lengths:
            ours[name] = [
                (
                    np.array([measure(name, int(p)) for p in groups.positions(name, s)]),
                    groups.lengths[name][groups.bucket(s)],
                )
                for s in range(steps)
            ]
        report(f"ours, lengths = {buckets}", ours)
        groups.close()


if __name__ == "__main__":
    main()
