"""Lists of an encoder policy on real questions: pairs without padding between them, and padded.

    python -m benchmarks.encoder_lists POLICY --questions FILE
    python -m benchmarks.encoder_lists POLICY --questions FILE --count 64 --rounds 5 --dtype float32

Greedy lists of the first questions of FILE, which come with candidates, on one CPU: as
``EncoderSampler`` reads them, and with all pairs padded, in turn, after both were compiled. Prints
Markdown: questions and word pieces a second (the passages chosen before a step are not counted)
with their range over the rounds, the ratio, and how many lists are the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.launch.exit_codes import guard
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.records import read_questions
from dynarag_jax.sampling.choice import GREEDY
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sharding import make_mesh


def main() -> None:
    """Time the lists and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("policy", type=Path)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32, help="questions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="questions at once, at most")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    mesh = make_mesh(devices=jax.devices()[:1])
    policy = load_encoder_policy(args.policy, mesh, dtype=args.dtype)
    questions = read_questions(args.questions)[: args.count]
    samplers = {
        name: EncoderSampler(policy, args.batch, 0, packs=packs)
        for name, packs in (("packed", True), ("padded", False))
    }
    lists = {
        name: [own.lists[0] for own in sampler.lists(questions, GREEDY)]
        for name, sampler in samplers.items()
    }
    sampler = samplers["packed"]
    pieces = sum(
        sampler.reading(question, one)[1]
        for question, one in zip(questions, lists["packed"], strict=True)
    )
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(args.rounds):
        for name, sampler in samplers.items():
            began = time.perf_counter()
            sampler.lists(questions, GREEDY)
            seconds[name].append(time.perf_counter() - began)
    rows = []
    for name, own in seconds.items():
        middle, least, most = (len(questions) / f(own) for f in (np.median, max, min))
        rate = f"{middle:.2f} ({least:.2f} to {most:.2f})"
        rows.append([name, rate, f"{pieces / np.median(own):,.0f}"])
    print(markdown(("pairs", "questions a second", "word pieces a second"), rows))
    same = sum(one == other for one, other in zip(*lists.values(), strict=True))
    ratio = np.median(seconds["padded"]) / np.median(seconds["packed"])
    print(f"\nquestions a second, packed / padded: {ratio:.2f}")
    print(f"same lists: {same} of {len(questions)}")


if __name__ == "__main__":
    raise SystemExit(guard(main))
