"""A passage out of a record, whatever its fields are called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.fields import Fields
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.judgments import identity

IDS = ("id", "_id", "docid", "doc_id", "docno", "passage_id", "psg_id", "pid")
TEXTS = (
    "text", "contents", "content", "segment", "passage", "body", "paragraph_text", "passage_text"
)  # fmt: skip
TITLES = ("title", "wikipedia_title", "doc_title")


def content_id(title: str, text: str) -> str:
    """A passage id from its content, so that equal passages of different questions are one."""
    return "p" + hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:12]


def first_name(names: Iterable[str], there: Iterable[str]) -> str:
    """The first of ``names`` that is among those ``there``, in any case; empty if none is."""
    lower = {name.lower(): name for name in there}
    return next((lower[name] for name in names if name in lower), "")


def read_passage(
    values: Mapping[str, Any], where: str, named: bool = True
) -> tuple[Passage, set[str]]:
    """The passage that a record holds, and the fields that were read.

    An id may be an integer. A passage may lack its text where it has a title.

    Args:
      named: records of this file have ids; else passages are named by their content.

    Raises:
      InputError: there is no id, or neither text nor title, or one of them is no text.
    """
    id_name, text_name, title_name = (first_name(n, values) for n in (IDS, TEXTS, TITLES))
    fields = Fields(where, dict(values))
    if not text_name and not title_name:
        raise InputError(
            f"{where}: a passage has 'id' and 'text', '_id' and 'text', or 'id' and 'contents'; "
            f"found {', '.join(map(repr, list(values)[:8]))}"
        )
    if named and (not id_name or values[id_name] is None):
        raise InputError(f"{where}: field 'id' is missing{nearest('id', values)}")
    title = fields.string(title_name, default="", blank=True) if title_name else ""
    text = fields.string(text_name, default="", blank=True) if text_name else ""
    if text_name.lower() == "contents":
        title, text = titled(title, text)
    if not named:
        return Passage(_content_id(title, text, where), text, title), {text_name, title_name}
    if isinstance(values[id_name], str) and not values[id_name].strip():
        raise fields.fail(id_name, "must not be empty")
    name = identity(values[id_name], where, id_name)
    return Passage(name, text, title), {id_name, text_name, title_name}


def _content_id(title: str, text: str, where: str) -> str:
    try:
        return content_id(title, text)
    except UnicodeEncodeError:
        raise InputError(f"{where}: holds half of a surrogate pair, no character") from None


def titled(title: str, contents: str) -> tuple[str, str]:
    """Title and text of ``contents``, whose first of several lines is the title.

    FlashRAG writes the title in quotes there, Pyserini without. Where the record has a title of its
    own, a first line that is another is text.
    """
    first, newline, text = contents.partition("\n")
    if not newline:
        return title, contents
    named = unquoted(first.strip())
    if title.strip():
        return (title, text) if named == title.strip() else (title, contents)
    return named, text


def unquoted(title: str) -> str:
    """A title without the quotes around all of it; those of two quoted names stay."""
    inner = title[1:-1]
    if len(title) < 2 or not title[0] == title[-1] == '"':
        return title
    # The first quote within opens one: else the outer ones belong to two names.
    opening = re.search(r'"', inner)
    if opening and opening.start() and not re.match(r"[\s(\[]", inner[opening.start() - 1]):
        return title
    return inner
