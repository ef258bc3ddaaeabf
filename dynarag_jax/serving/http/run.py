"""A server on a port: connections with deadlines, and a stop that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.serving.http.app import build_app
from dynarag_jax.serving.http.served import Served

HEADER_BYTES = 64 * 1024
"""of a request's headers, at most"""


def deadline_protocol(header_seconds: float) -> type[H11Protocol]:
    """HTTP connections that are closed where a request's headers do not come within a time."""

    class DeadlineProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_headers()

        def data_received(self, data: bytes) -> None:
            if self._deadline is None and self._idle():
                self._wait_for_headers()  # the first bytes of a further request
            super().data_received(data)
            if not self._idle():
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0]:
                self._wait_for_headers()

        def _idle(self) -> bool:
            """Whether no request is being read or worked on."""
            return self.conn.their_state is h11.IDLE

        def _wait_for_headers(self) -> None:
            self._stop_waiting()
            self._deadline = self.loop.call_later(header_seconds, self._late)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _late(self) -> None:
            if self._idle() and not self.transport.is_closing():
                self.transport.close()

    return DeadlineProtocol


class StoppingServer(uvicorn.Server):
    """Finishes what it has taken when it is told to stop; told twice, it stops at once."""

    def __init__(self, config: uvicorn.Config, served: Served, say: Callable[[str], None]):
        super().__init__(config)
        self._served, self._say = served, say

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = {kind: signal.signal(kind, self._told) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _told(self, kind: int, frame: FrameType | None) -> None:
        if self._served.draining:
            self.force_exit = self.should_exit = True
            return
        self._served.draining = True
        self._say("stopping: no new connections soon, requests in work are finished")
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self._served.limits.drain_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    def stop(self) -> None:
        """Stop as after SIGTERM; called from any thread."""
        self._served.draining = True
        self.should_exit = True


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
      InputError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", "") or str(error)
        raise InputError(f"cannot listen on {host}:{port}: {reason}; choose another port") from None
    return found


def make_server(served: Served, app: ASGIApp, say: Callable[[str], None]) -> StoppingServer:
    """A server of an application, within the limits."""
    limits = served.limits
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=deadline_protocol(limits.header_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(max(1, limits.idle_seconds)),
        timeout_graceful_shutdown=int(max(1, limits.stop_seconds)),
        backlog=1024,
    )
    return StoppingServer(config, served, say)


def serve(served: Served, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
      InputError: the address is taken.
    """
    place = listening_socket(host, port)
    name = f"[{host}]" if ":" in host else host
    try:
        served.work.start()
        say(f"'{served.name}' on http://{name}:{place.getsockname()[1]}; /ready says when it is")
        make_server(served, build_app(served), say).run(sockets=[place])
    finally:
        served.work.close()
        place.close()
