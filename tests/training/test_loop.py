"""The loop: what it reports, and that it stops at what is not finite."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from dynarag_jax.training.loop import NotFinite, fit
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
        on_figures=lambda n, values: lines.update({n: values}), on_step=lambda: ticks.append(1),
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
