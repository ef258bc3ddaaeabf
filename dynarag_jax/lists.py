"""A list as text: how it is written, and how it is read, strictly or leniently.

The grammar is ``[3], [1]`` or ``None``. Text of elsewhere (a server, an old file) is read by what
people and models write for it, every repair counted; what is cut off or could mean two lists is
unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynarag_jax.records import valid_list
from dynarag_jax.replies import read_reply


def format_list(ids: Sequence[int]) -> str:
    """``[3], [1]``, or ``None`` for the empty list."""
    return ", ".join(f"[{i}]" for i in ids) or "None"


_STRICT = re.compile(r"None|\[[1-9][0-9]*\](?:, \[[1-9][0-9]*\])*")


def parse_list(text: str, n: int) -> tuple[int, ...]:
    """Read a list that follows the grammar exactly; the inverse of ``format_list``.

    Raises:
      ValueError: the text is not in the grammar, an id is outside 1..n, or one repeats.
    """
    text = text.strip()
    if not _STRICT.fullmatch(text):
        raise ValueError(f"not a list: {text!r}")
    ids = tuple(int(i) for i in re.findall(r"[0-9]+", text))
    if wrong := valid_list(ids, n):
        raise ValueError(f"the list {text!r} {wrong}")
    return ids


@dataclass(frozen=True)
class Repairs:
    """What a lenient parse had to mend, by kind; all zero exactly for a list in the grammar."""

    out_of_range: int = 0
    """ids outside 1..n, dropped"""
    repeated: int = 0
    """ids written before, dropped"""
    unbracketed: int = 0
    """ids without brackets of their own, kept"""
    extra_text: int = 0
    """1 where other words stood beside the list"""
    unreadable: int = 0
    """1 where there is no list, or more than one that could be meant, or it is cut off"""
    spacing: int = 0
    """1 where nothing but spaces, separators or capitals differ from the grammar"""
    thought: int = 0
    """1 where a thought before the list was taken off"""

    def __bool__(self) -> bool:
        return any(vars(self).values())


@dataclass(frozen=True)
class _Run:
    """Ids with nothing but separators between them.

    Attributes:
      ids: as written; ``own`` of them in brackets of their own.
      marked: whether brackets or words such as "passage" say that these are ids.
      named: whether such words stand there.
      cued: whether "Answer:" or the like stands before.
      whole: whether it makes up its lines alone.
      broken: whether it cannot be read: an open bracket, a separator at the text's end, a range,
        an alternative behind it, ids in brackets beside others.
    """

    ids: tuple[int, ...]
    own: int
    marked: bool
    named: bool
    cued: bool
    whole: bool
    broken: bool


_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)+|(?:(?<![\w\])])-)?\d+)"
    r"|(?P<open>\[)|(?P<close>\])"
    r"|(?P<noun>\b(?:passages?|documents?|docs?|ids?|numbers?|nos?|nr)\b\.?|[#№])"
    r"|(?P<none>\b(?:none|null)\b)"
    r"|(?P<join>[,;>|&→=\-–—/()\"']|\b(?:and|then)\b)"
    r"|(?P<space>\s+)|(?P<word>\w+|.)",
    re.IGNORECASE | re.DOTALL,
)
_CUE = re.compile(
    r"\b(?:answer|ranking|rank|order|list|result|output|selection|selected|choice|response"
    r"|passages|documents|ids|numbers)\b[ \t]*(?:[a-z]+[ \t]+){0,3}?(?::|\bis\b|\bare\b)\s*:?\s*\Z",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:no|not|none|neither|nor|without|except|excluding|unless|but|however|instead|rather"
    r"|irrelevant|unrelated|useless|unhelpful|maybe|perhaps|or)\b|n't\b|\boff[- ]topic\b",
    re.IGNORECASE,
)
_ENUMERATED = re.compile(r"\s*(\d+)[.):]\s+(?=\D*\d)(.*)")


def _runs(text: str) -> Iterator[_Run]:
    """The runs of ids in a text, in order, in one pass over its tokens."""
    tokens = list(_TOKEN.finditer(text))
    at = 0
    while at < len(tokens):
        if tokens[at].lastgroup in ("word", "space", "none", "join"):
            at += 1
            continue
        end = at
        while end < len(tokens) and tokens[end].lastgroup not in ("word", "none"):
            end += 1
        last = end
        # Separators and nouns behind the last id belong to the words that follow.
        while last > at and tokens[last - 1].lastgroup in ("space", "join", "noun"):
            last -= 1
        if last > at:
            yield from _run(text, tokens[at:last], end == len(tokens))
        at = max(end, at + 1)


def _run(text: str, tokens: list[re.Match[str]], final: bool) -> Iterator[_Run]:
    numbers = [t for t in tokens if t.lastgroup == "number"]
    opens = sum(t.lastgroup == "open" for t in tokens)
    start, stop = tokens[0].start(), tokens[-1].end()
    rest = text[stop:].strip(" \t\n.\"')`*") if final else ""
    empty = re.fullmatch(r"\[\s*\]", text[start:stop]) is not None
    if not numbers and not empty and not (opens and final):
        return
    # Python refuses to read numbers of thousands of digits; these are far outside any range.
    ids = tuple(int(t[0][:18]) if "." not in t[0] else 0 for t in numbers)
    brackets = len(re.findall(r"\[[^\[\],]*?\d[^\[\],\d]*\]", text[start:stop]))
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", stop)
    around = text[line_start:start] + text[stop : len(text) if line_end < 0 else line_end]
    yield _Run(
        ids=ids,
        own=brackets,
        marked=opens > 0 or any(t.lastgroup == "noun" for t in tokens),
        named=any(t.lastgroup == "noun" for t in tokens),
        cued=_CUE.search(text[max(0, start - 80) : start]) is not None,
        whole=not around.strip(" \t.\"'()-"),
        broken=(
            opens != sum(t.lastgroup == "close" for t in tokens)
            or bool(rest)
            or any("." in t[0] for t in numbers)
            or _range(text[start:stop])
            or re.match(r"\W*\bor\b", text[stop : stop + 20], re.IGNORECASE) is not None
            or 0 < _inside(tokens) < len(numbers)
        ),
    )


def _inside(tokens: list[re.Match[str]]) -> int:
    """How many ids stand in brackets."""
    depth = count = 0
    for token in tokens:
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        count += token.lastgroup == "number" and depth > 0
    return count


def _range(text: str) -> bool:
    """Whether two ids with a dash between them could mean all from the one to the other."""
    for chain in re.findall(r"\d+(?:[\])]?(?:[-–—]\s*|\s+[-–—]\s+)[\[(]?\d+)+", text):
        ends = [int(i[:18]) for i in re.findall(r"\d+", chain)]
        if len(ends) == 2 and ends[1] > ends[0] + 1:
            return True
    return False


def _without_numbering(text: str) -> str:
    """Lines numbered 1, 2, ... without their numbers, where another id stands in each."""
    lines = [line for line in text.split("\n") if line.strip()]
    matches = [_ENUMERATED.fullmatch(line) for line in lines]
    numbered = [m and m[1] for m in matches] == [str(i + 1) for i in range(len(lines))]
    if numbered and (len(lines) > 1 or "[" in text):
        return "\n".join(m[2] for m in matches if m)
    return text


def _choose(text: str) -> tuple[_Run | None, bool]:
    """The one run that is meant, if any; and whether ``None`` is."""
    runs = list(_runs(text))
    nothing = re.search(r"\b(?:none|null)\b", text, re.IGNORECASE) is not None
    alone = (
        re.search(r"^[\W_]*(?:none|null)[\W_]*$", text, re.IGNORECASE | re.MULTILINE) is not None
    )
    bare = not re.search(r"[^\W\d]", re.sub(r"\b(?:and|then)\b", "", text, flags=re.IGNORECASE))
    marked = [run for run in runs if run.marked]
    candidates = marked or [run for run in runs if run.cued or bare]
    if nothing and not candidates:
        return None, True
    sure = [
        [run for run in candidates if run.cued],
        [run for run in candidates if run.whole and (run.marked or bare)],
    ]
    for group in sure:
        if len({run.ids for run in group}) == 1:
            return (None, False) if nothing and alone else (group[-1], False)
    if alone and not any(sure):
        return None, True
    if nothing or len({run.ids for run in candidates}) != 1 or _DENIES.search(text):
        return None, False
    return candidates[-1], False


def parse_list_leniently(text: str, n: int) -> tuple[tuple[int, ...], Repairs]:
    """Read a list from text of elsewhere (another server, old files), counting every repair.

    A thought before it is taken off. Ids outside 1..n (0 among them) and repeats are dropped. Read
    are ids in brackets, one or several each; behind words such as "Passage"; without either behind
    a cue such as "Answer:", or where the text holds nothing else. Words beside the ids are
    ignored, unless they deny something or stand between ids. Text without ids or ``None``, with
    several lists, or cut off is unreadable and gives the empty list.
    """
    try:
        return parse_list(text, n), Repairs()
    except ValueError:
        pass
    reply = read_reply(text)
    thought = int(bool(reply.thought))
    plain = re.sub(r"```[a-z]*\n?|[*`_]", "", reply.text, flags=re.IGNORECASE)
    plain = _without_numbering(plain).strip()
    run, none = _choose(plain)
    if run is None or run.broken:
        left = re.sub(r"\b(?:none|null)\b" if none else r"(?!)", "", plain, flags=re.IGNORECASE)
        words = int(re.search(r"\w", left) is not None)
        repairs = Repairs(extra_text=words, unreadable=int(not none), thought=thought)
        return (), repairs or Repairs(spacing=1)
    kept: list[int] = []
    out_of_range = repeated = 0
    for i in run.ids:
        if not 1 <= i <= n:
            out_of_range += 1
        elif i in kept:
            repeated += 1
        else:
            kept.append(i)
    words = re.sub(r"\b(?:and|then)\b|-?\d+", "", plain, flags=re.IGNORECASE)
    repairs = Repairs(
        out_of_range=out_of_range,
        repeated=repeated,
        unbracketed=len(run.ids) - min(run.own, len(run.ids)),
        extra_text=int(re.search(r"\w", words) is not None),
        thought=thought,
    )
    return tuple(kept), repairs or Repairs(spacing=1)
