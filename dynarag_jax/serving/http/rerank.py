"""Rerank endpoints in the shapes of Cohere, Jina, vLLM, Voyage and Text Embeddings Inference."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynarag_jax.records import Passage
from dynarag_jax.serving.http.bodies import unless_gone
from dynarag_jax.serving.http.refusals import Refusal
from dynarag_jax.serving.http.served import Served, question_of
from dynarag_jax.serving.http.shapes import AnyDocument, RerankRequest, ScoreRequest, TeiRequest
from dynarag_jax.serving.policies import STOP, RankedList, list_scores, served_scores


def passages_of(
    documents: Sequence[AnyDocument], rank_fields: Sequence[str] | None = None
) -> list[Passage]:
    """Documents as passages, by place.

    Raises:
      Refusal: one has nothing to read.
    """
    found = []
    for place, document in enumerate(documents):
        if isinstance(document, str):
            found.append(Passage(str(place), document))
            continue
        values = document.model_dump()
        if rank_fields:
            read = [values.get(name) for name in rank_fields]
            texts = [str(value) for value in read if value is not None]
            if not texts:
                raise Refusal(
                    422, f"field 'documents.{place}' has none of rank_fields", field="documents"
                )
            found.append(Passage(str(place), "\n".join(texts)))
        elif document.text is None:
            raise Refusal(
                422, f"field 'documents.{place}.text' is missing", field=f"documents.{place}.text"
            )
        else:
            found.append(Passage(str(place), document.text, document.title or ""))
    return found


async def cut_passages(
    served: Served, passages: Sequence[Passage], limit: int | None, refuse: bool
) -> tuple[list[Passage], int]:
    """Passages none of which is too long, and how many were cut.

    Raises:
      Refusal: one was, and the request wants none cut.
    """
    kept, cut = await asyncio.to_thread(served.cutter.passages, passages, limit)
    if cut and refuse:
        most = served.cutter.limit if limit is None else min(limit, served.cutter.limit)
        raise Refusal(
            413, f"{cut} documents are longer than {most} tokens, and the request wants none cut"
        )
    return kept, cut


async def ranked_passages(
    served: Served, request: Request, query: str, passages: Sequence[Passage]
) -> RankedList:
    """The policy's list over a request's passages; counted and noted."""
    served.measures.documents.observe(len(passages))
    if not passages:
        return RankedList(())
    question = question_of("request", query, tuple(passages))
    ranked, waited = await unless_gone(request, served.work.rank(question))
    served.measures.queue.observe(waited)
    served.measures.chosen.observe(len(ranked.chosen))
    served.measures.prompt_tokens.inc(ranked.tokens)
    request.state.notes |= {
        "documents": len(passages), "chosen": len(ranked.chosen), "calls": ranked.calls,
        "tokens": ranked.tokens, "waited": round(waited, 4),
    }  # fmt: skip
    if served.texts:
        request.state.notes |= {"query": query, "list": [p - 1 for p in ranked.chosen]}
    return ranked


def rows(ranked: RankedList, count: int, mode: str, most: int | None) -> list[tuple[int, float]]:
    """(place, score) of the documents of a reply, best first."""
    if mode == "all":
        scores = served_scores(ranked, count)
        order = sorted(scores, key=lambda position: -scores[position])
        found = [(position - 1, scores[position]) for position in order]
    else:
        scored = zip(ranked.chosen, list_scores(ranked, count), strict=True)
        found = [(position - 1, score) for position, score in scored]
    return found[:most]


async def rerank(served: Served, request: Request) -> Response:
    """POST /rerank, /v1/rerank, /v2/rerank."""
    async with served.bodies.read(request, RerankRequest) as asked:
        served.check_model(asked.model)
        served.check_query(asked.query)
        passages = passages_of(asked.documents, asked.rank_fields)
        kept, cut = await cut_passages(
            served, passages, asked.max_tokens_per_doc, asked.truncation is False
        )
        ranked = await ranked_passages(served, request, asked.query, kept)
        bounds = [bound for bound in (asked.top_n, asked.top_k) if bound]
        mode = asked.mode or served.mode
        found = rows(ranked, len(passages), mode, min(bounds) if bounds else None)
        voyage = "top_k" in asked.model_fields_set and "top_n" not in asked.model_fields_set
        whole = asked.return_documents
        if whole is None:
            whole = request.url.path == "/rerank"
        texts = [d if isinstance(d, str) else d.model_dump(exclude_none=True)
                 for d in asked.documents] if whole else []  # fmt: skip
        if voyage:
            return JSONResponse(_voyage(served, ranked, found, texts))
        return JSONResponse(_results(served, asked, request, ranked, found, texts, cut))


def _results(
    served: Served,
    asked: RerankRequest,
    request: Request,
    ranked: RankedList,
    found: Sequence[tuple[int, float]],
    texts: Sequence[Any],
    cut: int,
) -> dict[str, Any]:
    """Cohere's, Jina's and vLLM's reply in one."""
    results = []
    for place, score in found:
        row: dict[str, Any] = {"index": place, "relevance_score": score}
        if texts:
            text = texts[place]
            row["document"] = {"text": text} if isinstance(text, str) else text
        results.append(row)
    warnings = []
    if cut:
        warnings.append(f"{cut} documents were longer than the limit and were cut")
    for name in ("instruction", "max_chunks_per_doc", "priority"):
        if getattr(asked, name):
            warnings.append(f"'{name}' has no effect here")
    meta: dict[str, Any] = {
        "api_version": {"version": "2" if request.url.path.startswith("/v2/") else "1"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": ranked.tokens},
    }
    if warnings:
        meta["warnings"] = warnings
    return {
        "id": str(uuid.uuid4()),
        "model": served.name,
        "results": results,
        # What Voyage's clients read, where they do not show themselves by ``top_k``.
        "data": [{"index": place, "relevance_score": score} for place, score in found],
        "usage": {"total_tokens": ranked.tokens, "prompt_tokens": ranked.tokens},
        "meta": meta,
    }


def _voyage(
    served: Served,
    ranked: RankedList,
    found: Sequence[tuple[int, float]],
    texts: Sequence[Any],
) -> dict[str, Any]:
    data = []
    for place, score in found:
        row: dict[str, Any] = {"index": place, "relevance_score": score}
        if texts:
            text = texts[place]
            row["document"] = text if isinstance(text, str) else text.get("text", "")
        data.append(row)
    return {
        "object": "list",
        "data": data,
        "model": served.name,
        "usage": {"total_tokens": ranked.tokens},
    }


async def tei_rerank(served: Served, request: Request) -> Response:
    """POST /tei/rerank: all texts, as TEI gives them."""
    async with served.bodies.read(request, TeiRequest) as asked:
        served.check_model(asked.model)
        served.check_query(asked.query)
        if not asked.texts:
            raise Refusal(400, "field 'texts' is empty", field="texts")
        kept, _ = await cut_passages(
            served, passages_of(asked.texts), None, asked.truncate is False
        )
        ranked = await ranked_passages(served, request, asked.query, kept)
        found = rows(ranked, len(asked.texts), "all", asked.top_n or None)
        reply = []
        for place, score in found:
            if asked.raw_scores:
                score = math.log(score / (1 - score))
            row: dict[str, Any] = {"index": place, "score": score}
            if asked.return_text:
                row["text"] = asked.texts[place]
            reply.append(row)
        return JSONResponse(reply)


async def score(served: Served, request: Request) -> Response:
    """POST /score: a list's log-probability, and what else each step could have been."""
    async with served.bodies.read(request, ScoreRequest) as asked:
        served.check_model(asked.model)
        served.check_query(asked.query)
        if not asked.documents:
            raise Refusal(400, "field 'documents' is empty", field="documents")
        passages = passages_of(asked.documents)
        kept, _ = await cut_passages(served, passages, None, False)
        question = question_of("request", asked.query, tuple(kept))
        chosen = None if asked.list is None else tuple(place + 1 for place in asked.list)
        if chosen and max(chosen) > len(kept):
            raise Refusal(
                422, f"field 'list' holds {max(chosen) - 1}, outside 0..{len(kept) - 1}",
                field="list",
            )  # fmt: skip
        if chosen and len(set(chosen)) < len(chosen):
            raise Refusal(422, "field 'list' holds a place twice", field="list")
        found = await unless_gone(request, served.work.explain(question, chosen))
        steps = []
        for step in found.steps:
            best = sorted(step.logps.items(), key=lambda item: -item[1])
            steps.append(
                {
                    "index": _place(step.chosen),
                    "log_probability": _finite(step.logps.get(step.chosen)),
                    "alternatives": [
                        {"index": _place(position), "log_probability": _finite(logp)}
                        for position, logp in best[: asked.alternatives]
                    ],
                }
            )
        reply: dict[str, Any] = {
            "model": served.name,
            "list": [position - 1 for position in found.chosen],
            "log_probability": _finite(found.logp),
            "steps": steps,
        }
        if found.scores:
            reply["scores"] = list(found.scores)
        request.state.notes |= {"documents": len(kept), "chosen": len(found.chosen)}
        return JSONResponse(reply)


def _place(position: int) -> int | None:
    """A position as a place from 0; null where the list stops."""
    return None if position == STOP else position - 1


def _finite(value: float | None) -> float | None:
    """A log-probability that JSON can hold: null for minus infinity."""
    return value if value is not None and math.isfinite(value) else None
