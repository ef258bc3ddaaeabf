"""An encoder policy's sampler that reads the vectors which the run keeps of its encoder."""

from __future__ import annotations

from typing import Any

from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import EncoderPolicy
from dynarag_jax.policy.kept_vectors import VectorStore
from dynarag_jax.sampling.encoder_sampler import EncoderSampler


def encoder_sampler(context: Context, stage: Any, policy: EncoderPolicy) -> EncoderSampler:
    """A sampler in the stage's batches, with the vectors that training kept of a frozen encoder."""
    store = VectorStore.of_run(context.directory, policy.cfg, policy.params, create=False)
    return EncoderSampler(policy, stage.batch, context.run.seed, store)
