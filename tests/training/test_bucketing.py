"""Length bucketing: windows of steps, padded lengths, and which bucket a step falls into."""

from __future__ import annotations

import itertools
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dynarag_jax.errors import InputError
from dynarag_jax.training.bucketing import (
    BucketedStream,
    LengthBuckets,
    choose_buckets,
    dealt,
    window_of,
)

# ---------------------------------------------------------------------------- windows


@given(size=st.integers(1, 200), batch=st.integers(1, 40), length=st.integers(1, 20))
@settings(max_examples=100)
def test_windows_cut_the_steps_into_pieces_that_end_with_the_epochs(size, batch, length):
    step, ends = 0, set()
    while step < 60:
        window = window_of(step, size, batch, length)
        assert window.start == step and 1 <= len(window) <= length
        assert all(window_of(s, size, batch, length) == window for s in window)
        step = window.stop
        ends.add(step)
    for epoch in range(1, 5):
        end = -(-epoch * size // batch)  # the step that reads the epoch's last example is over
        assert end > 60 or end in ends


# ---------------------------------------------------------------------------- padded lengths


@given(
    lengths=st.lists(
        st.lists(st.integers(1, 100), min_size=1, max_size=30), min_size=1, max_size=2
    ),
    buckets=st.integers(1, 4),
)
@settings(max_examples=60)
def test_chosen_lengths_pad_least_among_all_choices(lengths, buckets):
    samples, limits = [np.array(x) for x in lengths], [104] * len(lengths)
    batches = [3, 5][: len(lengths)]
    grid = 8
    chosen = choose_buckets(samples, batches, limits, buckets, grid)
    # By hand: the quantile that grid place j reaches, rounded up to a multiple of 8.
    tops = [
        [-(-sorted(s)[-(-j * len(s) // grid) - 1] // 8) * 8 for j in range(1, grid + 1)]
        for s in samples
    ]

    def padded(ends):
        begin, total = 0, 0
        for end in ends:
            total += (end - begin) * sum(b * t[end - 1] for b, t in zip(batches, tops, strict=True))
            begin = end
        return total

    every = [
        (*cuts, grid) for n in range(buckets) for cuts in itertools.combinations(range(1, grid), n)
    ]
    least = min(map(padded, every))
    fitting = [
        ends
        for ends in every
        if all(
            of[: len(ends)] == tuple(t[e - 1] for e in ends)
            for of, t in zip(chosen, tops, strict=True)
        )
    ]
    assert least == min(map(padded, fitting))
    for of in chosen:
        assert of[-1] == 104 and len(of) <= buckets + 1
        assert list(of) == sorted(of)


# ---------------------------------------------------------------------------- bucketing


def bucketing(buckets: int = 3, seed: int = 0, last: int = 60) -> tuple[LengthBuckets, dict]:
    rng = np.random.default_rng(7)
    # Long and short, and a few far beyond the others.
    lengths = {
        "lists": np.minimum(rng.geometric(0.02, 300) + 30, 400),
        "answers": rng.integers(5, 60, 170),
    }
    streams = {
        "lists": BucketedStream(300, 8, 400, lambda p: int(lengths["lists"][p % 300])),
        "answers": BucketedStream(170, 4, 64, lambda p: int(lengths["answers"][p % 170])),
    }
    return LengthBuckets(streams, buckets, seed, last), lengths


def read(groups: LengthBuckets, steps) -> dict:
    return {
        s: (groups.bucket(s), *(groups.positions(n, s).tolist() for n in groups.lengths))
        for s in steps
    }


def test_a_step_alone_says_what_it_reads():
    whole = read(bucketing()[0], range(60))
    shuffled = np.random.default_rng(0).permutation(60).tolist()
    assert read(bucketing()[0], shuffled) == whole
    assert read(bucketing()[0], range(37, 60)) == {s: whole[s] for s in range(37, 60)}
    # The steps that are asked for do not decide what they are.
    assert read(bucketing(last=40)[0], range(40)) == {s: whole[s] for s in range(40)}
    assert read(bucketing(seed=1)[0], range(60)) != whole


def test_an_epoch_reads_every_example_once_and_pads_within_its_length():
    groups, lengths = bucketing()
    for name, size, batch in (("lists", 300, 8), ("answers", 170, 4)):
        steps = range(-(-size // batch))
        seen = Counter(int(p) for s in steps for p in groups.positions(name, s))
        assert all(seen[p] == 1 for p in range(size))
        real = padded = 0
        for step in steps:
            most = groups.lengths[name][groups.bucket(step)]
            rows = lengths[name][groups.positions(name, step) % size]
            assert rows.max() <= most
            real, padded = real + rows.sum(), padded + most * batch
        fixed = groups.lengths[name][-1] * batch * len(steps)
        # At most half of the padding that one length for all would have.
        assert padded - real < 0.5 * (fixed - real)


def test_the_streams_share_their_buckets():
    """Both are long in the same steps, so that a few compiled programs serve all of them."""
    groups, _ = bucketing()
    buckets = [groups.bucket(s) for s in range(37)]
    assert set(buckets) <= set(range(4))
    alone = LengthBuckets({"lists": groups._streams["lists"]}, 3, 0, 60)
    waste = sum(
        groups.lengths["lists"][groups.bucket(s)] - groups.lengths["lists"][
            int(np.searchsorted(groups.lengths["lists"], groups._plan("lists", s)[1]))
        ]
        for s in range(37)
    )  # fmt: skip
    padded = sum(groups.lengths["lists"][bucket] for bucket in buckets)
    assert waste < 0.15 * padded
    assert [alone.positions("lists", s).tolist() for s in range(37)] == [
        groups.positions("lists", s).tolist() for s in range(37)
    ]
    # Steps are not in the order of their lengths: that would be a curriculum.
    assert buckets != sorted(buckets) and buckets != sorted(buckets, reverse=True)


@given(st.lists(st.integers(0, 500), min_size=4, max_size=4))
def test_examples_are_dealt_to_two_groups_as_evenly_as_can_be(lengths):
    groups = ((0, 2), (1, 3))
    rows, most = dealt(np.array(lengths), groups)
    assert sorted(rows) == [0, 1, 2, 3]
    sums = [sum(lengths[rows[place]] for place in places) for places in groups]
    assert most == max(sums)
    # Whose partner the first one is decides all.
    pairs = [lengths[0] + lengths[i] for i in (1, 2, 3)]
    assert most == min(max(pair, sum(lengths) - pair) for pair in pairs)


def test_rows_that_share_a_length_are_read_in_order():
    """And not by length: a batch holds what comes, in groups of like sums."""
    lengths = np.random.default_rng(7).integers(30, 400, 320)
    groups = ((0, 2, 4, 6), (1, 3, 5, 7))

    def measure(position: int) -> int:
        return int(lengths[position % 320])

    stream = BucketedStream(320, 8, 4 * 400, measure, groups=groups)
    read = LengthBuckets({"x": stream}, 4, 0, 80)
    real = padded = alone = 0
    for step in range(80):
        positions = read.positions("x", step)
        assert sorted(positions) == list(range(8 * step, 8 * step + 8))
        most = read.lengths["x"][read.bucket(step)]
        sums = [lengths[positions[list(rows)] % 320].sum() for rows in groups]
        assert max(sums) <= most
        real, padded = real + sum(sums), padded + 2 * most
        alone += 8 * lengths[positions % 320].max()
    # Four together are of like lengths, whatever each has: a third of the padding and less.
    assert padded - real < (alone - real) / 3


def test_one_bucket_reads_in_order_and_measures_nothing():
    def measure(position: int) -> int:
        raise AssertionError("measured")

    groups = LengthBuckets({"x": BucketedStream(10, 4, 99, measure)}, 1, 0, 9)
    assert groups.positions("x", 3).tolist() == [12, 13, 14, 15]
    assert groups.bucket(3) == 0 and groups.lengths == {"x": (99,)}


def test_a_broken_record_is_reported_by_the_step_that_reads_its_window():
    def measure(position: int) -> int:
        if position == 4 * 20 + 1:
            raise InputError("question 'q' has no passages")
        return 1 + position % 50

    # Not among the sampled ones.
    groups = LengthBuckets({"x": BucketedStream(100_000, 4, 64, measure)}, 3, 0, 100)
    assert groups.bucket(0) >= 0 and groups.bucket(15) >= 0
    with pytest.raises(InputError, match="question 'q' has no passages"):
        groups.bucket(16)
