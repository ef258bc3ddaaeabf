"""Policies with the calibration that stands in their directories, said wherever it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from dynarag_jax.exchange.calibration import read_calibration
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import EncoderPolicy
from dynarag_jax.policy.model import Policy

P = TypeVar("P", Policy, EncoderPolicy)


def calibrated(context: Context, policy: P, model: Path) -> P:
    """The policy as its directory calibrates it, or as it is."""
    found = read_calibration(model)
    if found is None:
        return policy
    context.log(f"{model}: {found}")
    return policy.with_bias(found.bias)


def say_left_out(context: Context, model: Path) -> None:
    """Say that a calibration has no part in what is done, if there is one."""
    if read_calibration(model) is not None:
        context.log(
            f"{model}: its calibration is left out: lists are sampled from the policy as trained, "
            f"which is what training goes on with"
        )
