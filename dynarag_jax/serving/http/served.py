"""What every route of one server shares."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from dynarag_jax.records import Question
from dynarag_jax.serving.corpus import CorpusSearch
from dynarag_jax.serving.cutting import Cutter
from dynarag_jax.serving.http.bodies import Bodies
from dynarag_jax.serving.http.measures import Measures
from dynarag_jax.serving.http.refusals import Refusal
from dynarag_jax.serving.limits import Limits
from dynarag_jax.serving.work import Work


@dataclass
class Served:
    """One server's model, limits and counts.

    Attributes:
      name: the model's, in replies and at /v1/models.
      names: others that requests may call it by, where ``strict`` is on.
      strict: refuse requests that name another model.
      mode: what /rerank gives where a request does not say.
      task: form of answers where a request does not say.
      passages: candidates that are searched for in the corpus.
      search: over the corpus; None where there is none.
      keys: hashes of the keys that open the server; empty leaves it open.
      texts: whether logs hold queries and answers.
    """

    work: Work
    limits: Limits
    cutter: Cutter
    measures: Measures
    name: str
    names: tuple[str, ...] = ()
    strict: bool = False
    mode: Literal["list", "all"] = "list"
    task: Literal["short", "paragraph"] = "short"
    passages: int = 20
    max_model_len: int = 0
    search: CorpusSearch | None = None
    keys: tuple[bytes, ...] = ()
    texts: bool = False
    began: float = field(default_factory=time.time)
    draining: bool = False
    bodies: Bodies = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.limits)

    def check_model(self, model: str | None) -> None:
        """Refuse a request for another model, where the server is strict."""
        if self.strict and model not in (None, self.name, *self.names):
            shown = repr(model)[:100]
            raise Refusal(404, f"the model {shown} does not exist here; there is '{self.name}'")

    def check_query(self, query: str) -> None:
        """Refuse a query that is blank or too long."""
        if not query.strip():
            raise Refusal(400, "field 'query' is blank", field="query")
        if self.cutter.longer(query, self.limits.query_tokens):
            raise Refusal(
                400, f"field 'query' is longer than {self.limits.query_tokens} tokens",
                field="query",
            )  # fmt: skip

    def require_documents(self, count: int) -> None:
        """Refuse more documents than the server takes."""
        if count > self.limits.documents:
            raise Refusal(
                400,
                f"{count} documents, and this server takes {self.limits.documents} in a request; "
                f"send fewer",
                field="documents",
            )


def question_of(name: str, query: str, passages: tuple, task: str = "short") -> Question:
    """The question of a request."""
    return Question(name, query, task=task, passages=passages)  # type: ignore[arg-type]
