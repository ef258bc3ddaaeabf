"""What a run's figures say beside the loss: tokens a second, utilization, padding, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from dynarag_jax.objectives.terms import LossInputs
from dynarag_jax.policy.batches import Batch

Figures = dict[str, float]

_SUMS = ("tokens", "positions")
"""counts of ``batch_figures`` that are reported as rates and shares"""


def batch_figures(batches: Mapping[str, Batch]) -> dict[str, jax.Array]:
    """What a step's batches hold, over all processes; for the figures of a jitted step.

    Returns:
      per stream ``tokens`` that are real, the ``positions`` they are padded to, and what was cut:
      ``dropped_passages`` that did not fit their prompts, ``dropped_ids`` of experts' lists and
      ``dropped_tokens`` of answers (or thoughts) longer than they may be; where lists stand behind
      thoughts, ``thought_tokens`` of a list on average.
    """
    figures = {}
    for name, batch in batches.items():
        real = batch.trunk_lengths.sum() + batch.branch_lengths.sum()
        figures |= {
            f"{name}/tokens": real.astype(jnp.float32),
            f"{name}/positions": jnp.float32(batch.trunk.size + batch.branches.size),
            f"{name}/dropped_passages": batch.dropped.sum().astype(jnp.float32),
            f"{name}/dropped_ids": batch.dropped_ids.sum().astype(jnp.float32),
            f"{name}/dropped_tokens": batch.dropped_tokens.sum().astype(jnp.float32),
        }
        if batch.thoughts is not None:
            lists = jnp.maximum((batch.branch_lengths > 0).sum(), 1)
            figures[f"{name}/thought_tokens"] = (batch.thoughts.sum() / lists).astype(jnp.float32)
    return figures


def reference_kl(scores: LossInputs) -> tuple[jax.Array, jax.Array]:
    """How far sampled branches' probabilities have moved from the reference's.

    Returns:
      Sum over sampled branches of ``log reference - log policy``, and their number. The mean
      estimates KL(reference || policy) where all samples of the reference are trained on; of best
      and worst lists alone it is the drift of these.
    """
    branches = scores.token_mask.any(-1) & scores.preferred[:, None]
    where = scores.token_mask & branches[..., None]
    moved = jnp.where(where, scores.reference - scores.constrained_logps, 0.0).sum()
    return moved, branches.sum()


def means(values: Sequence[Figures]) -> Figures:
    """The mean of every figure; empty of nothing."""
    if not values:
        return {}
    return {name: sum(v[name] for v in values) / len(values) for name in values[0]}


class Meter:
    """Turns the means of an interval into what is reported of it.

    ``NAME/padding`` is the share of a stream's positions that hold no token; ``tokens_per_second``
    counts real tokens of all streams; ``mfu`` is model FLOP utilization (arXiv 2204.02311,
    appendix B), left out where the device's peak is not known.
    """

    def __init__(
        self,
        work: Callable[[Mapping[str, Batch]], float] | None = None,
        peak: float | None = None,
    ):
        """Args:
        work: model operations of a step on batches, over all devices.
        peak: operations a second that all devices together could do, where known.
        """
        self._work, self._peak, self._done = work, peak, 0.0

    def add(self, batches: Mapping[str, Batch]) -> None:
        """Count a step's work."""
        if self._work is not None and self._peak:
            self._done += self._work(batches)

    def read(self, line: Figures, steps: int, seconds: float) -> Figures:
        """The line of an interval of ``steps`` that took ``seconds``; counting starts anew."""
        streams = [name.removesuffix("/tokens") for name in line if name.endswith("/tokens")]
        told = {
            name: value
            for name, value in line.items()
            if not ("/" in name and name.rsplit("/", 1)[1] in _SUMS)
        }
        seconds = max(seconds, 1e-9)
        for name in streams:
            told[f"{name}/padding"] = 1 - line[f"{name}/tokens"] / line[f"{name}/positions"]
        if streams:
            tokens = sum(line[f"{name}/tokens"] for name in streams)
            told["tokens_per_second"] = tokens * steps / seconds
        if self._peak and self._done:
            told["mfu"] = self._done / seconds / self._peak
        self._done = 0.0
        return told | memory()


def memory() -> Figures:
    """Peak memory in GiB: of the fullest local device where it says so, and of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
    of_host = {"host_memory_gib": host / 2**30}
    return ({"device_memory_gib": max(peaks) / 2**30} if peaks else {}) | of_host
