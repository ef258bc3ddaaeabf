"""Questions with answers: NQ-open, TriviaQA, PopQA, ASQA, ELI5, KILT, CLAP-NQ, FlashRAG, BEIR."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dynarag_jax.data.values import LABELS, Candidates, Record, rest, unique
from dynarag_jax.errors import InputError
from dynarag_jax.files import finite, refuse_constant
from dynarag_jax.records import Passage, Question


def read_qa(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{question, answer | answers}`` and nothing to read, as NQ-open."""
    fields = Record(where, value)
    answers = fields.name("answer", "answers")
    if not fields.has(answers):
        raise InputError(f"{where}: field 'answer' or 'answers' is missing")
    yield Question(
        id=fields.identity("id", "_id", default=default),
        text=fields.text("question"),
        answers=fields.answers(answers),
        type=fields.text("type", blank=True) if fields.has("type") else "",
        extra=rest(value, {"id", "_id", "question", answers, "type"}),
    )


def write_qa(question: Question) -> dict[str, Any]:
    return {"id": question.id, "question": question.text, "answer": list(question.answers)}


def read_flashrag(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, question, golden_answers, metadata}``."""
    fields = Record(where, value)
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("question"),
        answers=fields.answers("golden_answers"),
        extra=rest(value, {"id", "question", "golden_answers"}),
    )


def write_flashrag(question: Question) -> dict[str, Any]:
    return {"id": question.id, "question": question.text, "golden_answers": list(question.answers)}


def read_beir(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{_id, text, metadata}``, MTEB's ``{id, text}``: queries; judgments are in qrels.

    On the hub there is a column ``title`` beside them, which is empty; passages have titles.
    """
    fields = Record(where, value)
    if value.get("title"):
        raise fields.fail("title", "must be empty: passages have titles, queries do not")
    yield Question(
        id=fields.identity("_id", "id", default=default),
        text=fields.text("text"),
        extra=rest(value, {"_id", "id", "text", "title"}),
    )


def write_beir(question: Question) -> dict[str, Any]:
    return {"_id": question.id, "text": question.text}


def read_strategyqa(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{qid, question, answer: true, facts, decomposition, evidence, evidence_paragraphs}``.

    Answers are yes and no. Where the paragraphs of the evidence stand in the record, by id, they
    are the passages, and those of ``evidence_ids`` (else all) are needed.
    """
    fields = Record(where, value)
    candidates = Candidates()
    paragraphs = value.get("evidence_paragraphs")
    if paragraphs is not None and not isinstance(paragraphs, dict):
        raise fields.fail("evidence_paragraphs", "must be an object of texts by their ids")
    if paragraphs:
        for name, text in paragraphs.items():
            if not isinstance(text, str):
                raise fields.fail("evidence_paragraphs", "must hold texts by their ids")
            title = name.rpartition("-")[0] if name.rpartition("-")[2].isdigit() else ""
            candidates.add(Passage(name, text, title), where)
    gold = fields.texts("evidence_ids") or tuple(candidates.passages)
    used = {"qid", "id", "question", "answer", "evidence_paragraphs", "evidence_ids"}
    yield Question(
        id=fields.identity("qid", "id", default=default),
        text=fields.text("question"),
        answers=fields.answers("answer"),
        passages=tuple(candidates.passages.values()),
        gold=gold if candidates.passages else None,
        extra=rest(value, used),
    )


# ---------------------------------------------------------------------------- TriviaQA, PopQA


def read_triviaqa(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{Question, QuestionId, Answer: {Value, NormalizedAliases, HumanAnswers}}``, either case.

    The answers that count are NormalizedAliases and HumanAnswers. ``Value``, the answer as one
    writes it, stands first where its normalized form is among them, so that it adds nothing.
    """
    fields = Record(where, value)
    name = fields.name("Answer", "answer")
    answers: tuple[str, ...] = ()
    if fields.has(name):
        answer = fields.inner(name)
        aliases = answer.texts("NormalizedAliases", "normalized_aliases")
        counted = [*aliases, *answer.texts("HumanAnswers", "human_answers")]
        name_normal = answer.name("NormalizedValue", "normalized_value")
        normal = answer.text(name_normal, blank=True) if answer.has(name_normal) else ""
        value_there = answer.has(answer.name("Value", "value"))
        written = answer.text("Value", "value", blank=True) if value_there else ""
        first = [written] if normal in aliases else []
        answers = unique([*first, *counted])
        if not answers and value_there and written != "<unk>":
            # The answer of test questions, which is kept back, is "<unk>" on the hub.
            raise InputError(f"{where}: field '{name}' has a Value and no NormalizedAliases")
    sources = {"EntityPages", "SearchResults", "entity_pages", "search_results"}
    yield Question(
        id=fields.identity("QuestionId", "question_id", default=default),
        text=fields.text("Question", "question"),
        answers=answers,
        extra=rest(
            value, {"QuestionId", "question_id", "Question", "question", name, *sources}
        )
        | {"dataset": "triviaqa"},
    )  # fmt: skip


def read_popqa(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, question, possible_answers, prop, s_pop}``, JSON or the published table with tabs."""
    fields = Record(where, value)
    answers = fields.values.get("possible_answers")
    if isinstance(answers, str):
        # The published file holds the list as JSON within a text.
        try:
            answers = json.loads(answers, parse_constant=refuse_constant, parse_float=finite)
            json.dumps(answers, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise fields.fail("possible_answers", "must be a JSON list of texts") from None
    inner = Record(where, {"possible_answers": answers})
    kind = fields.text("prop", blank=True) if fields.has("prop") else ""
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("question"),
        answers=inner.texts("possible_answers"),
        type=kind,
        extra=rest(value, {"id", "question", "possible_answers", "prop"}) | {"dataset": "popqa"},
    )


# ---------------------------------------------------------------------------- long answers


def read_asqa(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{sample_id, ambiguous_question, qa_pairs, annotations}``; ALCE's variant with ``docs``.

    ``answers`` are the long answers; ``extra["qa_pairs"]`` holds, for each reading of the question,
    its short answers, and ``extra["disambiguations"]`` these readings.
    """
    fields = Record(where, value)
    pairs = fields.each("qa_pairs", needed=True)
    shorts = []
    for pair in pairs:
        if not isinstance(pair.values.get("short_answers"), list):
            raise pair.fail("short_answers", "must be a list of texts")
        shorts.append(list(pair.texts("short_answers")))
    notes = fields.each("annotations")
    long = [note.text("long_answer", blank=True) for note in notes]
    if not long and fields.has("answer"):
        long = [*fields.texts("answer")]
    candidates = Candidates()
    for item in fields.each("docs"):
        candidates.add(item.passage(), item.where)
    used = {"sample_id", "id", "ambiguous_question", "question", "qa_pairs", "annotations", "docs"}
    extra = rest(value, used | {"answer"})
    extra |= {"dataset": "asqa", "qa_pairs": shorts}
    subquestions = [p.text("question", blank=True) if p.has("question") else "" for p in pairs]
    if any(subquestions):
        extra["disambiguations"] = subquestions
    if any(note.has("knowledge") for note in notes):
        extra["knowledge"] = [note.values.get("knowledge") or [] for note in notes]
    yield Question(
        id=fields.identity("sample_id", "id", default=default),
        text=fields.text("ambiguous_question", "question"),
        answers=unique(long),
        task="paragraph",
        passages=tuple(candidates.passages.values()),
        extra=extra,
    )


def write_asqa(question: Question) -> dict[str, Any]:
    shorts = question.extra.get("qa_pairs")
    if not isinstance(shorts, list):
        raise InputError(f"question '{question.id}': ASQA needs qa_pairs, lists of short answers")
    subquestions = question.extra.get("disambiguations")
    if not isinstance(subquestions, list) or len(subquestions) != len(shorts):
        subquestions = [""] * len(shorts)
    return {
        "sample_id": question.id,
        "ambiguous_question": question.text,
        "qa_pairs": [
            {"question": text, "short_answers": short}
            for text, short in zip(subquestions, shorts, strict=True)
        ],
        "annotations": [{"long_answer": answer} for answer in question.answers],
    }


def read_eli5(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{q_id, title, selftext, answers: {text: [...], score: [...]}}``, as first published."""
    fields = Record(where, value)
    paragraphs = [fields.text("title")]
    if fields.has("selftext"):
        paragraphs += unique([fields.text("selftext", blank=True)])
    answers = fields.inner("answers").texts("text") if fields.has("answers") else ()
    yield Question(
        id=fields.identity("q_id", default=default),
        text="\n".join(paragraphs),
        answers=answers,
        task="paragraph",
        extra=rest(value, {"q_id", "title", "selftext", "answers"}) | {"dataset": "eli5"},
    )


def read_kilt(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, input, output: [{answer, provenance}]}``; test files have no output.

    KILT does not say which task a file is of: answers that are FEVER's labels make a label
    question; ``eli5`` and other datasets are named by the caller.
    """
    fields = Record(where, value)
    outputs = fields.each("output")
    answers = unique(o.text("answer", blank=True) for o in outputs if o.has("answer"))
    provenance = [p for o in outputs for p in o.objects("provenance")]
    extra = rest(value, {"id", "input", "output"})
    if provenance:
        extra["provenance"] = provenance
    label = bool(answers) and all(answer in LABELS for answer in answers)
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("input"),
        answers=answers,
        task="label" if label else "short",
        extra=extra,
    )


def write_kilt(question: Question) -> dict[str, Any]:
    output: list[dict[str, Any]] = [{"answer": answer} for answer in question.answers]
    if isinstance(provenance := question.extra.get("provenance"), list):
        output.append({"provenance": provenance})
    return {"id": question.id, "input": question.text, "output": output}


def read_clapnq(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, input, passages: [{title, text}], output: [{answer}]}``; an answer may be empty.

    The passages are needed where there is an answer; where there is none, no passage is.
    """
    fields = Record(where, value)
    candidates = Candidates()
    for item in fields.each("passages", needed=True):
        candidates.add(item.passage(), item.where)
    answers = unique(o.text("answer", blank=True) for o in fields.each("output") if o.has("answer"))
    yield Question(
        id=fields.identity("id", default=default),
        text=fields.text("input"),
        answers=answers,
        task="paragraph",
        passages=tuple(candidates.passages.values()),
        gold=tuple(candidates.passages) if answers else (),
        extra=rest(value, {"id", "input", "passages", "output"}),
    )
