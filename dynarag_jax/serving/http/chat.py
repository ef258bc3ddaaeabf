"""OpenAI's chat completions: search, choose, answer; as a whole or as it is written."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.serving.answering import AnswerPart, AnswerRequest
from dynarag_jax.serving.http.bodies import unless_gone
from dynarag_jax.serving.http.refusals import Refusal, error_body
from dynarag_jax.serving.http.rerank import cut_passages, passages_of, ranked_passages
from dynarag_jax.serving.http.served import Served, question_of
from dynarag_jax.serving.http.shapes import ChatMessage, ChatRequest
from dynarag_jax.serving.work import Overloaded

log = logging.getLogger("dynarag_jax.serving")


@dataclass
class Prepared:
    """A request whose passages are chosen, and which is ready to be answered."""

    asked: ChatRequest
    answer: AnswerRequest
    passages: Sequence[Passage]
    """as they were given or found, whole"""
    list_tokens: int
    ignored: int
    """messages that are not read"""
    cut: int
    searched: bool
    began: float
    id: str
    created: int


def text_of(message: ChatMessage) -> str:
    """The text of a message."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(part.text for part in message.content)


async def prepare(served: Served, request: Request, asked: ChatRequest) -> Prepared:
    """Search, cut and choose what a request is answered from.

    Raises:
      Refusal: it asks nothing, or for what is not served.
    """
    served.check_model(asked.model)
    if served.work.generator is None:
        raise Refusal(
            404, f"'{served.name}' is a {served.work.policy.kind} and writes no answers; "
            f"start the server with --generator"
        )  # fmt: skip
    users = [message for message in asked.messages if message.role == "user"]
    if not users or asked.messages[-1].role not in ("user", "system", "developer"):
        raise Refusal(400, "the last message must be the user's question", field="messages")
    query = text_of(users[-1])
    served.check_query(query)
    searched = asked.documents is None and served.search is not None
    if asked.documents is not None:
        given = passages_of(asked.documents)
        passages = [
            Passage(str(d.id), p.text, p.title)
            if not isinstance(d, str) and d.id is not None
            else p
            for d, p in zip(asked.documents, given, strict=True)
        ]
    elif served.search is not None:
        count = asked.passages or served.passages
        served.require_documents(count)
        passages = await asyncio.to_thread(served.search.search, query, count)
    else:
        passages = []
    kept, cut = await cut_passages(served, passages, None, False)
    ranked = await ranked_passages(served, request, query, kept)
    task = asked.task or served.task
    how = Sampling(temperature=asked.temperature or 0.0, top_p=asked.top_p or 1.0)
    if not asked.temperature:
        how = Sampling(temperature=0.0)
    limits = [most for most in (asked.max_tokens, asked.max_completion_tokens) if most]
    seed = uuid.uuid4().hex if asked.seed is None else str(asked.seed)
    question = question_of("request", query, tuple(kept), task)
    chosen = ranked.chosen[: asked.top_n or None]
    return Prepared(
        asked, AnswerRequest(question, chosen, how, min(limits, default=0), seed), passages,
        ranked.tokens, len(asked.messages) - 1, cut, searched, time.monotonic(),
        f"chatcmpl-{uuid.uuid4().hex}", int(time.time()),
    )  # fmt: skip


async def chat(served: Served, request: Request) -> Response:
    """POST /v1/chat/completions."""
    async with served.bodies.read(request, ChatRequest) as asked:
        prepared = await prepare(served, request, asked)
        if asked.stream:
            first = _First(served, prepared)
            await unless_gone(request, first.wait())
            return StreamingResponse(
                _stream(served, request, prepared, first),
                media_type="text/event-stream",
                headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
            )
        part = await unless_gone(request, _whole(served, prepared))
        finish = _note(served, request, prepared, part)
        message: dict[str, Any] = {"role": "assistant", "content": part.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return JSONResponse(
            _frame(served, prepared, "chat.completion")
            | {"choices": [choice], "usage": _usage(prepared, part)}
            | {"passages": _citations(prepared, part.read), "notes": _notes(prepared)}
        )


async def _whole(served: Served, prepared: Prepared) -> AnswerPart:
    """The answer when it is done."""
    first = True
    async with aclosing(served.work.answer(prepared.answer)) as parts:
        async for part in parts:
            if first:
                served.measures.first.observe(time.monotonic() - prepared.began)
                first = False
            if part.done:
                return part
    raise RuntimeError("an answer ended before it was done")


class _First:
    """An answer's parts; the first is awaited before the reply begins, so that an error has a
    status of its own."""

    def __init__(self, served: Served, prepared: Prepared):
        self._parts = served.work.answer(prepared.answer)
        self._served, self._prepared = served, prepared
        self.part: AnswerPart | None = None

    async def wait(self) -> None:
        self.part = await anext(self._parts)
        self._served.measures.first.observe(time.monotonic() - self._prepared.began)

    async def rest(self) -> AsyncGenerator[AnswerPart, None]:
        async with aclosing(self._parts):
            assert self.part is not None
            yield self.part
            async for part in self._parts:
                yield part


async def _stream(
    served: Served, request: Request, prepared: Prepared, first: _First
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; always with a finish_reason, or an error in its place."""
    frame = _frame(served, prepared, "chat.completion.chunk")

    def event(value: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(frame | {"choices": [choice]} | more)

    options = prepared.asked.stream_options
    usage = {"usage": None} if options and options.include_usage else {}
    told = ""
    try:
        yield chunk({"role": "assistant", "content": ""}, **usage)
        async with aclosing(first.rest()) as parts, asyncio.timeout(served.limits.request_seconds):
            async for part in parts:
                text = part.text if part.done else settled(part.text)
                if text.startswith(told) and len(text) > len(told):
                    yield chunk({"content": text[len(told) :]}, **usage)
                    told = text
                if part.done:
                    finish = _note(served, request, prepared, part)
                    own = {
                        "passages": _citations(prepared, part.read), "notes": _notes(prepared)
                    }  # fmt: skip
                    yield chunk({}, finish, **usage, **own)
                    if options and options.include_usage:
                        yield event(frame | {"choices": [], "usage": _usage(prepared, part)})
        yield b"data: [DONE]\n\n"
    except (InputError, Overloaded) as error:
        request.state.notes["failed"] = str(error)
        yield event(error_body(Refusal(503, str(error)), "openai"))
    except TimeoutError:
        request.state.notes["failed"] = "timed out"
        seconds = served.limits.request_seconds
        late = Refusal(503, f"the answer took more than {seconds:g} seconds")
        yield event(error_body(late, "openai"))
    except Exception:
        log.exception("a stream failed")
        request.state.notes["failed"] = "internal"
        yield event(error_body(Refusal(500, "the server failed on this request"), "openai"))


def settled(text: str) -> str:
    """The part of an unfinished text that later tokens leave as it is.

    Trailing space may be stripped, and a character whose bytes are not all there comes out as the
    replacement character.
    """
    return text.rstrip("\ufffd").rstrip()


def _frame(served: Served, prepared: Prepared, kind: str) -> dict[str, Any]:
    return {
        "id": prepared.id,
        "object": kind,
        "created": prepared.created,
        "model": served.name,
        "system_fingerprint": None,
    }


def _usage(prepared: Prepared, part: AnswerPart) -> dict[str, int]:
    read = part.prompt_tokens + prepared.list_tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": part.tokens,
        "total_tokens": read + part.tokens,
    }


def _citations(prepared: Prepared, read: int) -> list[dict[str, Any]]:
    """The passages that the answer was read from, in the order of reading."""
    found = []
    for position in prepared.answer.chosen[:read]:
        passage = prepared.passages[position - 1]
        row: dict[str, Any] = {"index": position - 1, "id": passage.id}
        if passage.title:
            row["title"] = passage.title
        if prepared.searched:  # the client has the texts that it sent
            row["text"] = passage.text
        found.append(row)
    return found


def _notes(prepared: Prepared) -> list[str]:
    """What of the request was not read."""
    notes = []
    if prepared.ignored:
        notes.append(f"{prepared.ignored} messages before the last question are not read")
    if prepared.cut:
        notes.append(f"{prepared.cut} documents were longer than the limit and were cut")
    return notes


def _note(served: Served, request: Request, prepared: Prepared, part: AnswerPart) -> str:
    """Count and note an answer; returns its finish reason."""
    finish = "stop" if part.ended else "length"
    request.state.finish = finish
    request.state.notes |= {"answer_tokens": part.tokens, "read": part.read, "finish": finish}
    if served.texts:
        request.state.notes["answer"] = part.text
    served.measures.prompt_tokens.inc(part.prompt_tokens)
    served.measures.generation_tokens.inc(part.tokens)
    served.measures.e2e.observe(time.monotonic() - request.state.came)
    return finish
