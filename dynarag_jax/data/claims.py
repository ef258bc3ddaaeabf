"""Claims to be judged: FEVER and its relatives, SciFact. Answers are FEVER's labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dynarag_jax.data.values import LABELS, Candidates, Record, content_id, rest, unique
from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage, Question

_NAMES = {
    "SUPPORT": "SUPPORTS",
    "SUPPORTED": "SUPPORTS",
    "CONTRADICT": "REFUTES",
    "REFUTED": "REFUTES",
    "NEI": "NOT ENOUGH INFO",
    "NOTENOUGHINFO": "NOT ENOUGH INFO",
} | {label: label for label in LABELS}


def _label(fields: Record, name: str = "label") -> tuple[str, ...]:
    """The label as FEVER writes it; none where the file keeps it back."""
    if not fields.has(name):
        return ()
    label = fields.text(name)
    known = _NAMES.get(" ".join(label.replace("_", " ").upper().split()))
    known = known or _NAMES.get(label.strip().upper())
    if known is None:
        raise fields.fail(name, f"must be one of {', '.join(LABELS)}")
    return (known,)


def read_fever(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, claim, label, evidence}``; the evidence names pages and sentences, not text."""
    fields = Record(where, value)
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("claim"),
        answers=_label(fields),
        task="label",
        extra=rest(value, {"id", "claim", "label"}) | {"dataset": "fever"},
    )


def read_symmetric(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """FeverSymmetric, ``{id, claim, evidence, label}`` with the evidence as one text."""
    fields = Record(where, value)
    evidence = fields.text("evidence", "evidence_sentence", "sentence1")
    passage = Passage(content_id("", evidence), evidence)
    used = {"id", "claim", "label", "gold_label", "evidence", "evidence_sentence"}
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("claim", "sentence2"),
        answers=_label(fields, fields.name("gold_label", "label")),
        task="label",
        passages=(passage,),
        gold=(passage.id,),
        extra=rest(value, used | {"sentence1", "sentence2", "evid"}),
    )


def read_foolmetwice(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, text, label, gold_evidence, retrieved_evidence, wikipedia_page}``.

    Candidates are the retrieved sentences; a needed sentence that was not retrieved is named in
    ``gold`` all the same.
    """
    fields = Record(where, value)
    page = fields.text("wikipedia_page", blank=True) if fields.has("wikipedia_page") else ""

    def sentence(item: Record) -> Passage:
        text = item.text("text")
        header = item.text("section_header", blank=True) if item.has("section_header") else ""
        title = " | ".join(part for part in (page, header) if part)
        return Passage(content_id(title, text), text, title)

    candidates = Candidates()
    for item in fields.each("retrieved_evidence"):
        candidates.add(sentence(item), item.where)
    gold = [sentence(item).id for item in fields.each("gold_evidence")]
    used = {"id", "text", "label", "gold_evidence", "retrieved_evidence"}
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("text"),
        answers=_label(fields),
        task="label",
        passages=tuple(candidates.passages.values()),
        gold=unique(gold),
        extra=rest(value, used),
    )


def read_scifact(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, claim, cited_doc_ids, evidence}``; evidence is a list, or an object by document.

    A claim that cites documents without evidence is one of NOT ENOUGH INFO; one that cites none is
    a test claim, whose label is kept back.
    """
    fields = Record(where, value)
    labels: dict[str, None] = {}
    gold: dict[str, None] = {}
    if isinstance(value.get("evidence"), dict):
        by_document = fields.inner("evidence")
        for doc in by_document.values:
            for item in by_document.each(doc):
                labels |= dict.fromkeys(_label(item))
                gold[doc] = None
    else:
        for item in fields.each("evidence"):
            labels |= dict.fromkeys(_label(item))
            gold[item.identity("doc_id")] = None
    if len(labels) > 1:
        raise InputError(f"{where}: field 'evidence' holds labels that differ: {', '.join(labels)}")
    cited = value.get("cited_doc_ids")
    if cited is not None and not (
        isinstance(cited, list)
        and all(isinstance(c, str | int) and not isinstance(c, bool) for c in cited)
    ):
        raise fields.fail("cited_doc_ids", "must be a list of ids")
    answers = tuple(labels) or (("NOT ENOUGH INFO",) if cited else ())
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("claim"),
        answers=answers,
        task="label",
        gold=tuple(gold) if gold else None,
        extra=rest(value, {"id", "claim"}),
    )
