"""The routes of a server, and what surrounds each of them: key, time, errors, counts, log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynarag_jax.errors import InputError
from dynarag_jax.serving.http import chat, rerank
from dynarag_jax.serving.http.bodies import Gone
from dynarag_jax.serving.http.openapi import schema
from dynarag_jax.serving.http.refusals import Refusal, error_reply, family_of
from dynarag_jax.serving.http.served import Served
from dynarag_jax.serving.work import Overloaded, ServingFailure

log = logging.getLogger("dynarag_jax.serving")

OPEN = ("/health", "/ready")
"""Paths without a key: they tell nothing but whether the server is up."""

Handler = Callable[[Served, Request], Awaitable[Response]]


def hashed(key: str) -> bytes:
    """What is kept of a key: as long for any key, so that comparing takes as long for any."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def key_of(request: Request) -> str:
    """The key that a request brings: a bearer token, or in a header of its own."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("x-api-key", "") or request.headers.get("api-key", "")


def authorized(served: Served, request: Request) -> bool:
    """Whether a request may be served; all keys are compared, each in constant time."""
    if not served.keys:
        return True
    given, found = hashed(key_of(request)), False
    for key in served.keys:  # all of them, whichever fits
        found |= hmac.compare_digest(given, key)
    return found


class Endpoint:
    """A route's handler, with everything around it; an ASGI application."""

    def __init__(self, served: Served, path: str, handler: Handler, counted: bool = True):
        self._served, self._path, self._handler = served, path, handler
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        request.state.came = time.monotonic()
        request.state.notes = {}
        request.state.finish = "stop"
        request.state.id = uuid.uuid4().hex[:16]
        status, bytes_out = 0, 0

        async def counting(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [
                    *message.get("headers", ()),
                    (b"x-request-id", request.state.id.encode()),
                ]
                if self._served.draining:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            else:
                bytes_out += len(message.get("body", b""))
            await send(message)

        if self._counted:
            self._served.measures.requests.labels(self._path).inc()
        ended = False
        try:
            response = await self._respond(request)
            if response is not None:
                await response(scope, request.receive, counting)
            ended = True
        finally:
            self._record(request, status, bytes_out, ended)

    async def _respond(self, request: Request) -> Response | None:
        """The reply, an error's included; None where nobody reads one."""
        served, family = self._served, family_of(self._path)
        try:
            if self._path not in OPEN and not authorized(served, request):
                raise Refusal(401, "no valid API key; send it as 'Authorization: Bearer KEY'")
            async with asyncio.timeout(served.limits.request_seconds):
                return await self._handler(served, request)
        except Refusal as refusal:
            found = refusal
        except Gone:
            request.state.notes["failed"] = "the client has gone"
            return None
        except Overloaded as error:
            found = Refusal(429, f"the server is busy: {error}", retry_after=error.retry_after)
        except InputError as error:
            found = Refusal(422, str(error))
        except TimeoutError:
            seconds = served.limits.request_seconds
            found = Refusal(503, f"the request took more than {seconds:g} seconds", 1)
        except ServingFailure as error:
            found = Refusal(500, str(error))
        except Exception:
            log.exception("a request failed")
            found = Refusal(500, "the server failed on this request; see its log")
        request.state.notes["failed"] = found.message
        return error_reply(found, family)

    def _record(self, request: Request, status: int, size: int, ended: bool) -> None:
        measures, seconds = self._served.measures, time.monotonic() - request.state.came
        if not self._counted:
            return
        if ended and 200 <= status < 400 and "failed" not in request.state.notes:
            measures.success.labels(self._path, request.state.finish).inc()
        else:
            measures.failure.labels(self._path, str(status)).inc()
        measures.duration.labels(self._path).observe(seconds)
        fields: dict[str, Any] = {
            "id": request.state.id, "path": self._path, "status": status,
            "seconds": round(seconds, 4), "bytes": size,
        }  # fmt: skip
        if not ended:
            fields["failed"] = "cut off"
        log.info("request", extra={"fields": fields | request.state.notes})


async def health(served: Served, request: Request) -> Response:
    """GET /health: whether the process works."""
    return JSONResponse({"status": "ok"} if served.work.healthy else {"status": "failed"},
                        200 if served.work.healthy else 503)  # fmt: skip


async def ready(served: Served, request: Request) -> Response:
    """GET /ready: whether it should be sent requests."""
    if served.draining:
        return JSONResponse({"status": "stopping"}, 503)
    if not served.work.ready:
        return JSONResponse({"status": "compiling"}, 503)
    return JSONResponse({"status": "ready"})


async def models(served: Served, request: Request) -> Response:
    """GET /v1/models."""
    card = {
        "id": served.name,
        "object": "model",
        "created": int(served.began),
        "owned_by": "dynarag_jax",
        "max_model_len": served.max_model_len,
    }
    return JSONResponse({"object": "list", "data": [card]})


async def metrics(served: Served, request: Request) -> Response:
    """GET /metrics, for Prometheus."""
    return Response(served.measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(served: Served, request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(schema())


POSTS: dict[str, Handler] = {
    "/rerank": rerank.rerank,
    "/v1/rerank": rerank.rerank,
    "/v2/rerank": rerank.rerank,
    "/tei/rerank": rerank.tei_rerank,
    "/score": rerank.score,
    "/v1/chat/completions": chat.chat,
}
GETS: dict[str, Handler] = {
    "/v1/models": models,
    "/health": health,
    "/ready": ready,
    "/metrics": metrics,
    "/openapi.json": openapi,
}


def build_app(served: Served) -> Starlette:
    """The server's application."""
    counted = [*POSTS, "/v1/models"]
    routes = [
        Route(path, _only(Endpoint(served, path, handler, path in counted), method))
        for method, table in (("POST", POSTS), ("GET", GETS))
        for path, handler in table.items()
    ]

    async def unknown(request: Request, error: Exception) -> Response:
        family = family_of(request.url.path)
        if not authorized(served, request):
            return error_reply(Refusal(401, "no valid API key"), family)
        status = error.status_code if isinstance(error, HTTPException) else 404
        there = ", ".join([*POSTS, *GETS])
        return error_reply(Refusal(status, f"no such path; there are {there}"), family)

    async def broken(request: Request, error: Exception) -> Response:
        return PlainTextResponse("the server failed on this request", 500)

    measures, work = served.measures, served.work
    measures.watch("queue_size", "requests that no batch has taken yet", lambda: work.queued)
    measures.watch("requests_running", "requests in work or waiting", lambda: work.waiting)
    measures.watch(
        "batch_next_size", "requests that entered at the last turn", lambda: work.counts.entered
    )
    measures.watch("body_bytes", "bytes of requests that are held", lambda: served.bodies.held)
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: unknown, 404: unknown, 405: unknown, 500: broken},
    )


def _only(endpoint: ASGIApp, method: str) -> ASGIApp:
    """``endpoint`` for one method; others are answered 405."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        allowed = (method, "HEAD") if method == "GET" else (method,)
        if scope["method"] not in allowed:
            refusal = Refusal(405, f"{scope['path']} takes {method}")
            reply = error_reply(refusal, family_of(scope["path"]))
            reply.headers["allow"] = ", ".join(allowed)
            await reply(scope, receive, send)
            return
        await endpoint(scope, receive, send)

    return _Application(app)


class _Application:
    """An ASGI application that starlette takes for no plain function."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
