"""A trained reranker in three lines of Python.

    from dynarag_jax import Reranker

    reranker = Reranker("runs/mine/export/model")
    reranker.rank("Who founded Arlo?", ["Arlo lies on the Bex.", "Ada founded Arlo."])

``rank`` gives what sentence-transformers' ``CrossEncoder.rank`` gives, but as many documents as the
policy sees fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike
from dynarag_jax.records import Passage, Question
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.serving.language_model import WrittenLists
from dynarag_jax.serving.loading import (
    ServedModel,
    calibration_of,
    load_generator,
    load_list_policy,
)
from dynarag_jax.serving.policies import Chosen, ExplainedList, ListPolicy, RankedList, list_scores

Document = str | Mapping[str, Any] | Passage
"""A text, or an object with ``text`` and perhaps ``title`` and ``id``, or a ``Passage``."""

_FIELDS = ("text", "title", "id", "score")


@dataclass(frozen=True)
class AnsweredQuery:
    """An answer and what it was read from.

    Attributes:
      answer: the generator's.
      corpus_ids: places of the documents it read, from 0, in the order it read them.
    """

    answer: str
    corpus_ids: tuple[int, ...]


class Reranker:
    """Chooses which documents to read for a query, in which order, how many; and answers from them.

    Args:
      model: a model directory (a run's ``feedback/model`` or ``export/model``), ``package:NAME``,
        or a hub id, of a language model that writes lists or of a scorer such as a cross-encoder.
      generator: language model that answers, where ``model`` is none.
      how: everything else; further arguments set its fields, as in
        ``Reranker("DIR", rule=CutOff("threshold", threshold=0.3), dtype="bfloat16")``.
      devices: those that share the work; all local ones if None.

    Raises:
      InputError: no such model, or an unknown argument.
    """

    def __init__(
        self,
        model: PathLike,
        *,
        generator: PathLike = "",
        how: ServedModel | None = None,
        seed: int = 0,
        devices: Sequence[Any] | None = None,
        **fields: Any,
    ):
        how = how or ServedModel()
        for name in fields:
            if name not in vars(how):
                raise InputError(
                    f"Reranker: unknown argument '{name}'{nearest(name, vars(how))}; there are "
                    f"{', '.join(vars(how))}"
                )
        how = replace(how, **fields)
        self.policy: ListPolicy = load_list_policy(model, how, seed, devices)
        self.calibration = calibration_of(model)
        """how readily its lists stop, where its directory says so"""
        self._generator: PolicySampler | None = None
        if str(generator):
            self._generator = load_generator(generator, replace(how, prompts=None), seed, devices)
        elif isinstance(self.policy, WrittenLists):
            self._generator = self.policy.sampler

    def rank(
        self,
        query: str,
        documents: Sequence[Document],
        top_k: int | None = None,
        return_documents: bool = False,
    ) -> list[dict[str, Any]]:
        """The documents to read for a query, best first.

        Args:
          top_k: at most so many; None leaves the number to the policy alone.
          return_documents: also give their texts.

        Returns:
          ``{"corpus_id": place in documents from 0, "score": ..., "text": ...}`` each. Scores lie
          between 0 and 1 and fall; a language model's say nothing beyond the order.

        Raises:
          InputError: a query or document is no text, or one is too long for a prompt.
        """
        return self.rank_all([query], [documents], top_k, return_documents)[0]

    def rank_all(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[Document]],
        top_k: int | None = None,
        return_documents: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """``rank`` for many queries at once, each with documents of its own."""
        if top_k is not None and top_k < 0:
            raise InputError(f"top_k = {top_k} must not be negative")
        questions = _questions(queries, documents)
        results = []
        for question, ranked in zip(questions, self._ranked(questions), strict=True):
            scores = list_scores(ranked, len(question.passages))
            rows = []
            for position, score in list(zip(ranked.chosen, scores, strict=True))[:top_k]:
                row: dict[str, Any] = {"corpus_id": position - 1, "score": score}
                if return_documents:
                    row["text"] = question.passages[position - 1].text
                rows.append(row)
            results.append(rows)
        return results

    def _ranked(self, questions: Sequence[Question]) -> list[RankedList]:
        """Lists of questions; one without documents gets the empty list."""
        asked = [question for question in questions if question.passages]
        found = iter(self.policy.rank_lists(asked))
        lists = []
        for question in questions:
            one = next(found) if question.passages else RankedList(())
            if isinstance(one, InputError):
                raise one
            lists.append(one)
        return lists

    def answer(
        self, query: str, documents: Sequence[Document] = (), top_k: int | None = None
    ) -> AnsweredQuery:
        """Answer a query from those of the documents that the policy chooses.

        Raises:
          InputError: as ``rank``; or the model is no language model and no generator was given.
        """
        return self.answer_all([query], [documents], top_k)[0]

    def answer_all(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[Document]],
        top_k: int | None = None,
    ) -> list[AnsweredQuery]:
        """``answer`` for many queries at once, each with documents of its own."""
        if self._generator is None:
            raise InputError(
                f"a {self.policy.kind} writes no answers; give a language model with generator="
            )
        questions = _questions(queries, documents)
        lists = [one.chosen[:top_k] for one in self._ranked(questions)]
        answers = self._generator.answers(list(zip(questions, lists, strict=True)))
        return [
            AnsweredQuery(answer, tuple(position - 1 for position in chosen))
            for answer, chosen in zip(answers, lists, strict=True)
        ]

    def explain(
        self,
        query: str,
        documents: Sequence[Document],
        corpus_ids: Sequence[int] | None = None,
    ) -> ExplainedList:
        """A list's log-probability and each step's alternatives: why this many?

        Args:
          corpus_ids: the list, as places in ``documents`` from 0; None takes the policy's own.

        Returns:
          positions count from 1 there, and 0 means that the list stops.
        """
        (question,) = _questions([query], [documents])
        if not question.passages:
            raise InputError("there are no documents to choose from")
        chosen: Chosen | None = None
        if corpus_ids is not None:
            chosen = tuple(place + 1 for place in corpus_ids)
        return self.policy.explain(question, chosen)


def to_passage(document: Document, where: str, name: str) -> Passage:
    """A document as a passage.

    Args:
      name: its id, where it has none.

    Raises:
      InputError: it is no text, or an object with other fields than are known; ``where`` names it.
    """
    if isinstance(document, Passage):
        return document
    if isinstance(document, str):
        return Passage(name, document)
    if not isinstance(document, Mapping):
        raise InputError(
            f"{where}: expected a text or an object with 'text', found {type(document).__name__}"
        )
    for field in document:
        if field not in _FIELDS:
            raise InputError(
                f"{where}: unknown field '{field}'{nearest(str(field), _FIELDS)}; there are "
                f"{', '.join(_FIELDS)}"
            )
    text, title = document.get("text"), document.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        raise InputError(f"{where}: fields 'text' and 'title' must be strings")
    return Passage(str(document.get("id") or name), text, title)


def _questions(queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[Question]:
    if isinstance(queries, str) or isinstance(documents, str):
        raise InputError("expected lists of queries and of documents, found one string")
    if len(queries) != len(documents):
        raise InputError(f"{len(queries)} queries and {len(documents)} lists of documents")
    questions = []
    for number, (query, own) in enumerate(zip(queries, documents, strict=True)):
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"query {number} must be a text that is not blank, found {query!r}")
        if isinstance(own, str):
            raise InputError(f"query {number}: expected a list of documents, found one string")
        passages = tuple(
            to_passage(document, f"query {number}: document {i}", str(i))
            for i, document in enumerate(own)
        )
        questions.append(Question(f"query {number}", query, passages=passages))
    return questions
