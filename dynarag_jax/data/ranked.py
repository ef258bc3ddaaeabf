"""Questions with passages that a retriever or a reranker put in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dynarag_jax.data.catalog import BENCHMARKS
from dynarag_jax.data.values import Candidates, Record, rest
from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage, Question, question_from_json, question_to_json, valid_list
from dynarag_jax.retrieval.passages import IDS, TEXTS

QUESTIONS = ("question", "instruction")
ANSWERS = ("answers", "answer", "golden_answers")
CONTEXTS = ("ctxs", "docs", "top_contexts", "passages")


def read_records(value: dict[str, Any], where: str, _: str) -> Iterator[Question]:
    """Our own layout; see ``dynarag_jax/records.py``."""
    question = question_from_json(value, where)
    pairs = question.extra.get("qa_pairs")
    if pairs is not None and not (
        isinstance(pairs, list)
        and all(isinstance(p, list) and all(isinstance(a, str) for a in p) for p in pairs)
    ):
        raise Record(where, value).fail("qa_pairs", "must be a list of lists of short answers")
    yield question


def write_records(question: Question) -> dict[str, Any]:
    return question_to_json(question)


# ------------------------------------------------------------- Self-RAG, DynamicRAG, DPR's output

_MIXED = {
    "nq": "nq",
    "hotpotqa": "hotpotqa",
    "eli5": "eli5",
    "fever": "fever",
    "asqa": "asqa",
    "tc": "triviaqa",
    "triviaqa": "triviaqa",
}
"""Words of the ids in DynamicRAG's training file, and the dataset that each stands for."""


def read_contexts(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, question, answers, ctxs: [{id, title, text, score, isgold, has_answer}]}``.

    Also ``instruction`` for the question, ``answer`` or ``golden_answers``, and ``docs``,
    ``top_contexts`` or ``passages``, whose elements may be bare texts. ``isgold`` marks the needed
    passages. ``rerank_label`` and ``true_id`` are the judgements of DynamicRAG's training file:
    what is called true becomes the expert's list, in the retriever's order. That file mixes
    datasets, and names each question's in its id.
    """
    fields = Record(where, value)
    names = [fields.name(*QUESTIONS), fields.name(*ANSWERS), fields.name(*CONTEXTS)]
    candidates, marked, labeled, order = Candidates(), False, False, []
    holding: dict[str, None] = {}
    chosen: dict[str, None] = {}
    for item in _objects(fields, names[2]):
        passage = candidates.add(item.passage(), item.where, item.flag("isgold", False))
        order.append(passage.id)
        marked |= item.has("isgold")
        for name in ("has_answer", "hasanswer"):
            if item.flag(name, False):
                holding[passage.id] = None
        if item.has("rerank_label"):
            labeled = True
            label = item.text("rerank_label").strip().lower()
            if label not in ("true", "false"):
                raise item.fail("rerank_label", "must be true or false")
            if label == "true":
                chosen[passage.id] = None
    used = {"id", *names, "type"}
    if fields.has("true_id"):
        labeled = True
        ids = fields.integers("true_id")
        if wrong := valid_list(ids, len(order)):
            raise InputError(f"{where}: field 'true_id' {wrong}")
        chosen = dict.fromkeys(order[i - 1] for i in ids)
        used |= {"true_id"}
    extra = rest(value, used)
    if holding:
        extra["has_answer"] = list(holding)
    identity = fields.identity("id", "_id", default=default)
    words = re.split(r"[^a-z0-9]+", identity.lower()) if labeled else []
    dataset = next((_MIXED[word] for word in words if word in _MIXED), "")
    if dataset:
        extra["dataset"] = dataset
    number = {name: i for i, name in enumerate(candidates.passages, 1)}
    yield Question(
        id=identity,
        text=fields.text(*QUESTIONS),
        answers=fields.answers(*ANSWERS),
        task=BENCHMARKS[dataset].task if dataset else "short",
        type=fields.text("type", blank=True) if fields.has("type") else "",
        passages=tuple(candidates.passages.values()),
        gold=tuple(candidates.gold) if marked else None,
        expert=tuple(number[name] for name in chosen) if labeled else None,
        expert_source="rerank_label" if labeled else "",
        extra=extra,
    )


def _objects(fields: Record, name: str) -> list[Record]:
    """The passages of a list, in which a text alone is one, too."""
    items = fields.values.get(name)
    if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
        texts = [{"text": item} for item in items]
        return [Record(f"{fields.where}: {name}[{i}]", text) for i, text in enumerate(texts)]
    return fields.each(name)


def _context(passage: Passage) -> dict[str, Any]:
    value: dict[str, Any] = {"id": passage.id, "title": passage.title, "text": passage.text}
    if passage.score is not None:
        value["score"] = passage.score
    return value


def write_contexts(question: Question) -> dict[str, Any]:
    contexts = [_context(passage) for passage in question.passages]
    held = question.extra.get("has_answer")
    for context in contexts:
        if question.gold is not None:
            context["isgold"] = context["id"] in question.gold
        if isinstance(held, list):
            context["has_answer"] = context["id"] in held
    value: dict[str, Any] = {"id": question.id, "question": question.text}
    value |= {"answers": list(question.answers), "ctxs": contexts}
    if question.type:
        value["type"] = question.type
    if question.expert is not None:
        value["true_id"] = list(question.expert)
    return value


# ---------------------------------------------------------------------------- DPR's training data

DPR = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")


def read_dpr(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{question, answers, positive_ctxs, hard_negative_ctxs, negative_ctxs}``.

    Positives are the needed passages. They stand first, as in the file, so that their place gives
    them away: show the candidates in random order.
    """
    fields = Record(where, value)
    candidates = Candidates()
    for name in DPR:
        for item in fields.each(name):
            candidates.add(item.passage(), item.where, name == DPR[0])
    yield Question(
        id=fields.identity("id", "_id", default=default),
        text=fields.text("question"),
        answers=fields.answers("answers", "answer"),
        passages=tuple(candidates.passages.values()),
        gold=tuple(candidates.gold),
        extra=rest(value, {"id", "_id", "question", fields.name("answers", "answer"), *DPR}),
    )


def write_dpr(question: Question) -> dict[str, Any]:
    gold = question.gold or ()
    contexts = [_context(p) | {"passage_id": p.id} for p in question.passages]
    return {
        "id": question.id,
        "question": question.text,
        "answers": list(question.answers),
        "positive_ctxs": [c for c in contexts if c["id"] in gold],
        "hard_negative_ctxs": [c for c in contexts if c["id"] not in gold],
        "negative_ctxs": [],
    }


# ---------------------------------------------------------------------------- RankLLM


def read_rankllm(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{query: {text, qid}, candidates: [{docid, score, doc: {title, contents | text}}]}``."""
    fields = Record(where, value)
    query, candidates = fields.inner("query"), Candidates()
    for item in fields.each("candidates", needed=True):
        doc = item.inner("doc")
        passage = Record(
            doc.where,
            {key: doc.values[key] for key in ("title", *TEXTS) if key in doc.values}
            | {"id": item.identity("docid", *IDS), "score": item.values.get("score")},
        ).passage()
        candidates.add(passage, item.where)
    yield Question(
        id=query.identity("qid", "id", default=default),
        text=query.text("text"),
        passages=tuple(candidates.passages.values()),
        extra=rest(value, {"query", "candidates"}),
    )


def write_rankllm(question: Question) -> dict[str, Any]:
    return {
        "query": {"text": question.text, "qid": question.id},
        "candidates": [
            {"docid": p.id, "score": p.score, "doc": {"title": p.title, "text": p.text}}
            for p in question.passages
        ],
    }


# --------------------------------------------------------------------- lists of titles of a corpus


def read_titles(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{_id, question, answer, gold_titles, NAME_titles}``: rankings by title over one corpus.

    The lists stay in ``extra``; with a corpus, ``sidecars.Titles`` makes passages of one of them.
    """
    fields = Record(where, value)
    for name in value:
        if name.endswith("_titles"):
            fields.strings(name)
    yield Question(
        id=fields.identity("_id", "id", default=default),
        text=fields.text("question"),
        answers=fields.answers("answer", "answers"),
        type=fields.text("type", blank=True) if fields.has("type") else "",
        extra=rest(value, {"_id", "id", "question", "answer", "answers", "type"}),
    )
