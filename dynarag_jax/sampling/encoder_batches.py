"""Which questions an encoder policy reads together, and in what shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dynarag_jax.models.packed import Room
from dynarag_jax.policy.encoder_policy import EncoderPolicyConfig
from dynarag_jax.policy.pair_tokens import QuestionPairs, padded_count, padded_pieces

POSITIONS = 1 << 16
"""Word pieces that a CPU encodes at once: what stays of them is small."""

POSITIONS_ACCELERATOR = 1 << 19
"""Word pieces that an accelerator encodes at once, some gigabytes of hidden states."""

TOGETHER = 1 << 12
"""Word pieces without padding that a CPU core reads at once at most: its products gain no more."""

TOGETHER_AGAIN = 1 << 10
"""The same where each step reads again: a question that is done waits for those beside it."""


class BatchOf(NamedTuple):
    """Places of questions that share a batch, in its first rows.

    Attributes:
      rows: of the batch; the last question stands in those that are left over.
      candidates, pieces: that they are padded to.
      room: where word pieces are computed without padding between pairs; else None.
    """

    places: list[int]
    rows: int
    candidates: int
    pieces: int
    room: Room | None = None


def padded_batches(
    cfg: EncoderPolicyConfig, pairs: Sequence[QuestionPairs], lists: int, batch: int, shards: int,
    coarse: bool,
) -> Iterator[BatchOf]:  # fmt: skip
    """Questions of like numbers of candidates and like lengths, ``batch`` at most.

    Args:
      coarse: pad to few shapes.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, one in enumerate(pairs):
        pieces = cfg.pieces if coarse else padded_pieces(one.longest, cfg.pieces)
        groups.setdefault((padded_count(one.count, coarse), pieces), []).append(place)
    for (n, t), places in sorted(groups.items()):
        most = POSITIONS_ACCELERATOR if coarse else POSITIONS
        rows = max(1, min(batch, most // (n * t * _readings(cfg, lists))))
        if not coarse:
            # Few questions do not wait for the padding of many.
            rows = min(rows, 1 << (len(places) - 1).bit_length())
        rows = -(-rows // shards) * shards
        for at in range(0, len(places), rows):
            yield BatchOf(places[at : at + rows], rows, n, t)


def packed_batches(
    cfg: EncoderPolicyConfig, pairs: Sequence[QuestionPairs], lists: int, batch: int, shards: int
) -> Iterator[BatchOf]:
    """Questions of like numbers of word pieces, with room for these.

    A room is one of four sizes an octave, so that few programs serve all questions.
    """
    sizes = [one.word_pieces((), 0, cfg.pieces) for one in pairs]
    groups: dict[int, list[int]] = {}
    for place in sorted(range(len(pairs)), key=sizes.__getitem__):
        groups.setdefault(padded_count(pairs[place].count, coarse=True), []).append(place)
    together = TOGETHER_AGAIN if cfg.reencode else TOGETHER
    together = min(together, POSITIONS // _readings(cfg, lists))
    for n, places in sorted(groups.items()):
        at = 0
        while at < len(places):
            each = 1  # questions of one device
            while (
                2 * each * shards <= batch
                and at + each * shards < len(places)
                and 2 * each * sizes[_at(places, at + 2 * each * shards - 1)] <= together
            ):
                each *= 2
            rows = each * shards
            # The last of them are the longest, and stand in the rows that are left over.
            longest = each * sizes[_at(places, at + rows - 1)]
            inserted = each * n * (cfg.reencode + 1) if cfg.reencode else 0
            room = Room(each, _roomy(longest), inserted)
            yield BatchOf(places[at : at + rows], rows, n, cfg.pieces, room)
            at += rows


def _readings(cfg: EncoderPolicyConfig, lists: int) -> int:
    """Readings of its candidates that a question is given room for at once."""
    return lists * (cfg.max_list + 1) if cfg.reencode else 1


def _at(places: Sequence[int], index: int) -> int:
    return places[min(index, len(places) - 1)]


def _roomy(positions: int) -> int:
    """The next of four sizes an octave."""
    step = max(16, (1 << max(positions - 1, 1).bit_length()) // 8)
    return -(-positions // step) * step
