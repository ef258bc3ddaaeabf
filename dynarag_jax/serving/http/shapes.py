"""Requests as clients send them, checked at the border: unknown fields are refused by name.

Every field of the APIs of Cohere, Jina, vLLM, Voyage, Text Embeddings Inference and OpenAI stands
here that is understood, or known to change nothing of what is answered. null is as if a field was
not there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole(value: Any) -> Any:
    """5.0 is an integer in JSON, where numbers have no types; 5.5 is left, and refused."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_whole)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
# The pattern is for readers of the schema: a blank query is refused with words of its own.
Text = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": r"\S"})]

Places = Annotated[list[Count], Field(fail_fast=True)]


class Shape(BaseModel):
    """A request; no coercion, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DocumentObject(BaseModel):
    """A document with fields; ``text`` is read, or those that ``rank_fields`` names."""

    model_config = ConfigDict(extra="allow", strict=True)

    text: str | None = None
    title: str | None = None
    id: str | int | None = None


AnyDocument = str | DocumentObject

# The first that is wrong is said: a million of them would be a million errors.
Documents = Annotated[list[AnyDocument], Field(fail_fast=True)]


class RerankRequest(Shape):
    """A query and documents, in the shapes of Cohere, Jina, vLLM and Voyage."""

    query: Text
    """what the documents are read for"""
    documents: Documents
    """texts, or objects with a text and perhaps a title"""
    model: str | None = None
    """any name, unless the server is told to be strict about it"""
    top_n: Count | None = None
    """upper bound of the results; the policy may give fewer. 0 is none (vLLM)"""
    top_k: Count | None = None
    """the same (Voyage, whose shape the reply then has)"""
    return_documents: bool | None = None
    """also give the documents back; by default at /rerank alone, as vLLM does"""
    mode: Literal["list", "all"] | None = None
    """list: what the policy chose; all: every document, the chosen ones above 0.5, the others
    below, by falling scores. By default the server's"""
    max_tokens_per_doc: Count | None = None
    """tokens at which documents are cut (Cohere)"""
    truncate_prompt_tokens: None = None
    """of vLLM; only null is taken"""
    truncation: bool | None = None
    """of Voyage: whether documents that are too long are cut (default), or refused"""
    rank_fields: Annotated[list[str], Field(fail_fast=True, max_length=64)] | None = None
    """of documents that are objects: the fields to read, by default title and text (Cohere v1)"""
    max_chunks_per_doc: Count | None = None
    """of Cohere v1; documents are not read in chunks here, which the reply says"""
    instruction: str | None = None
    """of vLLM; policies follow none, which the reply says"""
    priority: Count | None = None
    """of Cohere v2; changes nothing here, which the reply says"""
    user: str | None = None
    """changes nothing"""


class TeiRequest(Shape):
    """Text Embeddings Inference's request: every text comes back with a score."""

    query: Text
    texts: Annotated[list[str], Field(fail_fast=True, json_schema_extra={"minItems": 1})]
    truncate: bool | None = None
    """whether texts that are too long are cut (default), or refused"""
    truncation_direction: Literal["right", "Right"] | None = None
    raw_scores: bool | None = None
    """scores before the sigmoid"""
    return_text: bool | None = None
    model: str | None = None
    """any name, unless the server is told to be strict about it"""
    top_n: Count | None = None
    """upper bound of the results"""


class ScoreRequest(Shape):
    """A list to be explained: its log-probability, and what else each step could have been."""

    query: Text
    documents: Annotated[Documents, Field(json_schema_extra={"minItems": 1})]
    list: Places | None = None
    """places in ``documents``, from 0, best first; null explains the policy's own list"""
    alternatives: Count | None = None
    """of every step, the most probable ones; null gives all"""
    model: str | None = None


class ContentPart(BaseModel):
    """A part of a message's content; only text is read."""

    # Parts may have fields of their makers' (cache_control), which change nothing of their text.
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A turn of a conversation; the last one of the user is the question."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None


class StreamOptions(BaseModel):
    """What a stream has beside the text; include_obfuscation and others change nothing of it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class ChatRequest(Shape):
    """OpenAI's chat completions, with documents."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    model: str | None = None
    documents: Documents | None = None
    """to answer from; null searches the server's corpus, where it has one"""
    passages: Count | None = None
    """candidates that are searched for in the corpus; null is the server's number"""
    top_n: Count | None = None
    """upper bound of the passages that are read"""
    task: Literal["short", "paragraph"] | None = None
    """a short phrase, or a paragraph; null is the server's"""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0, the default, is greedy"""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(_whole)] | None = None
    """same seed, same request: same answer"""
    n: Literal[1] | None = None
    # What changes nothing of an answer is taken; what would is refused unless it asks for nothing.
    frequency_penalty: Literal[0] | Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Literal[0] | Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
