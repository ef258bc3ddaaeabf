"""How a tokenizer spells lists: the pieces of the grammar as tokens, found and read back.

A list is ``None``, or ids ``[i]`` joined by ``, ``, each 1..n and none twice, then end of text.
``find_spelling`` finds how ids and separators come out as tokens of any tokenizer, and checks that
the pieces put together are the tokens of the whole text.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynarag_jax.errors import InputError
from dynarag_jax.policy.thoughts import ThoughtSpelling
from dynarag_jax.prompts import ChatTokenizer, format_list
from dynarag_jax.records import valid_list


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer spells lists: ``opening id (between id)* closing end``, or ``none end``.

    For ``[3], [1]`` in single characters: opening ``[``, ids ``3`` and ``1``, between ``], [`` and
    closing ``]``. Any of opening and closing may be empty.

    Where the policy thinks, a thought stands before the list; ``thought`` says how it is spelled.
    """

    opening: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    between: tuple[int, ...]
    closing: tuple[int, ...]
    none: tuple[int, ...]
    end: int
    thought: ThoughtSpelling | None = None

    def spell(self, ids: Sequence[int], thought: Sequence[int] = ()) -> list[int]:
        """Tokens of a list of 1-based ids, end of text included.

        Args:
          thought: tokens before it, with what closes them.
        """
        if not ids:
            return [*thought, *self.none, self.end]
        joined = [*thought, *self.opening]
        for place, i in enumerate(ids):
            joined += (self.between if place else ()) + self.ids[i - 1]
        return [*joined, *self.closing, self.end]

    def step_ends(self, ids: Sequence[int], before: int = 0) -> list[int]:
        """The places of the last tokens of a list's steps, that of ending it the last.

        Args:
          before: tokens of the thought before it.
        """
        if not ids:
            return [before + len(self.none)]
        ends, at = [], before + len(self.opening)
        for place, i in enumerate(ids):
            at += (len(self.between) if place else 0) + len(self.ids[i - 1])
            ends.append(at - 1)
        return [*ends, at + len(self.closing)]

    def deciding(self, ids: Sequence[int], before: int = 0) -> list[int]:
        """The places of the tokens that say whether a list goes on or ends, one run a step.

        The first step has none where a list begins with its first id's own tokens.

        Args:
          before: tokens of the thought before it.
        """
        ends = self.step_ends(ids, before)
        first = len(self.opening) if ids else len(self.none) + 1
        if not self.opening:
            first = 0
        places = list(range(before, before + first))
        for end, following in itertools.pairwise(ends):
            size = following - end if following == ends[-1] else len(self.between)
            places += range(end + 1, end + 1 + size)
        return places

    def longest(self, max_ids: int) -> int:
        """Most tokens that a list of at most ``max_ids`` ids takes, thought and end included."""
        count = min(max_ids, len(self.ids))
        ids = sum(sorted(map(len, self.ids))[-count:]) + (count - 1) * len(self.between)
        before = self.thought.longest if self.thought else 0
        return before + max(len(self.opening) + ids + len(self.closing), len(self.none)) + 1

    @functools.cached_property
    def place(self) -> dict[tuple[int, ...], int]:
        """The 1-based id of each spelling."""
        return {spelled: i for i, spelled in enumerate(self.ids, 1)}

    @functools.cached_property
    def longest_id(self) -> int:
        """Most tokens that one id takes."""
        return max(map(len, self.ids))


def plain_spelling(ids: int) -> Spelling:
    """Lists of which each id, comma and bracket is one token of its own: for shapes alone."""
    tokens = tuple((10 + i,) for i in range(ids))
    return Spelling(opening=(3,), ids=tokens, between=(4, 5, 3), closing=(4,), none=(6,), end=7)


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common prefix."""
    columns = itertools.takewhile(lambda c: len(set(c)) == 1, zip(*sequences, strict=False))
    return sum(1 for _ in columns)


def find_spelling(tokenizer: ChatTokenizer, ids: int) -> Spelling:
    """Find how ``tokenizer`` spells lists over ids 1..``ids``.

    The pieces are read off the tokens of whole lists, so that a constrained sample has the very
    tokens the tokenizer gives for its text. Where a tokenizer merges across pieces in a way that
    depends on the neighboring ids, each piece is encoded alone instead: another, equally valid
    spelling of the same text, up to spaces.

    Raises:
      InputError: the tokenizer has no end-of-text token, or cannot spell lists at all.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no end-of-text token; set its eos_token")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    none = encode("None")
    single = [encode(format_list([i])) for i in range(1, ids + 1)]
    for find in (_whole_spelling, _piecewise_spelling):
        spelling = find(encode, single, none, end)
        if spelling and _spells(tokenizer, spelling, ids):
            return spelling
    raise InputError(
        "the tokenizer cannot spell lists such as '[3], [1]': digits, brackets or 'None' are "
        "missing from its vocabulary, or are not restored when decoding"
    )


Tokens = tuple[int, ...]


def _bare(single: list[Tokens]) -> tuple[Tokens, tuple[Tokens, ...], Tokens]:
    """Split the spellings of ``[1]``, ``[2]``, ... into their common beginning, ids, common end."""
    if len(single) < 2:
        return (), tuple(single), ()
    opening = _common(single)
    rest = [s[opening:] for s in single]
    closing = _common([s[::-1] for s in rest])
    bodies = tuple(s[: len(s) - closing] for s in rest)
    if not all(bodies):
        return (), tuple(single), ()
    return single[0][:opening], bodies, rest[0][len(rest[0]) - closing :]


def _whole_spelling(
    encode: Callable[[str], Tokens], single: list[Tokens], none: Tokens, end: int
) -> Spelling | None:
    if len(single) < 2:
        return None
    prefix, bodies, suffix = _bare(single)
    pair = encode(format_list([1, 2]))
    start, stop = len(prefix + bodies[0]), len(pair) - len(bodies[1] + suffix)
    spelling = Spelling(prefix, bodies, pair[start:stop], suffix, none, end)
    n = len(single)
    probes = [[i, j] for i in range(1, n + 1) for j in {1 + i % n, 1 + (i * 7 + 3) % n} - {i}]
    probes += [list(range(1, n + 1))]
    agrees = all((*encode(format_list(p)), end) == tuple(spelling.spell(p)) for p in probes)
    return spelling if agrees and spelling.between else None


def _piecewise_spelling(
    encode: Callable[[str], Tokens], single: list[Tokens], none: Tokens, end: int
) -> Spelling | None:
    between = encode(", ")
    prefix, bodies, suffix = _bare(single)
    return Spelling(prefix, bodies, suffix + between + prefix, suffix, none, end)


def _spells(tokenizer: ChatTokenizer, spelling: Spelling, ids: int) -> bool:
    """Whether decoding the spelled tokens gives the text back, up to spaces."""
    if not spelling.none or len(set(spelling.ids)) != len(spelling.ids):
        return False
    squeeze = str.maketrans("", "", " ")
    for probe in ([], [1], [ids], list(range(1, ids + 1)), list(range(ids, 0, -1))):
        text = tokenizer.decode(spelling.spell(probe)[:-1])
        if text.translate(squeeze) != format_list(probe).translate(squeeze):
            return False
    return True


def read_list(spelling: Spelling, tokens: Sequence[int]) -> tuple[int, ...]:
    """The 1-based ids of a list that ``Spelling.spell`` or the sampler wrote; drops padding.

    A thought before it is left out.

    Raises:
      ValueError: the tokens are no list of this spelling.
    """
    tokens = list(tokens)
    if spelling.thought:
        tokens = tokens[spelling.thought.split(tokens)[0] :]
    if spelling.end not in tokens:
        raise ValueError(f"a list without its end: {tokens}")
    tokens = tokens[: tokens.index(spelling.end) + 1]
    if tokens == spelling.spell(()):
        return ()
    body = tokens[len(spelling.opening) : len(tokens) - 1 - len(spelling.closing)]
    place, between = spelling.place, spelling.between
    ids: list[int] = []
    while body:
        # The separator ends an id: the id is the spelling that the separator or nothing follows.
        for size in range(min(len(body), spelling.longest_id), 0, -1):
            if (spelled := tuple(body[:size])) not in place:
                continue
            rest = body[size:]
            if not rest or tuple(rest[: len(between)]) == between:
                ids.append(place[spelled])
                body = rest[len(between) :]
                break
        else:
            raise ValueError(f"not a list of this spelling: {tokens}")
    if spelling.spell(ids) != tokens or valid_list(ids, len(spelling.ids)):
        raise ValueError(f"not a list of this spelling: {tokens}")
    return tuple(ids)
