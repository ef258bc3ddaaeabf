"""Requests read within limits of size and time, and clients noticed that have gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from dynarag_jax.errors import nearest
from dynarag_jax.serving.http.refusals import Refusal, from_validation
from dynarag_jax.serving.http.shapes import Shape
from dynarag_jax.serving.limits import Limits

S = TypeVar("S", bound=Shape)
T = TypeVar("T")


class Gone(Exception):
    """The client has closed the connection: nobody reads a reply."""


class Bodies:
    """The bodies that are being read or worked on, counted so that they stay within a bound."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.held = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request, shape: type[S]) -> AsyncIterator[S]:
        """A request's body as its shape; its bytes count until the block is left.

        Raises:
          Refusal: too large, too slow, not of this shape, or too much is being read already.
          Gone: the client closed the connection meanwhile.
        """
        limits, size = self._limits, 0
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limits.body_bytes:
            raise Refusal(413, _too_large(limits), unread=True)
        chunks: list[bytes] = []
        stream = request.stream()
        try:
            while True:
                try:
                    async with asyncio.timeout(limits.header_seconds):
                        chunk = await anext(stream, None)
                except TimeoutError:
                    raise Refusal(
                        408,
                        f"the body did not go on for {limits.header_seconds:g} seconds",
                        unread=True,
                    ) from None
                except ClientDisconnect:
                    raise Gone from None
                if chunk is None:
                    break
                size += len(chunk)
                self.held += len(chunk)
                if size > limits.body_bytes:
                    raise Refusal(413, _too_large(limits), unread=True)
                if self.held > limits.bodies_bytes and self.held > size:
                    raise Refusal(429, "too much is being read at once", 1, unread=True)
                chunks.append(chunk)
            body = b"".join(chunks)
            chunks.clear()
            if not body.strip():
                raise Refusal(400, "the body is empty; expected a JSON object")
            yield parse(body, shape, limits)
        finally:
            self.held -= size


def parse(body: bytes, shape: type[S], limits: Limits) -> S:
    """A body as its shape. What it costs to say what is wrong with it is bounded.

    Raises:
      Refusal: it is no JSON object of this shape, or holds too many documents.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON that can be read: {error}") from None
    if not isinstance(values, dict):
        raise Refusal(422, "the body must be a JSON object")
    for name in values:
        if name not in shape.model_fields:
            shown = name if len(name) <= 60 else name[:60] + "..."
            close = nearest(shown, shape.model_fields)
            raise Refusal(422, f"unknown field '{shown}'{close}", field=shown)
    for name in ("documents", "texts"):
        given = values.get(name)
        if isinstance(given, list) and len(given) > limits.documents:
            raise Refusal(
                400,
                f"field '{name}' holds {len(given)} documents, and this server takes "
                f"{limits.documents} in a request; send fewer",
                field=name,
            )
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        raise from_validation(error) from None


def _too_large(limits: Limits) -> str:
    return f"the body is larger than {limits.body_mib:g} MiB; send fewer or shorter documents"


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``, unless the client closes the connection: then it is cancelled.

    Raises:
      Gone: the client has gone.
    """
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    message: dict[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = dict(await request.receive())
