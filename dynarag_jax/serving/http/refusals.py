"""Errors as each API's clients read them; what went wrong inside is never shown."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import ValidationError
from starlette.responses import JSONResponse

Family = Literal["rerank", "tei", "openai"]

LONGEST = 300
"""characters of a value that an error quotes, at most"""


BRANCHES = ("str", "int", "float", "DocumentObject")
"""what pydantic calls the branches of the shapes' unions"""


class Refusal(Exception):
    """A request that is not served.

    Attributes:
      status: of HTTP.
      message: one line for the client.
      retry_after: seconds, where trying again helps.
      field: of the request, where one is at fault.
      unread: the rest of the body was not read: the connection closes, and nobody sends it on.
    """

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: int = 0,
        field: str = "",
        unread: bool = False,
    ):
        super().__init__(message)
        self.status, self.message = status, " ".join(message.split())
        self.retry_after, self.field, self.unread = retry_after, field, unread


_TYPES = {
    400: ("invalid_request_error", "Validation"),
    401: ("authentication_error", "Unauthorized"),
    404: ("not_found_error", "NotFound"),
    405: ("invalid_request_error", "Validation"),
    408: ("invalid_request_error", "Validation"),
    413: ("invalid_request_error", "Validation"),
    422: ("invalid_request_error", "Validation"),
    429: ("rate_limit_error", "Overloaded"),
    503: ("service_unavailable_error", "Unhealthy"),
}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 404: "not_found"}


def family_of(path: str) -> Family:
    """Whose errors a path has."""
    if path.startswith("/tei/"):
        return "tei"
    return "rerank" if path.endswith("/rerank") or path == "/score" else "openai"


def error_body(refusal: Refusal, family: Family) -> dict[str, Any]:
    """What a client of this API reads.

    Paths of rerank endpoints are shared by several makers: their errors hold Cohere's ``message``,
    Jina's and Voyage's ``detail`` and vLLM's ``error``.
    """
    kind, tei = _TYPES.get(refusal.status, ("internal_error", "Backend"))
    if family == "tei":
        if refusal.status == 400:
            tei = "Empty"
        return {"error": refusal.message, "error_type": tei}
    error: dict[str, Any] = {
        "message": refusal.message,
        "type": kind,
        "param": refusal.field or None,
        "code": refusal.status,
    }
    if family == "openai":
        return {"error": error | {"code": _CODES.get(refusal.status)}}
    return {
        "id": str(uuid.uuid4()),
        "message": refusal.message,
        "detail": refusal.message,
        "error": error,
    }


def error_reply(refusal: Refusal, family: Family) -> JSONResponse:
    """The reply to a request that is not served."""
    headers: dict[str, str] = {}
    if refusal.retry_after:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.unread:
        headers["connection"] = "close"
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(refusal, family), refusal.status, headers)


def from_validation(error: ValidationError) -> Refusal:
    """What is wrong with a request's shape, by the first field that is at fault."""
    first = error.errors(include_url=False, include_context=False)[0]
    # Unions name the branch that failed; the field's own place is enough.
    places = [str(part) for part in first["loc"] if part not in BRANCHES]
    field = ".".join(p for p in places if p.isidentifier() or p.isdigit())[:LONGEST]
    if first["type"] == "missing":
        return Refusal(422, f"field '{field}' is missing", field=field)
    value = first["input"]
    shown = "" if isinstance(value, dict | list) else f", found {value!r}"
    shown = shown if len(shown) <= LONGEST else shown[:LONGEST] + "..."
    return Refusal(422, f"field '{field}': {first['msg']}{shown}", field=field)
