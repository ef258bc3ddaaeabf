"""Training steps of an encoder policy: pairs without padding between them beside padded ones.

    python -m benchmarks.encoder_training configs/encoder_mixed.py
    python -m benchmarks.encoder_training configs/encoder_mixed.py --steps 16 \
        --sft.model.dtype float32

Steps of the config's ``sft`` stage, on one device, whose questions must stand (``dynarag run CONFIG
--only`` all stages up to ``label``), evenly spread over its run: each step's examples once as a CPU
computes them, and once padded to the longest pair, in turn, after both were compiled. Further
options are the config's. Prints Markdown: examples (questions, or states of them) and word pieces a
second, the share of padding, and how much faster the first is, with the range over the steps.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from dynarag_jax.data.reading import read_questions
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.options import load_config
from dynarag_jax.policy.list_batches import ListBatch
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.encoder_run import ListInput, begin_encoder_policy
from dynarag_jax.training.encoder_step import init_encoder_state, make_encoder_step
from dynarag_jax.training.list_examples import behavior_lists
from dynarag_jax.training.optimizer import make_optimizer
from dynarag_jax.training.sources import total_steps
from dynarag_jax.training.update import StreamLoss


def padded(batch: ListBatch) -> ListBatch:
    """The same examples with no more candidates than any has, padded to the longest pair."""
    candidates = batch.candidates
    most = int(np.asarray(candidates.where).sum(1).max())
    assert candidates.pairs is not None
    cut = jax.tree.map(lambda x: x[:, :most], candidates.pairs._replace(room=None))
    candidates = candidates._replace(
        pairs=cut, where=candidates.where[:, :most], retriever=candidates.retriever[:, :most]
    )
    following = batch.following
    return batch._replace(
        candidates=candidates,
        relevance=batch.relevance[:, :most],
        following=None if following is None else following[:, : most + 1],
    )


def options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=8, help="that are timed")
    return parser.parse_known_args()


def main() -> None:
    """Time the steps and print the table."""
    args, others = options()
    context = Context(*load_config(args.config, others), "sft")
    stage, seed = context.config, context.seed
    mesh = make_mesh(devices=jax.devices()[:1])
    start = begin_encoder_policy(stage, context.model(stage.init), mesh, seed, print)
    questions = read_questions(context.path(stage.questions))
    source = behavior_lists(stage, start.cfg, questions, start.pair_maker(), seed=seed)
    steps = total_steps(stage, [source])
    data = ListInput(stage, start.cfg, [source], mesh, seed, steps)
    optimizer = make_optimizer(stage.optimizer, steps)
    trained = stage.encoder.trained
    losses = {source.name: StreamLoss(source.stream.objectives, source.stream.weight)}
    update = make_encoder_step(
        start.cfg, trained, mesh, optimizer, start.params["encoder"], losses, stage.accumulate
    )
    state = init_encoder_state(start.cfg, trained, mesh, optimizer, start.params, seed)
    seconds, pieces = {"packed": [], "padded": []}, {"packed": [], "padded": []}
    shares = {"packed": [], "padded": []}
    for at in np.linspace(0, steps, args.steps, endpoint=False).astype(int):
        batch = data(int(at))[0][source.name]
        for name, one in (("packed", batch), ("padded", padded(batch))):
            for timed in (False, True):
                began = time.perf_counter()
                state, figures = update(state, {source.name: one})
                jax.block_until_ready(state)
                if timed:
                    seconds[name].append(time.perf_counter() - began)
                    pieces[name].append(float(figures[f"{source.name}/tokens"]))
                    shares[name].append(float(figures[f"{source.name}/positions"]))
        print(f"step {at}: {seconds['packed'][-1]:.2f} s, {seconds['padded'][-1]:.2f} s padded")
    data.buckets.close()
    rows = []
    for name in seconds:
        took, read = sum(seconds[name]), sum(pieces[name])
        rows.append([
            name, f"{source.stream.batch * args.steps / took:.2f}", f"{read / took:,.0f}",
            f"{1 - read / sum(shares[name]):.0%}",
        ])  # fmt: skip
    print(markdown(("pairs", "examples a second", "word pieces a second", "padding"), rows))
    ratio = np.array(seconds["padded"]) / np.array(seconds["packed"])
    low, high = np.quantile(ratio, (0.1, 0.9))
    print(
        f"\npadded / packed: {np.median(ratio):.2f}, 10 % to 90 % of steps {low:.2f} to {high:.2f}"
    )


if __name__ == "__main__":
    main()
