"""Training steps of an encoder policy: pairs without padding between them beside padded ones.

    python -m benchmarks.encoder_training configs/encoder_mixed.py
    python -m benchmarks.encoder_training configs/encoder_mixed.py --steps 16 \
        -- --sft.model.dtype float32

Steps of the config's ``sft`` stage on one CPU, evenly spread over its run, as they are computed
there and as they would be with padding (in batches of like numbers of candidates, each to the room
that its own states want), in turn, after both were compiled. Its questions must stand (``dynarag
run CONFIG --only`` all stages up to ``label``); what follows ``--`` are options of it. Prints
Markdown: examples (questions, or states of them) and word pieces a second over all of the steps,
the share of padding, programs, and seconds a step with their range.
"""

from __future__ import annotations

import argparse
import sys
import time

import jax
import numpy as np

from dynarag_jax.data.reading import read_questions
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.exit_codes import guard
from dynarag_jax.launch.options import load_config
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.encoder_run import ListInput, begin_encoder_policy
from dynarag_jax.training.encoder_step import init_encoder_state, make_encoder_step
from dynarag_jax.training.list_examples import behavior_lists
from dynarag_jax.training.optimizer import make_optimizer
from dynarag_jax.training.sources import total_steps
from dynarag_jax.training.update import StreamLoss


def main() -> None:
    """Time the steps and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=8, help="that are timed")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    context = Context(*load_config(args.config, words[cut + 1 :]), "sft")
    stage, seed = context.config, context.seed
    mesh = make_mesh(devices=jax.devices()[:1])
    start = begin_encoder_policy(stage, context.model(stage.init), mesh, seed, print)
    questions = read_questions(context.path(stage.questions))
    source = behavior_lists(stage, start.cfg, questions, start.pair_maker(), seed=seed)
    steps, name = total_steps(stage, [source]), source.name
    inputs = {
        pairs: ListInput(stage, start.cfg, [source], mesh, seed, steps, packs=packs)
        for pairs, packs in (("packed", None), ("padded", False))
    }
    if not inputs["packed"].packs:
        raise SystemExit("error: these pairs are padded in any case (ListInput says where)")
    optimizer = make_optimizer(stage.optimizer, steps)
    trained = stage.encoder.trained
    update = make_encoder_step(
        start.cfg, trained, mesh, optimizer, start.params["encoder"],
        {name: StreamLoss(source.stream.objectives, source.stream.weight)}, stage.accumulate,
    )  # fmt: skip
    state = init_encoder_state(start.cfg, trained, mesh, optimizer, start.params, seed)
    at = [int(step) for step in np.linspace(0, steps, args.steps, endpoint=False)]
    # All batches first: nothing is tokenized while steps are timed.
    batches = {pairs: [data(step)[0] for step in at] for pairs, data in inputs.items()}
    seconds, pieces, positions = ({pairs: [] for pairs in inputs} for _ in range(3))
    compiled = dict.fromkeys(inputs, 0)
    for i, step in enumerate(at):
        for pairs, own in batches.items():
            before = update.jitted._cache_size()
            state, _ = jax.block_until_ready(update(state, own[i]))
            compiled[pairs] += update.jitted._cache_size() - before
            began = time.perf_counter()
            state, figures = jax.block_until_ready(update(state, own[i]))
            seconds[pairs].append(time.perf_counter() - began)
            pieces[pairs].append(float(figures[f"{name}/tokens"]))
            positions[pairs].append(float(figures[f"{name}/positions"]))
        print(f"step {step}: " + ", ".join(f"{s[-1]:.2f} s {p}" for p, s in seconds.items()))
    rows, rates = [], {}
    for pairs, each in seconds.items():
        rates[pairs] = sum(pieces[pairs]) / sum(each)
        low, high = np.quantile(each, (0.1, 0.9))
        rows.append([
            pairs, f"{source.stream.batch * len(at) / sum(each):.2f}", f"{rates[pairs]:,.0f}",
            f"{1 - sum(pieces[pairs]) / sum(positions[pairs]):.0%}", str(compiled[pairs]),
            f"{np.median(each):.2f} ({low:.2f} to {high:.2f})",
        ])  # fmt: skip
    head = ("pairs", "examples a second", "word pieces a second", "padding", "programs", "s a step")
    print(markdown(head, rows))
    print(f"\nword pieces a second, packed / padded: {rates['packed'] / rates['padded']:.2f}")


if __name__ == "__main__":
    raise SystemExit(guard(main))
