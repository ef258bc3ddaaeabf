"""How well encoder policies order candidates, wherever they would stop.

    python -m benchmarks.encoder_order --questions FILE POLICY [POLICY ...]
    python -m benchmarks.encoder_order --questions FILE --untrained RERANKER --reencode 32
    python -m benchmarks.encoder_order --scifact DIR --first 50 POLICY RERANKER

FILE has questions with candidates and says which are needed (what the label stage writes): set F1
of the list that a policy writes where it may not stop, cut at two passages and at as many as are
needed, with intervals, by data set. DIR holds SciFact's corpus, its claims and BEIR's judgments of
the test questions: nDCG@10 of the first candidates of BM25 and of all-MiniLM-L6-v2 in the order of
the scores before anything is chosen, one pass over them. A cross-encoder's directory is a policy
that was never trained; with --untrained it reads what was chosen, too. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.evaluation.tables import interval, markdown, number
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.exchange.encoder_policies import read_encoder_policy, save_encoder_policy
from dynarag_jax.metrics.intervals import bootstrap
from dynarag_jax.metrics.ranking import ndcg_at, set_f1
from dynarag_jax.models.list_head import ListHeadConfig, init_list_head
from dynarag_jax.policy.encoder_model import EncoderPolicy, is_encoder_policy, load_encoder_policy
from dynarag_jax.policy.encoder_policy import step_of
from dynarag_jax.policy.pair_tokens import collate_pairs, padded_count, padded_pieces
from dynarag_jax.records import Question, passage_text, read_questions
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sharding import make_mesh

NEVER = ListBias(stop=-1e6, empty=-1e6)


def policy_of(
    directory: Path, scratch: Path, longest: int, pieces: int, reencode: int, dtype: Any
) -> EncoderPolicy:
    """A policy, or a cross-encoder as one: a plain head, which orders by its scores."""
    mesh = make_mesh(devices=jax.local_devices()[:1])
    if not is_encoder_policy(directory):
        stored = read_encoder_policy(directory)
        shape = ListHeadConfig(vectors=stored.encoder.width, layers=0)
        plain = replace(
            stored, head=shape, head_params=init_list_head(shape, jax.random.key(0)),
            settings={"pieces": pieces, "max_list": longest, "reencode": reencode},
        )  # fmt: skip
        directory = scratch / f"plain-{reencode}"
        save_encoder_policy(directory, plain, overwrite=True)
    return load_encoder_policy(directory, mesh, max_list=longest, dtype=dtype)


def first_scores(policy: EncoderPolicy, questions: Sequence[Question]) -> list[np.ndarray]:
    """The candidates' scores before anything is chosen."""
    nothing = jnp.zeros((1, 1, 0), jnp.int32)
    scores = jax.jit(
        lambda params, batch: step_of(policy.cfg, params, batch, None, nothing).scores[0, 0, 1:]
    )
    maker, found = policy.pair_maker(), []
    for question in questions:
        pairs = maker.pairs(question)
        pieces = padded_pieces(pairs.longest, policy.cfg.pieces)
        batch = collate_pairs([pairs], padded_count(pairs.count), pieces)
        found.append(np.asarray(scores(policy.params, batch))[: pairs.count])
    return found


def by_sets(policies: dict[str, EncoderPolicy], questions: Sequence[Question]) -> str:
    """The table of set F1."""
    kinds = [q.id.split("/")[0] if "/" in q.id else "all" for q in questions]
    names = sorted(set(kinds))
    head = ["policy", "cut at", "mean of sets", *names, "questions a second"]
    rows = []
    for name, policy in policies.items():
        sampler = EncoderSampler(policy, 16, 0).with_bias(NEVER)
        began = time.perf_counter()
        lists = [one.lists[0] for one in sampler.lists(questions, Sampling(temperature=0.0))]
        speed = len(questions) / (time.perf_counter() - began)
        for cut in ("two", "as many as needed"):
            found: dict[str, list[float]] = {kind: [] for kind in names}
            for kind, question, one in zip(kinds, questions, lists, strict=True):
                needed = set(question.gold or ())
                own = one[: 2 if cut == "two" else len(needed)]
                chosen = {question.passages[i - 1].id for i in own}
                found[kind].append(set_f1(chosen, needed))
            means = [float(np.mean(found[kind])) for kind in names]
            values = [interval("set_f1", bootstrap(found[kind])) for kind in names]
            rows.append(
                [name, cut, number("set_f1", float(np.mean(means))), *values, f"{speed:.2f}"]
            )
    return markdown(head, rows)


def scifact(data: Path, first: int) -> dict[str, list[tuple[Question, dict[str, int]]]]:
    """SciFact's test questions with the first candidates of two retrievers, and judgments."""
    from benchmarks.scifact import embedded
    from dynarag_jax.retrieval.bm25 import Bm25Config, build_bm25
    from dynarag_jax.retrieval.index import build_index

    given = embedded(data)
    passages, claims = given.passages, given.claims
    exact = build_index(given.vectors, kind="exact")
    words = build_bm25(map(passage_text, passages), Bm25Config())
    found = {
        "BM25": words.search([claims[query] for query in given.relevant], first)[0],
        "all-MiniLM-L6-v2": exact.search(given.queries, first)[0],
    }
    return {
        name: [
            (Question(query, claims[query], passages=tuple(passages[i] for i in row)), relevant)
            for (query, relevant), row in zip(given.relevant.items(), places, strict=True)
        ]
        for name, places in found.items()
    }


def by_ndcg(policies: dict[str, EncoderPolicy], data: Path, first: int) -> str:
    """The table of nDCG@10."""
    rows = []
    for source, judged in scifact(data, first).items():
        questions = [question for question, _ in judged]
        orders = {"as retrieved": [np.arange(len(q.passages)) for q in questions]}
        for name, policy in policies.items():
            scores = first_scores(policy, questions)
            orders[name] = [np.argsort(-own, kind="stable") for own in scores]
        for name, order in orders.items():
            gains = [
                ndcg_at([q.passages[i].id for i in own], relevant, 10)
                for (q, relevant), own in zip(judged, order, strict=True)
            ]
            rows.append([f"first {first} of {source}", name, interval("ndcg", bootstrap(gains))])
    return markdown(["candidates", "order", "nDCG@10"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("policies", type=Path, nargs="*", help="directories of policies")
    parser.add_argument("--questions", type=Path, help="labeled questions")
    parser.add_argument("--scifact", type=Path, help="where SciFact's files lie")
    parser.add_argument("--untrained", type=Path, help="a cross-encoder to add as it is")
    parser.add_argument("--reencode", type=int, default=0, help="of --untrained")
    parser.add_argument("--pieces", type=int, default=128, help="of cross-encoders")
    parser.add_argument("--first", type=int, default=50, help="candidates on SciFact")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    if not given.questions and not given.scifact:
        parser.error("give --questions or --scifact")
    found = read_questions(given.questions) if given.questions else []
    questions = [q for q in found if q.gold and q.passages]
    if found and not questions:
        parser.error(f"{given.questions}: no question has candidates and says which are needed")
    if left_out := len(found) - len(questions):
        print(f"{left_out} questions that need none, or do not say, are left out\n")
    longest = max([2, *(len(q.gold or ()) for q in questions)])
    asked = [(path, 0) for path in given.policies]
    if given.untrained:
        asked.append((given.untrained, given.reencode))
    if not asked:
        parser.error("give a policy's directory, or --untrained")
    with tempfile.TemporaryDirectory() as scratch:
        policies = {
            f"{path}" + (f", reencode = {again}" if again else ""): policy_of(
                path, Path(scratch), longest, given.pieces, again, given.dtype
            )
            for path, again in asked
        }
        if questions:
            device = jax.devices()[0].device_kind
            print(f"{len(questions)} questions of {given.questions.name}; {device}\n")
            print(by_sets(policies, questions), flush=True)
        if given.scifact:
            print(by_ndcg(policies, given.scifact, given.first))


if __name__ == "__main__":
    from dynarag_jax.launch.exit_codes import guard

    raise SystemExit(guard(main))
