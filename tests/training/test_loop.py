"""The loop: what it reports, and that it stops at what is not finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.training.checkpoints import Best, Checkpoints
from dynarag_jax.training.loop import AHEAD, NotFinite, Stopped, Trace, Watch, fit
from dynarag_jax.training.meter import Meter
from dynarag_jax.training.step import State


def step(state: State, batch: Any) -> Any:
    return State(state.step + 1, state.params, ()), {"loss": jnp.float32(batch["loss"])}


def begin(at=0):
    return State(jnp.int32(at), {}, ())


def test_figures_are_means_since_the_last_line_and_the_last_step_is_reported():
    lines, ticks = {}, []

    def make(number: int) -> Any:
        return {"loss": float(number)}, [f"q{number}"]

    state = fit(
        begin(2), step, make, 9, log_every=3,
        watch=Watch(
            on_figures=lambda n, values: lines.update({n: values}), on_step=lambda: ticks.append(1)
        ),
    )  # fmt: skip
    assert state.step == 9
    assert len(ticks) == 7
    assert {n: values["loss"] for n, values in lines.items()} == {3: 2.0, 6: 4.0, 9: 7.0}
    for values in lines.values():
        assert values["seconds"] > 0
        assert 0 <= values["waiting"] <= 1


def test_what_is_not_finite_is_named_with_its_step_and_records():
    def make(number: int) -> Any:
        return {"loss": float("nan") if number == 4 else 1.0}, [f"q{number}a", f"q{number}b"]

    with pytest.raises(
        NotFinite, match=r"step 5: loss is nan; records q4a, q4b; nothing was saved"
    ):
        fit(begin(), step, make, 9, log_every=3)


def test_an_exception_while_making_a_batch_is_raised():
    def make(number: int) -> Any:
        if number == 3:
            raise OSError("disk gone")
        return {"loss": 1.0}, []

    with pytest.raises(OSError, match="disk gone"):
        fit(begin(), step, make, 9)


def numbered(number: int) -> Any:
    return {"loss": float(number + 1)}, [f"q{number}"]


def restored(directory, best=None):
    checkpoints = Checkpoints(directory, best=best)
    state = checkpoints.restore(jax.tree.map(lambda x: x.sharding, begin()), begin())
    return checkpoints, state or begin()


def test_a_run_that_is_told_to_stop_saves_the_step_and_goes_on_from_it(tmp_path):
    lines = {}

    def go(stop):
        checkpoints, state = restored(tmp_path)
        try:
            return fit(
                state, step, numbered, 9, checkpoints=checkpoints, every=4, log_every=3,
                watch=Watch(stop=stop, on_figures=lambda n, v: lines.update({n: v["loss"]})),
            )  # fmt: skip
        finally:
            checkpoints.close()

    with pytest.raises(Stopped, match="stopped after step 5, which is saved"):
        go(lambda done: done == 5)
    assert lines == {3: 2.0, 4: 4.0, 5: 5.0}
    # Told before the first step, it makes none.
    with pytest.raises(Stopped, match="after step 5"):
        go(lambda done: True)
    assert go(lambda done: False).step == 9
    assert lines == {3: 2.0, 4: 4.0, 5: 5.0, 6: 6.0, 8: 7.5, 9: 9.0}


@pytest.mark.parametrize("stop_at", [-1, 5, 6])
def test_the_best_checkpoint_is_by_the_mean_since_the_one_before_wherever_it_is_stopped(
    tmp_path, stop_at
):
    losses = [9, 9, 3, 1, 4, 2, 1.5, 8, 7, 7]  # means of two: 9, 2, 3, 4.75, 7
    best = Best("loss")

    def go(stop):
        checkpoints, state = restored(tmp_path, best)
        try:
            fit(
                state, step, lambda n: ({"loss": float(losses[n])}, []), 10,
                checkpoints=checkpoints, every=2, log_every=4,
                watch=Watch(stop=lambda done: done == stop),
            )  # fmt: skip
        finally:
            checkpoints.close()
        return checkpoints

    if stop_at > 0:
        with pytest.raises(Stopped):
            go(stop_at)
    checkpoints = go(-1)
    assert checkpoints.best_steps() == [4]
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.is_dir()) == [4, 8, 10]


def test_a_figure_that_is_not_there_cannot_be_the_best(tmp_path):
    checkpoints, state = restored(tmp_path, Best("lost"))
    with pytest.raises(InputError, match=r"best = 'lost' is no figure .*did you mean 'loss'"):
        fit(state, step, numbered, 9, checkpoints=checkpoints, every=2)
    checkpoints.close()


def test_skipped_steps_are_named_counted_and_left_out_of_the_means():
    lines, said = {}, []

    def skips(state: State, batch: Any) -> Any:
        state, figures = step(state, batch)
        return state, figures | {"skipped": 1.0 - jnp.isfinite(figures["loss"])}

    def make(number: int) -> Any:
        return {"loss": float("inf") if number in (1, 3, 4, 5) else number}, [f"q{number}"]

    state = fit(
        begin(), skips, make, 9, log_every=3,
        watch=Watch(log=said.append, on_figures=lambda n, values: lines.update({n: values})),
    )  # fmt: skip
    assert state.step == 9
    assert [lines[n]["skipped"] for n in (3, 6, 9)] == [1, 3, 0]
    assert [lines[n].get("loss") for n in (3, 6, 9)] == [1.0, None, 7.0]
    assert said[0] == "step 2 is skipped: loss is inf; records q1"
    assert len(said) == 4


def test_the_profiler_records_the_steps_it_is_asked_for(tmp_path):
    fit(begin(3), step, numbered, 9, trace=Trace(5, 6, tmp_path))
    (found,) = tmp_path.rglob("*.xplane.pb")
    assert found.stat().st_size > 0
    # A run that goes on behind these steps, or ends among them.
    fit(begin(7), step, numbered, 9, trace=Trace(5, 6, tmp_path / "later"))
    assert not (tmp_path / "later").exists()
    fit(begin(7), step, numbered, 9, trace=Trace(9, 20, tmp_path / "cut"))
    assert list((tmp_path / "cut").rglob("*.xplane.pb"))


def test_the_meter_counts_real_tokens_padding_and_utilization():
    meter = Meter(work=lambda batches: batches["flops"], peak=1000.0)
    for flops in (100, 300):
        meter.add({"flops": flops})  # type: ignore[dict-item]
    line = {
        "loss": 1.0,
        "a/tokens": 30.0,
        "a/positions": 40.0,
        "b/tokens": 5.0,
        "b/positions": 50.0,
    }
    read = meter.read(line, steps=2, seconds=0.5)
    assert read["a/padding"] == 0.25 and read["b/padding"] == 0.9
    assert read["tokens_per_second"] == 2 * 35 / 0.5
    assert read["mfu"] == (100 + 300) / 0.5 / 1000
    assert read["loss"] == 1.0 and "a/tokens" not in read
    assert read["host_memory_gib"] > 0
    # Counting starts anew, and without a peak nothing is made up.
    assert "mfu" not in meter.read(line, 2, 0.5)
    blind = Meter(work=lambda batches: 1e9)
    blind.add({})
    assert "mfu" not in blind.read(line, 2, 0.5)


def test_few_updates_are_in_flight_at_once():
    class Loss(float):
        """A figure that is done when somebody waits for it."""

        def block_until_ready(self) -> Loss:
            waiting.discard(int(self))
            return self

    waiting: set[int] = set()
    most = []

    def slow(state: State, batch: Any) -> Any:
        waiting.add(batch["number"])
        most.append(len(waiting))
        return State(state.step + 1, state.params, ()), {"loss": Loss(batch["number"])}

    early = []

    def on_step() -> None:
        number = len(early)
        early.append(number in waiting and number < 20 - AHEAD)

    fit(
        begin(),
        slow,
        lambda number: ({"number": number}, []),
        20,
        log_every=50,
        watch=Watch(on_step=on_step),
    )
    assert max(most) == AHEAD + 1
    # A step is counted when it is done, not when it is handed over.
    assert len(early) == 20 and not any(early)
