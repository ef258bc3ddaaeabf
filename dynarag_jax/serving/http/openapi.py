"""The server's interface as OpenAPI 3.1, from the shapes that requests are checked against."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel

from dynarag_jax import __version__
from dynarag_jax.serving.http.shapes import ChatRequest, RerankRequest, ScoreRequest, TeiRequest

BODIES: dict[str, tuple[type[BaseModel], str]] = {
    "/rerank": (RerankRequest, "Documents to read for a query (vLLM, Infinity)"),
    "/v1/rerank": (RerankRequest, "Documents to read for a query (Cohere v1, Jina, vLLM, Voyage)"),
    "/v2/rerank": (RerankRequest, "Documents to read for a query (Cohere v2, vLLM)"),
    "/tei/rerank": (TeiRequest, "All texts with scores (Text Embeddings Inference)"),
    "/score": (ScoreRequest, "A list's log-probability, step by step"),
    "/v1/chat/completions": (ChatRequest, "An answer from documents, or from the corpus"),
}
PAGES = {
    "/v1/models": "The model that is served",
    "/health": "Whether the process works",
    "/ready": "Whether it should be sent requests",
    "/metrics": "Counts and times, for Prometheus",
}
REFUSED = {
    "400": "what is asked for is empty, too much, or no JSON",
    "401": "no valid key",
    "404": "no such model",
    "408": "the body did not go on",
    "413": "too large",
    "422": "a field is wrong or unknown; the message names it",
    "429": "too many requests wait; Retry-After says when to come again",
    "503": "the request took too long",
}


@functools.lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    template = "#/components/schemas/{model}"
    for path, (shape, summary) in BODIES.items():
        made = shape.model_json_schema(ref_template=template)
        schemas |= made.pop("$defs", {})
        schemas[shape.__name__] = made
        body = {"schema": {"$ref": template.format(model=shape.__name__)}}
        replies = {"200": {"description": "served", "content": {"application/json": {}}}}
        if path == "/v1/chat/completions":
            replies["200"]["content"]["text/event-stream"] = {}  # type: ignore[index]
        error = {"content": {"application/json": {}}}
        refused = {code: {"description": why, **error} for code, why in REFUSED.items()}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {"application/json": body}},
                "responses": replies | refused,
                "security": [{}, {"key": []}],
            }
        }
    for path, summary in PAGES.items():
        kind = "text/plain" if path == "/metrics" else "application/json"
        content = {kind: {}}
        replies = {"200": {"description": "served", "content": content}}
        if path in ("/health", "/ready"):
            replies["503"] = {"description": "not now", "content": content}
        else:
            replies["401"] = {"description": "no valid key", "content": {"application/json": {}}}
        paths[path] = {"get": {"summary": summary, "responses": replies}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "dynarag_jax", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
