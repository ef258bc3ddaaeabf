"""One training, on any mesh: the same losses for 20 steps, in two processes, too.

Run as a program (``test_meshes.py DATAxFSDPxTENSOR DIRECTORY FIRST LAST``, or ``DATAxFSDPxSEQUENCEx
TENSOR``) it is one process of several: it trains on the mesh over all of them and prints the
losses.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.policy.batches import BatchShape, Example, collate, place, process_rows
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.sharding import mesh_of as make_mesh
from dynarag_jax.training.checkpoints import Checkpoints
from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
from dynarag_jax.training.order import Order
from dynarag_jax.training.step import StreamLoss, init_state, make_step, state_shardings
from tests.hosts import joined

CFG = DecoderConfig(
    vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64
)
SPELLING = Spelling((10,), tuple((i,) for i in range(1, 7)), (20, 10), (20,), (30,), 31)
PART = StreamLoss(Objectives(nll=TokenNll(weight=1.0), dpo=Dpo(weight=0.5, beta=0.7)))
ROWS, STEPS = 8, 20


def examples():
    """Experts' lists and pairs of very unequal lengths."""
    rng = np.random.default_rng(0)

    def a_list():
        return SPELLING.spell((rng.permutation(6) + 1)[: rng.integers(0, 7)].tolist())

    made = []
    for i in range(40):
        prompt = rng.integers(0, 30, rng.integers(2, 17)).tolist()
        if i % 2:
            pair = (a_list(), a_list())
            there = [[-0.4] * len(branch) for branch in pair]
            made.append(
                Example(str(i), prompt, pair, 6, (0.0, 0.0), reference=there, preferred=True)
            )
        else:
            made.append(Example(str(i), prompt, [a_list()], 6))
    return made


def train(mesh, first=0, last=STEPS, directory=None):
    """Losses of the steps first..last-1; from and to a checkpoint where there is a directory."""
    rule = make_optimizer(OptimizerConfig(learning_rate=0.01, weight_decay=0.1), STEPS)
    state = init_state(CFG, mesh, rule, seed=1)
    checkpoints = Checkpoints(directory) if directory else None
    if checkpoints and first:
        state = checkpoints.restore(state_shardings(CFG, mesh, rule), state)
        assert state is not None
    assert int(state.step) == first
    step = make_step(CFG, mesh, rule, build_grammar(SPELLING), {"x": PART})
    data, shape = examples(), BatchShape(16, 2, SPELLING.longest(6), 6)
    order, losses = Order(len(data), 0, "x"), []
    for number in range(first, last):
        chosen = [data[order.at(number * ROWS + row)[1]] for row in process_rows(mesh, ROWS)]
        state, figures = step(state, {"x": place(mesh, collate(chosen, shape))})
        losses.append(float(figures["loss"]))
    if checkpoints:
        checkpoints.save(state)
        checkpoints.close()
    return losses


def mesh_of(*sizes):
    return make_mesh(sizes, jax.devices()[: math.prod(sizes)])


@pytest.fixture(scope="module")
def on_one():
    losses = train(mesh_of(1, 1, 1))
    assert losses[-1] < losses[0] - 0.5  # it learns, or equality would prove little
    return losses


@pytest.mark.parametrize(
    "sizes",
    [pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (1, 8, 1), (2, 2, 2))],
    ids=str,
)
def test_losses_of_twenty_steps_are_the_same_on_every_mesh(on_one, sizes):
    np.testing.assert_allclose(train(mesh_of(*sizes)), on_one, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_continues_on_another(on_one, tmp_path):
    losses = train(mesh_of(1, 8, 1), 0, 8, tmp_path)
    losses += train(mesh_of(2, 2, 2), 8, 11, tmp_path)
    losses += train(mesh_of(1, 2, 2, 2), 11, 14, tmp_path)
    losses += train(mesh_of(1, 1, 1), 14, STEPS, tmp_path)
    np.testing.assert_allclose(losses, on_one, atol=1e-5)


def in_processes(count, sizes, *arguments):
    """The losses that so many processes print, which have the mesh's devices together."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "x".join(map(str, sizes)), *map(str, arguments)],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "JAX_NUM_CPU_DEVICES": str(math.prod(sizes) // count),
                **own,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in joined(count)
    ]
    said = [process.communicate(timeout=1200) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, said
    first, *others = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert all(other == first for other in others)
    return first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        *((2, sizes) for sizes in ((4, 1, 1), (2, 1, 2), (1, 4, 1), (1, 1, 2), (1, 2, 2))),
        *((4, sizes) for sizes in ((4, 1, 1), (1, 4, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2))),
        (2, (1, 1, 2, 1)),
        *((4, sizes) for sizes in ((1, 2, 2, 1), (1, 1, 4, 1), (1, 1, 2, 2))),
    ],
    ids=str,
)
def test_several_processes_train_as_one(on_one, count, sizes):
    """Gradients, weights and products cross from process to process.

    Where the tensor or the sequence axis does, processes share rows: each reads those of all of
    them.
    """
    np.testing.assert_allclose(in_processes(count, sizes), on_one, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_continues_in_one(on_one, tmp_path):
    losses = in_processes(2, (2, 2, 1), tmp_path, 0, 12)
    losses += train(mesh_of(2, 2, 2), 12, STEPS, tmp_path)
    np.testing.assert_allclose(losses, on_one, atol=1e-5)


if __name__ == "__main__":
    from dynarag_jax.launch.distributed import join

    join()
    sizes, *rest = sys.argv[1:]
    span = (Path(rest[0]), int(rest[1]), int(rest[2])) if rest else (None, 0, STEPS)
    mesh = make_mesh(tuple(map(int, sizes.split("x"))))
    print(json.dumps(train(mesh, span[1], span[2], span[0])), flush=True)
