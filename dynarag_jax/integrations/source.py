"""Where an integration's lists come from: a model in this process, or a server by its address."""

from __future__ import annotations

import json
import math
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dynarag_jax.errors import InputError
from dynarag_jax.json_client import Failed, JsonClient

KEY_VARIABLE = "DYNARAG_API_KEY"
"""Environment variable that holds a server's key, if it wants one."""

Documents = Sequence[Mapping[str, str]]
"""Objects with ``text`` and perhaps ``title``."""


class RanksDocuments(Protocol):
    """What an integration needs of a reranker; ``Reranker`` and ``RemoteReranker`` have it."""

    def rank_all(
        self,
        queries: Sequence[str],
        documents: Sequence[Documents],
        top_k: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """For each query ``{"corpus_id": place from 0, "score": ...}`` of the documents to read."""
        ...


class RemoteReranker:
    """A reranker behind ``dynarag serve``; may be used by many threads.

    Args:
      url: the server's address, such as ``http://localhost:8000``.
      key: its key; by default what ``DYNARAG_API_KEY`` holds.
      timeout: seconds for one request.
      retries: further attempts after a failure that may pass: overload, a broken connection.
      backoff: seconds before the first of them, twice as long before each next; what the server
        asks for (Retry-After) comes first.

    Raises:
      InputError: the address is none.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 0.5,
    ):
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url = {url!r} must begin with http:// or https://")
        self.url = url.rstrip("/")
        key = key or os.environ.get(KEY_VARIABLE, "")
        mend = f"its address and the key in {KEY_VARIABLE}"
        self._client = JsonClient("reranker", self.url, key, mend, timeout, retries, backoff)

    def rank_all(
        self,
        queries: Sequence[str],
        documents: Sequence[Documents],
        top_k: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The documents to read for each query, one request a query.

        Raises:
          InputError: the server cannot be reached or refuses; the line says what it says.
        """
        pairs = zip(queries, documents, strict=True)
        return [self._rank(query, own, top_k) for query, own in pairs]

    def _rank(self, query: str, documents: Documents, top_k: int | None) -> list[dict[str, Any]]:
        if not documents or top_k == 0:
            return []
        # A server takes top_n = 0 for no bound.
        body = {"query": query, "documents": list(documents), "mode": "list"}
        body |= {} if top_k is None else {"top_n": top_k}
        try:
            reply = self._client.post("/v1/rerank", body, _read_json)
        except Failed as error:
            reason = f"cannot be reached ({error})" if error.unreachable else error
            raise InputError(f"{self.url}: {reason}") from None
        try:
            rows = [
                {"corpus_id": row["index"], "score": float(row["relevance_score"])}
                for row in reply["results"]
            ]
            places = [row["corpus_id"] for row in rows]
            fits = all(type(i) is int and 0 <= i < len(documents) for i in places)
        except (KeyError, TypeError, ValueError):
            fits, places, rows = False, [], []
        if not fits or len(set(places)) < len(places):
            raise InputError(f"{self.url}: its reply is no reranking of {len(documents)} documents")
        return rows


def _read_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Failed("its reply is no JSON", final=True) from None


_LOCKS: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
_LOCKING = threading.Lock()
"""A lock for each reranker, whichever integrations share it."""


class SharedReranker:
    """A reranker of this process that several threads ask: one at a time.

    Frameworks run what is not asynchronous in threads, and a model's engine serves one caller.
    """

    def __init__(self, reranker: RanksDocuments):
        self._reranker = reranker
        with _LOCKING:
            self._lock = _LOCKS.setdefault(reranker, threading.Lock())

    def rank_all(
        self,
        queries: Sequence[str],
        documents: Sequence[Documents],
        top_k: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """As the reranker's own."""
        with self._lock:
            return self._reranker.rank_all(queries, documents, top_k)


def open_reranker(source: Any) -> RanksDocuments:
    """The reranker that an integration was given.

    Args:
      source: a server's address; or a model directory, ``package:NAME`` or hub id, which is loaded;
        or a ``Reranker``, a ``RemoteReranker``, or anything else with ``rank_all``.

    Raises:
      InputError: it is none of these, or there is no such model.
    """
    if isinstance(source, str | os.PathLike) and str(source):
        name = os.fspath(source)
        if str(name).startswith(("http://", "https://")):
            return RemoteReranker(str(name))
        from dynarag_jax.serving.reranker import Reranker

        loaded: Any = Reranker(name)  # its documents may be more than these
        return SharedReranker(loaded)
    if isinstance(source, RemoteReranker | SharedReranker):
        return source
    if callable(getattr(source, "rank_all", None)):
        given: Any = source
        return SharedReranker(given)
    raise InputError(
        f"reranker = {source!r}: give a model directory, the address of a server (http://...), or "
        f"a Reranker"
    )


def document(text: Any, title: Any) -> dict[str, str]:
    """A framework's document as the reranker takes it; a title that is no text is left out.

    Raises:
      InputError: its text is none. One that is missing (None, or pandas' NaN) is empty.
    """
    if text is None or (isinstance(text, float) and math.isnan(text)):
        text = ""
    if not isinstance(text, str):
        raise InputError(f"a document's text must be a string, found {text!r:.60}")
    value = {"text": text}
    return value | ({"title": title} if isinstance(title, str) and title else {})
