"""Checkpoints: killed runs go on bit by bit, damaged ones fall back, foreign ones are refused.

Run as a program (``test_checkpoints.py DIRECTORY STEPS KILL_AT``) it trains and kills itself.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dynarag_jax.errors import InputError
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Objectives
from dynarag_jax.policy.batches import BatchShape, Example, collate, place
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.checkpoints import Checkpoints
from dynarag_jax.training.loop import Watch, fit
from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
from dynarag_jax.training.order import Order
from dynarag_jax.training.step import State, StreamLoss, init_state, make_step, state_shardings

# Orbax leaves coroutines behind when it cannot read a checkpoint.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# ---------------------------------------------------------------------------- a run and its death


def run(directory: Path, steps: int, kill_at: int = 0):
    """Train six steps' worth of schedule to ``steps``; die at ``kill_at``. (state, log, figures)"""
    cfg = DecoderConfig(
        vocab=32, width=16, layers=1, heads=2, kv_heads=2, head_size=8, mlp=16, positions=32
    )
    grammar = build_grammar(Spelling((), ((1,), (2,)), (20,), (), (30,), 31))
    mesh = make_mesh(2, 1, 1, devices=jax.devices()[:2])
    rule = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup=0.2), 6)
    rng = np.random.default_rng(0)
    examples = [
        Example(str(i), rng.integers(0, 30, 6).tolist(), [[*rng.integers(0, 30, i % 4), 31]])
        for i in range(10)
    ]
    order, shape = Order(len(examples), 0, "lists"), BatchShape(6, 1, 4, 2)

    def make(number):
        chosen = [examples[order.at(number * 4 + row)[1]] for row in range(4)]
        return {"x": place(mesh, collate(chosen, shape))}, [e.id for e in chosen]

    checkpoints, log, figures, done = Checkpoints(directory), [], {}, []
    fresh = init_state(cfg, mesh, rule, seed=1)
    state = checkpoints.restore(state_shardings(cfg, mesh, rule), fresh, log.append) or fresh
    log.append(f"begins at {int(state.step)}")

    def on_step():
        done.append(1)
        if kill_at and len(done) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    step = make_step(cfg, mesh, rule, grammar, {"x": StreamLoss(Objectives())})
    state = fit(
        state, step, make, steps, checkpoints=checkpoints, every=2, log_every=1,
        watch=Watch(
            on_step=on_step, on_figures=lambda number, v: figures.update({number: v["loss"]})
        ),
    )  # fmt: skip
    checkpoints.close()
    return jax.tree.map(np.asarray, state), log, figures


def contents(tree):
    return [(x.dtype, x.shape, x.tobytes()) for x in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(tmp_path):
    straight, log, losses = run(tmp_path / "straight", 6)
    assert log == ["begins at 0"]
    child = subprocess.run(
        [sys.executable, __file__, tmp_path / "killed", "6", "5"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    resumed, log, later = run(tmp_path / "killed", 6)
    # The kill may have cut off the second checkpoint; what matters is that the first stands.
    assert log[-1] in ("begins at 2", "begins at 4")
    assert resumed.step == 6
    assert contents(resumed) == contents(straight)
    assert later
    assert all(losses[step] == loss for step, loss in later.items())
    # A finished run does not train again.
    again, log, figures = run(tmp_path / "killed", 6)
    assert (log, figures) == (["begins at 6"], {})
    assert contents(again) == contents(straight)


# ---------------------------------------------------------------------------- small states


def small_state(step: int, size: int = 24, dtype: Any = np.float32, head: Any = None) -> State:
    rng = np.random.default_rng(step)
    weights = {"a": rng.normal(size=(size, 16)).astype(dtype), "b": {"c": np.full(3, step, dtype)}}
    if head is not None:
        weights["head"] = head
    moments = ({"count": np.int32(step)}, {"a": weights["a"] * 2})
    return jax.tree.map(jnp.asarray, State(np.int32(step), weights, moments))


def layout_of(state, sizes=(1, 1, 1)):
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])

    def lay(x):
        spec = PartitionSpec("fsdp", "tensor") if x.ndim == 2 else PartitionSpec()
        return jax.sharding.NamedSharding(mesh, spec)

    return jax.tree.map(lay, state)


@pytest.fixture
def saved(tmp_path):
    """A directory with checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(small_state(step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def restore(directory, state=None, log=lambda _: None, sizes=(1, 1, 1)):
    state = state or small_state(0)
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.restore(layout_of(state, sizes), state, log)
    finally:
        checkpoints.close()


def assert_is(state, step):
    assert state is not None
    assert contents(state) == contents(small_state(step))


def test_nothing_saved_restores_nothing(tmp_path):
    assert restore(tmp_path / "none") is None


def test_the_newest_is_restored_and_the_oldest_beyond_keep_is_gone(saved):
    assert_is(restore(saved), 2)
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 2
    checkpoints.save(small_state(2))  # stands already
    checkpoints.save(small_state(3))
    checkpoints.close()
    assert sorted(p.name for p in saved.iterdir()) == ["2", "3"]
    assert_is(restore(saved), 3)


def test_restored_onto_another_mesh(tmp_path):
    state = small_state(1)
    spread = jax.device_put(state, layout_of(state, (2, 2, 2)))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(spread)
    checkpoints.close()
    for sizes in ((1, 1, 1), (1, 4, 2)):
        found = restore(tmp_path, sizes=sizes)
        assert_is(found, 1)
        assert found is not None
        shard = found.params["a"].addressable_shards[0].data.shape
        assert shard == (24 // sizes[1], 16 // sizes[2])


def test_saving_does_not_see_what_donation_does_to_the_state(tmp_path):
    """A step that begins while the checkpoint is written reuses the state's own buffers."""
    big = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    state = small_state(1, head=big)
    before = contents(jax.tree.map(np.array, state))
    checkpoints = Checkpoints(tmp_path)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    checkpoints.save(state)
    for _ in range(3):
        state = overwrite(state)
    jax.block_until_ready(state)
    checkpoints.close()
    assert contents(restore(tmp_path, small_state(0, head=big))) == before


def truncate(pattern, share):
    def damage(step):
        files = [f for f in step.rglob(pattern) if f.is_file()]
        assert files
        for file in files:
            data = file.read_bytes()
            file.write_bytes(data[: int(len(data) * share)])

    return damage


DAMAGE = {
    "arrays-cut": truncate("d/*", 0.5),
    "arrays-empty": truncate("d/*", 0),
    "manifest-cut": truncate("manifest.ocdbt", 0.5),
    "metadata-cut": truncate("_METADATA", 0.5),
    "all-empty": truncate("*", 0),
    "arrays-gone": lambda step: [f.unlink() for f in step.rglob("d/*") if f.is_file()],
    "item-gone": lambda step: shutil.rmtree(step / "default"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_falls_back_and_can_be_saved_again(saved, damage):
    damage(saved / "2")
    log = []
    assert_is(restore(saved, log=log.append), 1)
    assert len(log) == 1
    assert "checkpoint of step 2 cannot be read" in log[0]
    checkpoints = Checkpoints(saved)
    checkpoints.save(small_state(2))
    checkpoints.close()
    assert_is(restore(saved), 2)


def test_when_none_can_be_read_all_are_named_and_kept(saved):
    for step in ("1", "2"):
        DAMAGE["arrays-cut"](saved / step)
    with pytest.raises(InputError, match=r"no checkpoint can be read \(step 2: .*step 1: "):
        restore(saved)
    assert {"1", "2"} <= {p.name for p in saved.iterdir()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (small_state(0, size=32), r"params/a is float32\[24, 16\] there, float32\[32, 16\] here"),
        (small_state(0, dtype=jnp.bfloat16), r"params/a is float32.* there, bfloat16.* here"),
        (small_state(0, head=np.ones(2)), r"params/head is absent there, float32\[2\] here"),
        (
            State(np.int32(0), {"a": np.ones((24, 16), np.float32)}, ()),
            r"params/b/c .* absent here",
        ),
    ],
    ids=["shape", "type", "missing", "extra"],
)
def test_a_checkpoint_of_another_model_is_refused_and_kept(saved, state, message):
    with pytest.raises(InputError, match=f"step 2 is of another shape: .*{message}"):
        restore(saved, state)
    assert_is(restore(saved), 2)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor", "sgd"])
def test_states_of_every_optimizer_come_back(tmp_path, name):
    rule = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1), 10)
    params = small_state(1).params
    state = State(jnp.int32(5), params, rule.init(params))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.close()
    fresh = jax.tree.map(jnp.zeros_like, state)
    found = restore(tmp_path, fresh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert contents(found) == contents(state)


def test_states_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_state(0).step = 1  # type: ignore[misc]


if __name__ == "__main__":
    run(Path(sys.argv[1]), *map(int, sys.argv[2:]))
