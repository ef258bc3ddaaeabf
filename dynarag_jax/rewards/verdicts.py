"""What a judge wrote, as a score: the forms that judges use, and nothing that must be guessed.

A number is a score only where the text says so: it is all there is, or it is behind a label
("Score: 8/10"), or the value of ``"score"`` in a JSON object. Prose, numbers beyond the scale and
texts that name two different scores are refused with a reason; no score is ever invented.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from dynarag_jax.replies import read_reply

SCALES = (5.0, 10.0, 100.0)
"""Full marks that a judge may state itself ("8/10"), besides those of the declared scale."""


@dataclass(frozen=True)
class Verdict:
    """A score in [0, 1], or None and the reason."""

    score: float | None
    reason: str = ""


_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_GRADE = re.compile(
    rf"(?P<value>{_NUMBER})(?![0-9])(?!\.[0-9])[ \t]*"
    rf"(?:(?:/|out\s+of)[ \t]*(?P<full>{_NUMBER})(?![0-9/])|(?P<percent>%|percent\b))?"
    r"(?:[ \t]*(?:points?|pts?|marks?)\b)?",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?<!\w)(?P<total>(?:total|final|overall)\s+)?(?:score|rating|grade|points)"
    r"(?:\s+is)?\s*[:=]?\s*",
    re.IGNORECASE,
)


def parse_verdict(text: str, lowest: float = 0.0, highest: float = 100.0) -> Verdict:
    """Read a judge's reply.

    Accepted, on a scale from 0 to 100: ``92.5``, ``Score: 92.5``, ``85/100``, ``8 out of 10``,
    ``Final score: **8/10**``, ``90 %``, ``{"score": 85}``, each with an explanation before a label
    or beside the JSON, and behind a thought.

    Args:
      lowest, highest: the declared scale; a bare number is read on it.

    Returns:
      The score, (value - lowest) / (highest - lowest), or value / full where the text states its
      own full marks; None with the reason where the text is anything else.
    """
    reply = read_reply(text)
    if reply.missing:
        return Verdict(None, reply.missing)
    text = reply.text
    objects = _objects(text)
    if objects:
        wanted = ("score", "rating")
        named = [v for o in objects for k, v in o.items() if k.strip().lower() in wanted]
        return _agreed(
            [_value(value, lowest, highest) for value in named], "no 'score' in the JSON"
        )
    plain = re.sub(r"[*_`#]", "", text).strip()
    if whole := _GRADE.fullmatch(plain.rstrip(". \n")):
        return _grade(whole, lowest, highest)
    verdicts: list[tuple[bool, Verdict]] = []
    for label in _LABEL.finditer(plain):
        grade = _GRADE.match(plain, label.end())
        if grade is None:
            continue
        rest = re.split(r"\n|(?<=[.;])\s", plain[grade.end() :], maxsplit=1)[0]
        clear = not re.search(r"[0-9]", rest) and not re.match(r"\s*[-–—/,]\s*[0-9]", rest)
        verdict = (
            _grade(grade, lowest, highest)
            if clear and not re.match(r"\w", rest)
            else Verdict(
                None, f"more than a number behind a label: {_short(plain[label.start() :])}"
            )
        )
        verdicts.append((bool(label["total"]), verdict))
    totals = [verdict for total, verdict in verdicts if total]
    return _agreed(totals or [verdict for _, verdict in verdicts], f"no score: {_short(plain)}")


def _objects(text: str) -> list[dict[str, object]]:
    """The JSON objects in a text, outermost ones."""
    found, at, decoder = [], text.find("{"), json.JSONDecoder()
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found += [value] if isinstance(value, dict) else []
        at = text.find("{", end)
    return found


def _value(value: object, lowest: float, highest: float) -> Verdict:
    """The value of a JSON field."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return Verdict(None, f"the JSON score is no number: {_short(repr(value))}")
    grade = _GRADE.fullmatch(str(value).strip())
    if grade is None:
        return Verdict(None, f"the JSON score is no number: {_short(repr(value))}")
    return _grade(grade, lowest, highest)


def _grade(match: re.Match[str], lowest: float, highest: float) -> Verdict:
    value = float(match["value"])
    low, high = lowest, highest
    if match["percent"]:
        low, high = 0.0, 100.0
    elif match["full"]:
        full = float(match["full"])
        if full != highest:
            if full not in SCALES:
                return Verdict(None, f"full marks of {full:g} are none that were asked for")
            low, high = 0.0, full
    if not low <= value <= high:
        return Verdict(None, f"{value:g} is outside the scale from {low:g} to {high:g}")
    return Verdict((value - low) / (high - low))


def _agreed(verdicts: list[Verdict], without: str) -> Verdict:
    """The one score of all, or why there is none."""
    if not verdicts:
        return Verdict(None, without)
    for verdict in verdicts:
        if verdict.score is None:
            return verdict
    if len({verdict.score for verdict in verdicts}) > 1:
        scores = ", ".join(f"{verdict.score:g}" for verdict in verdicts)
        return Verdict(None, f"several scores: {scores} of 1")
    return verdicts[0]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 60 else flat[:57] + "...")
