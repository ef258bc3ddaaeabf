"""What goes into the sampling engine and what comes out: its configuration, requests, results."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.sampling.choice import Sampling

STOPS = 8
"""Tokens that may end a request's branches, at most."""


@dataclass(frozen=True)
class EngineConfig:
    """How the sampling engine uses memory and time; results do not depend on it."""

    cache_gib: float = 0.0
    """memory for caches over all devices of a run; 0 takes what is free. Fewer prompts than asked
    for are in flight where they do not fit, and a request that never fits is refused by name"""
    chunk: int = 0
    """tokens of a prompt computed at a time; 0 computes prompts whole where the platform has a
    flash kernel for the model, and elsewhere 256 tokens at a time"""
    refill: float = 0.25
    """share of the slots that must be free before waiting prompts enter"""
    turn: int = 64
    """tokens decoded at most before finished results are handed out"""
    patience: int = 0
    """times that prompts enter a pool before another length that waits has its turn, for requests
    that come without end; 0 finishes one length after the other"""
    share: int = 64
    """a prompt that begins with this many tokens of one in flight takes them from its cache, where
    prompts are computed in chunks; 0 computes all tokens of every prompt"""

    def __post_init__(self) -> None:
        if self.cache_gib < 0:
            raise InputError(f"engine: cache_gib = {self.cache_gib} must not be negative")
        if not 0 < self.refill <= 1:
            raise InputError(f"engine: refill = {self.refill} must lie in (0, 1]")
        if self.turn < 1:
            raise InputError(f"engine: turn = {self.turn} must be positive")
        for name in ("chunk", "share", "patience"):
            if getattr(self, name) < 0:
                raise InputError(f"engine: {name} = {getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
      id: names the request, and with the seed decides its random numbers.
      key: decides them in place of the id, where it is not empty.
      prompt: tokens.
      shown: ids the grammar may use; None samples without the grammar.
      branches: continuations; 0 is as many as the engine has.
      sampling: how tokens are chosen.
      stops: tokens that end a branch, ``STOPS`` at most.
      max_tokens: the most tokens a branch takes, its end included; 0 is the engine's.
    """

    id: str
    prompt: Sequence[int]
    shown: int | None = None
    branches: int = 0
    sampling: Sampling = Sampling()
    stops: tuple[int, ...] = ()
    max_tokens: int = 0
    key: str = ""


@dataclass(frozen=True)
class Sampled:
    """What became of a request.

    Attributes:
      id: the request's.
      branches: tokens without padding, the end included.
      finished: whether each branch reached an end.
      token_logps: of each token, at temperature 1, under the grammar where there is one.
      unconstrained_logps: of each token, over the whole vocabulary.
      refused: why there is no result; empty where there is one.
    """

    id: str
    branches: tuple[tuple[int, ...], ...] = ()
    finished: tuple[bool, ...] = ()
    token_logps: tuple[tuple[float, ...], ...] = ()
    unconstrained_logps: tuple[tuple[float, ...], ...] = ()
    refused: str = ""

    @property
    def logps(self) -> tuple[float, ...]:
        """Of whole branches, under the grammar where there is one."""
        return tuple(float(np.asarray(x, np.float32).sum()) for x in self.token_logps)


@dataclass
class EngineCounts:
    """What an engine has done so far in this process."""

    prompts: int = 0
    prompt_tokens: int = 0
    """of the prompts, each counted once"""
    shared_tokens: int = 0
    """of these, taken from another prompt's cache"""
    branch_prompt_tokens: int = 0
    """prompt tokens that computing each branch by itself would have taken"""
    tokens: int = 0
    """written by branches"""

    @property
    def saved(self) -> float:
        """Share of the prompt computation that branches by themselves would have taken."""
        computed = self.prompt_tokens - self.shared_tokens
        return 1 - computed / max(self.branch_prompt_tokens, 1)


def request_key(seed: int, request_id: str) -> int:
    """A 32-bit number for a request's random key, from the seed and the id alone."""
    return zlib.crc32(f"{seed}/{request_id}".encode())


def why_refused(
    request: Request, vocab: int, longest: int, branches: int, max_tokens: int, ids: int
) -> str:
    """Why an engine cannot serve a request; empty where it can.

    Args:
      longest: its longest prompt; ``branches``, ``max_tokens``: its most.
      ids: of its grammar, 0 without one.
    """
    size = len(request.prompt)
    if not size:
        return "the prompt is empty"
    if request.sampling.method != "independent":
        return f"method '{request.sampling.method}' is a search, not a way to draw tokens"
    if size > longest:
        return f"its prompt of {size} tokens exceeds the longest of {longest}"
    if max(request.prompt) >= vocab or min(request.prompt) < 0:
        return f"its prompt holds a token outside the vocabulary of {vocab}"
    if request.shown is not None and not 0 <= request.shown <= ids:
        return f"it shows {request.shown} passages, and the grammar has {ids} ids"
    if request.branches > branches:
        return f"it asks for {request.branches} branches, more than {branches}"
    if request.max_tokens > max_tokens:
        return f"it asks for {request.max_tokens} tokens, more than {max_tokens}"
    if len(request.stops) > STOPS:
        return f"it has {len(request.stops)} stop tokens, more than {STOPS}"
    return ""
