"""What a server takes in, and for how long it works on it."""

from __future__ import annotations

from dataclasses import dataclass

from dynarag_jax.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What a server takes in, and for how long it works on it."""

    documents: int = 1000
    """of a request at most; more are refused"""
    body_mib: float = 16.0
    """of a request at most"""
    bodies_mib: float = 256.0
    """of all requests that are being read or worked on; beyond it requests are answered 429"""
    query_tokens: int = 2048
    """of a query at most, in whatever the model's tokenizer counts; longer ones are refused"""
    document_tokens: int = 4096
    """of a document; longer ones are cut there, which the reply says"""
    queue: int = 256
    """requests in work or waiting; beyond it they are answered 429, with Retry-After"""
    queue_documents: int = 100_000
    """documents of these; a single request may have more"""
    connections: int = 2048
    """open at once; beyond it they are answered 503"""
    request_seconds: float = 60.0
    """from a request's arrival to its reply; beyond it the work is stopped and the reply is 503"""
    header_seconds: float = 10.0
    """for a request's headers to arrive, and again for its body to go on arriving"""
    idle_seconds: float = 75.0
    """that a connection without a request stays open; above a proxy's own, which should close it"""
    stop_seconds: float = 30.0
    """that requests in work are given to finish after SIGTERM"""
    drain_seconds: float = 1.0
    """after SIGTERM in which /ready says no and requests are still taken: load balancers notice"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "drain_seconds" and not value > 0:
                raise InputError(f"limits: {name} = {value} must be positive")
        if self.drain_seconds < 0:
            raise InputError(f"limits: drain_seconds = {self.drain_seconds} must not be negative")

    @property
    def body_bytes(self) -> int:
        return int(self.body_mib * 2**20)

    @property
    def bodies_bytes(self) -> int:
        return int(self.bodies_mib * 2**20)
