"""Servers that stages ask: their keys, and where their replies are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from dynarag_jax.chat import ChatServer
from dynarag_jax.chat_cache import PaidServer, Replies
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.sampling.answer_server import GeneratorConfig, ServerAnswers
from dynarag_jax.sampling.policy_sampler import PolicySampler


def key_of(server: ChatServer) -> str:
    """The server's key from the environment, or empty."""
    return os.environ.get(server.key_variable, "") if server.key_variable else ""


def replies_of(context: Context, server: PaidServer, team: ProcessTeam | None = None) -> Replies:
    """The replies on record; of several processes each appends to a part of its own.

    Raises:
      InputError: several processes share questions, and each would ask for itself.
    """
    path = context.path(server.cache)
    others = sorted(path.parent.glob(f"{path.stem}.part-*.jsonl"))
    if team is not None and team.several:
        if team.count < team.processes:
            raise InputError(
                f"{server.what}: several processes share questions on this mesh, so that each "
                f"would ask for itself; run.mesh.data and run.mesh.fsdp can divide them"
            )
        others = [path, *others]
        path = path.with_name(f"{path.stem}.part-{team.index}.jsonl")
    return Replies(path, [p for p in others if p.exists()])


@contextlib.contextmanager
def generator_of(
    context: Context,
    config: GeneratorConfig,
    sampler: PolicySampler,
    team: ProcessTeam | None = None,
) -> Iterator[ServerAnswers | None]:
    """The server that answers, or None where the policy does; says in the end what was asked."""
    if not config.url:
        yield None
        return
    generator = ServerAnswers(config, sampler, key_of(config), replies_of(context, config, team))
    try:
        yield generator
    finally:
        generator.close()
        counts, reasons = generator.counts, generator.reasons.most_common(5)
        said = ", ".join(f"{name} {counts[name]}" for name in ("asked", "cached", "missing"))
        why = ", ".join(f"{reason} ({count})" for reason, count in reasons)
        context.log(f"the generator's answers: {said}{': ' + why if why else ''}")
