"""Questions over the paragraphs they come with: HotpotQA, 2WikiMultihopQA, MuSiQue, SQuAD, QED."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from dynarag_jax.data.values import Candidates, Record, content_id, missing_id, rest, unique
from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage, Question


def _columns(fields: Record, name: str, first: str, second: str) -> list[tuple[Any, Any]]:
    """Pairs as lists ``[[a, b], ...]``, objects, or two columns, as Hugging Face stores them."""
    value = fields.values.get(name)
    if value is None:
        return []
    if isinstance(value, dict):
        firsts, seconds = value.get(first), value.get(second)
        if isinstance(firsts, list) and isinstance(seconds, list) and len(firsts) == len(seconds):
            return list(zip(firsts, seconds, strict=True))
        raise fields.fail(name, f"must hold '{first}' and '{second}', lists of one length")
    if isinstance(value, list) and all(isinstance(v, list) and len(v) == 2 for v in value):
        return [(v[0], v[1]) for v in value]
    if isinstance(value, list) and all(isinstance(v, dict) for v in value):
        return [(v.get(first), v.get(second, v.get("content"))) for v in value]
    raise fields.fail(name, f"must be a list of pairs [{first}, {second}]")


def _supported(dataset: str, value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    fields = Record(where, value)
    candidates, titles = Candidates(), {}
    for i, (title, sentences) in enumerate(_columns(fields, "context", "title", "sentences")):
        place = f"{where}: context[{i}]"
        if not isinstance(title, str) or not isinstance(sentences, list):
            raise InputError(
                f"{place} must be a title and a list of sentences, found {title!r:.60}"
            )
        if not all(isinstance(s, str) for s in sentences):
            raise InputError(f"{place} ('{title}') holds a sentence that is no text")
        # HotpotQA's sentences carry the space before them, 2WikiMultihopQA's do not.
        text = "".join(s if not j or s[:1].isspace() else f" {s}" for j, s in enumerate(sentences))
        text = text.strip()
        passage = candidates.add(Passage(content_id(title, text), text, title), place)
        titles.setdefault(title, []).append((passage.id, len(sentences)))
    for i, (title, number) in enumerate(_columns(fields, "supporting_facts", "title", "sent_id")):
        place = f"{where}: supporting_facts[{i}]"
        if not isinstance(title, str) or not isinstance(number, int) or isinstance(number, bool):
            raise InputError(
                f"{place} must be a title and a sentence's number, found {title!r:.60}"
            )
        if not titles:
            continue
        if title not in titles:
            # Of fullwiki, whose paragraphs were retrieved: needed, and no candidate.
            candidates.gold[missing_id(title)] = None
            continue
        # Some facts name a sentence beyond the end; the paragraph is meant all the same.
        of_title = titles[title]
        long_enough = [name for name, count in of_title if number < count]
        candidates.gold[(long_enough or [of_title[0][0]])[0]] = None
    known = bool(titles) and fields.has("supporting_facts")
    used = {"_id", "id", "question", "answer", "answers", "answer_aliases", "type", "context"}
    yield Question(
        id=fields.identity("_id", "id", default=default),
        text=fields.text("question"),
        answers=unique([*fields.answers("answer", "answers"), *fields.answers("answer_aliases")]),
        type=fields.text("type", blank=True) if fields.has("type") else "",
        passages=tuple(candidates.passages.values()),
        gold=tuple(candidates.gold) if known else None,
        extra=rest(value, used) | {"dataset": dataset},
    )


read_hotpotqa = partial(_supported, "hotpotqa")
"""``{_id, question, answer, type, level, supporting_facts, context}``; paragraphs as sentences."""
read_2wikimultihopqa = partial(_supported, "2wikimultihopqa")
"""As HotpotQA, with ``evidences`` and aliases of the answer; ``context`` may be absent."""


def write_hotpotqa(question: Question) -> dict[str, Any]:
    # A paragraph is written as one sentence, so that every supporting fact is of sentence 0.
    titles = {p.id: p.title for p in question.passages}
    if len(set(titles.values())) != len(titles):
        raise InputError(
            f"question '{question.id}': two passages have one title, and HotpotQA's layout names "
            f"passages by title"
        )
    value: dict[str, Any] = {"_id": question.id, "question": question.text}
    if len(question.answers) > 1:
        value["answer_aliases"] = list(question.answers[1:])
    if question.answers:
        value["answer"] = question.answers[0]
    if question.type:
        value["type"] = question.type
    if question.gold is not None:
        mark = missing_id("")
        named = [titles.get(g, g.removeprefix(mark)) for g in question.gold
                 if g in titles or g.startswith(mark)]  # fmt: skip
        value["supporting_facts"] = [[title, 0] for title in named]
    value["context"] = [[p.title, [p.text]] for p in question.passages]
    return value


def read_musique(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{id, paragraphs, question, question_decomposition, answer, answer_aliases, answerable}``.

    ``gold`` is in the order of the decomposition. A question that is not answerable has no answers.
    """
    fields = Record(where, value)
    candidates, by_index, supporting = Candidates(), {}, []
    for item in fields.each("paragraphs"):
        title = item.text("title", blank=True) if item.has("title") else ""
        text = item.text("paragraph_text", "text")
        passage = candidates.add(Passage(content_id(title, text), text, title), item.where)
        by_index[item.integer("idx", len(by_index), least=0)] = passage.id
        if item.flag("is_supporting", False):
            supporting.append(passage.id)
    answerable = fields.flag("answerable", True)
    ordered: dict[str, None] = {}
    for item in fields.each("question_decomposition"):
        if not item.has("paragraph_support_idx"):
            continue
        index = item.integer("paragraph_support_idx", 0, least=0)
        if index not in by_index:
            raise item.fail("paragraph_support_idx", "must be the idx of a paragraph")
        ordered[by_index[index]] = None
    gold = tuple(ordered | dict.fromkeys(supporting))
    answers = unique([*fields.texts("answer"), *fields.texts("answer_aliases")])
    identity = fields.identity("id", default=default)
    used = {"id", "question", "answer", "answer_aliases", "paragraphs"}
    yield Question(
        id=identity,
        text=fields.text("question"),
        answers=answers if answerable else (),
        type=identity.split("__")[0] if "hop" in identity.split("__")[0] else "",
        passages=tuple(candidates.passages.values()),
        gold=gold if gold or not answerable else None,
        extra=rest(value, used) | {"dataset": "musique"},
    )


# ---------------------------------------------------------------------------- one paragraph


def _squad_answers(item: Record) -> tuple[str, ...]:
    """``[{text, answer_start}]``, or Hugging Face's ``{text: [...], answer_start: [...]}``."""
    if isinstance(item.values.get("answers"), dict):
        return item.inner("answers").texts("text")
    return unique(answer.text("text", blank=True) for answer in item.each("answers"))


def read_squad(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """An article ``{title, paragraphs: [{context, qas}]}``, or a question with its ``context``.

    The paragraph is the passage, and needed; SQuAD 2's impossible questions need none and have no
    answers.
    """
    fields = Record(where, value)
    title = fields.text("title", blank=True).replace("_", " ") if fields.has("title") else ""
    if fields.has("paragraphs"):
        pairs = [
            (paragraph, query)
            for paragraph in fields.each("paragraphs")
            for query in paragraph.each("qas", needed=True)
        ]
    else:
        pairs = [(fields, fields)]
    for i, (paragraph, query) in enumerate(pairs):
        text = paragraph.text("context")
        passage = Passage(content_id(title, text), text, title)
        answers = _squad_answers(query)
        # The hub's SQuAD 2 has no is_impossible: there, no answers say it.
        impossible = query.flag("is_impossible", query.has("answers") and not answers)
        answers = () if impossible else answers
        used = {"id", "title", "context", "question", "answers", "is_impossible"}
        yield Question(
            id=query.identity("id", default=f"{default}.{i}"),
            text=query.text("question").strip(),
            answers=answers,
            passages=(passage,),
            gold=() if impossible else (passage.id,),
            extra=rest(query.values, used | {"plausible_answers"}) | {"dataset": "squad"},
        )


def read_qed(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    """``{example_id, title_text, question_text, paragraph_text, original_nq_answers}``.

    An answer of several spans is read as these spans joined by ', '. The early files have
    ``answer_text`` in place of ``original_nq_answers``.
    """
    fields = Record(where, value)
    title = fields.text("title_text", blank=True) if fields.has("title_text") else ""
    text = fields.text("paragraph_text")
    passage = Passage(content_id(title, text), text, title)
    if fields.has("original_nq_answers"):
        spans = fields.values["original_nq_answers"]
        if not isinstance(spans, list):
            raise fields.fail("original_nq_answers", "must be a list of lists of spans")
        listed = Record(f"{where}: original_nq_answers", {str(i): s for i, s in enumerate(spans)})
        answers = unique(
            ", ".join(span.text("string", blank=True) for span in listed.each(name))
            for name in listed.values
        )
    else:
        answers = fields.texts("answer_text")
    used = {"example_id", "title_text", "question_text", "paragraph_text"}
    yield Question(
        id=fields.identity("example_id", default=default),
        text=fields.text("question_text"),
        answers=answers,
        passages=(passage,),
        gold=(passage.id,),
        extra=rest(value, used | {"original_nq_answers", "answer_text"}),
    )
