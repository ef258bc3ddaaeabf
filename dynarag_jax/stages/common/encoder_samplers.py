"""The samplers of a stage with an encoder policy: of its lists, and of a reader's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.encoder_model import EncoderPolicy
from dynarag_jax.policy.kept_vectors import VectorStore
from dynarag_jax.policy.model import load_policy
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import PolicySampler


def check_reader(reader: str, dtype: str) -> None:
    """Raise InputError where a reader's type is given and no reader."""
    if dtype and not reader:
        raise InputError(
            f"reader_dtype = '{dtype}' is of a reader, and none is named; set 'reader', or leave "
            f"it empty"
        )


def encoder_sampler(context: Context, stage: Any, policy: EncoderPolicy) -> EncoderSampler:
    """A sampler in the stage's batches, with the vectors that training kept of a frozen encoder."""
    store = VectorStore.of_run(context.directory, policy.cfg, policy.params, create=False)
    return EncoderSampler(policy, stage.batch, context.run.seed, store)


def reader_of(context: Context, stage: Any, path: Path) -> PolicySampler:
    """The language model that answers from an encoder policy's lists, in its own type."""
    policy = load_policy(path, context.mesh, stage.prompts, stage.reader_dtype or stage.dtype)
    return PolicySampler(policy, stage.prompts, stage.batch, context.run.seed, stage.engine)
