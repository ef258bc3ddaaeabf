"""Servers that stages ask: their keys, and where their replies are kept."""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dynarag_jax.chat import ChatServer
from dynarag_jax.chat_cache import PaidServer, Replies, mend
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import ProcessTeam, gather, once, raise_together, wait
from dynarag_jax.sampling.answer_server import GeneratorConfig, ServerAnswers
from dynarag_jax.sampling.policy_sampler import PolicySampler


def key_of(server: ChatServer) -> str:
    """The server's key from the environment, or empty."""
    return os.environ.get(server.key_variable, "") if server.key_variable else ""


def replies_of(context: Context, server: PaidServer, team: ProcessTeam) -> Replies | None:
    """The replies on record; of several processes each that asks appends to a part of its own.

    None for a process whose team's leader asks.
    """
    path = context.path(server.cache)

    def standing() -> list[Path]:
        parts = path.parent.glob(f"{glob.escape(path.stem)}.part-*.jsonl")
        return sorted(one for one in (path, *parts) if one.exists())

    def mend_all() -> None:
        for one in standing():
            mend(one)

    once(mend_all)
    others = standing()
    own = path.with_name(f"{path.stem}.part-{team.index}.jsonl") if team.several else path
    found, failure = None, None
    try:
        found = Replies(own, [p for p in others if p != own]) if team.leader else None
    except InputError as error:
        failure = error
    raise_together(failure)  # read by all before anybody appends
    return found


@contextlib.contextmanager
def generator_of(
    context: Context, config: GeneratorConfig, sampler: PolicySampler
) -> Iterator[ServerAnswers | None]:
    """The server that answers, or None where the policy does; says in the end what was asked."""
    if not config.url:
        yield None
        return
    replies = replies_of(context, config, sampler.team)
    generator = ServerAnswers(config, sampler, key_of(config), replies)
    try:
        yield generator
    finally:
        generator.close()
    say_asked(context, "the generator's answers", generator.counts, generator.reasons)


def say_asked(context: Context, what: str, counts: Counter[str], reasons: Counter[str]) -> None:
    """Log how many replies all processes asked for, had on record and could not get, and why."""
    counts, reasons = added_up(counts), added_up(reasons)
    said = ", ".join(f"{name} {counts[name]}" for name in ("asked", "cached", "missing"))
    why = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(5))
    context.log(f"{what}: {said}{': ' + why if why else ''}")


def added_up(own: Counter[str]) -> Counter[str]:
    """The counts of all processes; each calls it."""
    wait("counts are added up")
    everyone = gather("counts", json.dumps(own).encode())
    return sum((Counter(json.loads(one)) for one in everyone), Counter())
