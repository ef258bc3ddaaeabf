"""Reading questions that come with their passages: the Self-RAG, DPR and Lost-in-the-Middle way."""

from __future__ import annotations

import hashlib
from typing import Any

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike, read_jsonl
from dynarag_jax.records import Passage, Question


def content_id(title: str, text: str) -> str:
    """A passage id from its content, so that equal passages of different questions are one."""
    return "p" + hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:12]


def _text(value: dict[str, Any], name: str, where: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        hint = nearest(name, value) if text is None else ""
        raise InputError(f"{where}: field '{name}' must be non-empty text, found {text!r}{hint}")
    return text


def _passage(value: Any, where: str) -> tuple[Passage, bool]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object with title and text, found {value!r:.40}")
    text, title = _text(value, "text", where), value.get("title") or ""
    score = value.get("score")
    try:
        # Some of these files store the retriever's score as text.
        score = None if score is None else float(score)
    except (TypeError, ValueError):
        raise InputError(f"{where}: field 'score' must be a number, found {score!r}") from None
    return Passage(content_id(title, text), text, title, score), value.get("isgold") is True


def read_contexts(path: PathLike) -> list[Question]:
    """Read ``{question, answers, ctxs: [{title, text, score, isgold}]}`` a line.

    Passages get ids from their content; a passage that repeats within a question is kept once.
    Questions get the id of their field ``id``, else ``q`` and their line number. ``gold`` is set
    where the file marks passages with ``isgold``.

    Raises:
      InputError: naming the line and the field that is wrong.
    """
    questions = []
    for number, value in read_jsonl(path):
        where = f"{path}:{number}"
        text = _text(value, "question", where)
        answers, contexts = value.get("answers"), value.get("ctxs")
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise InputError(f"{where}: field 'answers' must be a list of strings")
        if not isinstance(contexts, list) or not contexts:
            raise InputError(f"{where}: field 'ctxs' must be a list of passages, not empty")
        passages: dict[str, Passage] = {}
        gold = []
        marked = False
        for i, context in enumerate(contexts):
            passage, is_gold = _passage(context, f"{where}: ctxs[{i}]")
            passages.setdefault(passage.id, passage)
            marked |= isinstance(context, dict) and "isgold" in context
            if is_gold and passage.id not in gold:
                gold.append(passage.id)
        questions.append(
            Question(
                id=str(value.get("id") or f"q{number}"),
                text=text,
                answers=tuple(answers),
                passages=tuple(passages.values()),
                gold=tuple(gold) if marked else None,
            )
        )
    return questions
