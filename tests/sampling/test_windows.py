"""Windows over many candidates: everything is seen, nothing is repeated, right stays right."""

from __future__ import annotations

import itertools
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dynarag_jax.errors import InputError
from dynarag_jax.sampling.windows import Seen, Windows, cover, plan, run_plans


def most_calls(n: int, windows: Windows) -> int:
    """A bound on the windows read for ``n`` candidates whose prompts show all of a window."""
    stride = windows.stride or windows.window
    # Rounds halve the survivors; a merge removes a passage a call, on each of its levels.
    first = -(-n // stride) + 1
    return 2 * first + n.bit_length() + n * (first.bit_length() + 1)


def drive(n, windows, rerank):
    """Run one plan with ``rerank(view) -> Seen``: the list, the views, how many batches."""
    going, views, batches = plan(n, windows), [], 0
    try:
        ask = next(going)
        while True:
            batches += 1
            views += ask
            assert len(views) <= 10 * most_calls(n, windows), "no end in sight"
            ask = going.send([rerank(view) for view in ask])
    except StopIteration as stop:
        return stop.value, views, batches


def perfect(worth, limit, shown=None):
    """A reranker that knows what each position is worth; 0 is worthless. Lists end at ``limit``."""

    def rerank(view):
        fits = len(view) if shown is None else min(shown(view), len(view))
        places = [i for i, p in enumerate(view[:fits], 1) if worth[p] > 0]
        places.sort(key=lambda i: -worth[view[i - 1]])
        return Seen(places[:limit], fits)

    return rerank


def draw_case(rng):
    n = rng.randint(*rng.choices([(0, 12), (0, 60), (100, 500)], [10, 8, 1])[0])
    window = rng.randint(2, rng.choice([4, 20, 45]))
    windows = Windows(window, rng.randint(0, window), rng.randint(1, rng.choice([3, 15, 60])))
    relevant = rng.random() ** 2
    order = rng.sample(range(1, n + 1), n)
    worth = {p: (i + 1 if rng.random() < relevant else 0) for i, p in enumerate(order)}
    return n, windows, worth


def check(n, windows, found, views):
    """What holds of every reranker."""
    assert len(set(found)) == len(found) <= windows.budget
    assert set(found) <= set(range(1, n + 1))
    assert {p for view in views for p in view} == set(range(1, n + 1))
    for view in views:
        assert 0 < len(view) <= windows.window
        assert len(set(view)) == len(view)


def test_ten_thousand_cases_end_and_a_perfect_scorer_selects_perfectly():
    rng = random.Random(0)
    for _ in range(10_000):
        n, windows, worth = draw_case(rng)
        found, views, _ = drive(n, windows, perfect(worth, windows.budget))
        check(n, windows, found, views)
        best = sorted((p for p in worth if worth[p]), key=lambda p: -worth[p])
        assert list(found) == best[: windows.budget]
        assert len(views) <= most_calls(n, windows)


def test_arbitrary_rerankers_end_with_a_valid_list():
    """Lists of any length in any order, prompts that show only a part, answers that contradict."""
    rng = random.Random(1)
    for _ in range(3_000):
        n, windows, _ = draw_case(rng)
        keep, narrow = rng.random(), rng.random() < 0.5
        seen: set[int] = set()

        def rerank(view, keep=keep, narrow=narrow, seen=seen):
            shown = rng.randint(1, len(view)) if narrow else len(view)
            seen.update(view[:shown])
            count = sum(rng.random() < keep for _ in range(shown))
            return Seen(rng.sample(range(1, shown + 1), count), shown)

        found, views, _ = drive(n, windows, rerank)
        check(n, windows, found, views)
        assert seen == set(range(1, n + 1)), "a passage was in no prompt"


@given(
    n=st.integers(0, 60), window=st.integers(2, 12), stride=st.integers(0, 12),
    budget=st.integers(1, 60), data=st.data(),
)  # fmt: skip
def test_any_perfect_scorer(n, window, stride, budget, data):
    windows = Windows(window, min(stride, window), budget)
    values = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    worth = {p: v * (n + 1) + p if v else 0 for p, v in enumerate(values, 1)}
    found, views, _ = drive(n, windows, perfect(worth, budget))
    check(n, windows, found, views)
    best = sorted((p for p in worth if worth[p]), key=lambda p: -worth[p])
    assert list(found) == best[:budget]


@settings(max_examples=50)
@given(n=st.integers(1, 500), window=st.integers(1, 50), stride=st.integers(1, 50))
def test_windows_cover_evenly(n, window, stride):
    stride = min(stride, window)
    views = cover(range(1, n + 1), window, stride)
    assert {p for view in views for p in view} == set(range(1, n + 1))
    assert all(len(view) == min(window, n) for view in views)
    steps = [b[0] - a[0] for a, b in itertools.pairwise(views)]
    assert all(0 < step <= stride for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1


def test_the_papers_setting_reads_each_passage_about_once():
    """500 candidates, windows of 40, 15 kept of each: rounds of 13, 5 or 6 and a final pass."""
    rng = random.Random(2)
    worth = {p: rng.random() if rng.random() < 0.1 else 0 for p in range(1, 501)}
    found, views, batches = drive(500, Windows(), perfect(worth, 15))
    assert list(found) == sorted((p for p in worth if worth[p]), key=lambda p: -worth[p])[:15]
    assert [len(v) for v in views[:13]] == [40] * 13
    assert len(views) <= 13 + 3
    assert batches <= 3


def test_a_windows_ids_are_not_the_candidates_ids():
    """The released code indexes the candidates with ids of a window: [1] of the third is no 1."""
    found, views, _ = drive(100, Windows(40, 0, 15), lambda view: Seen([1], len(view)))
    assert [view[0] for view in views[:3]] == [1, 31, 61]
    assert views[3] == (1, 31, 61)
    assert found == (1,)
    # Told by passage, not by place: the last candidate is found, though no window shows 40.
    found, _, _ = drive(
        100, Windows(40, 0, 15), perfect(dict.fromkeys(range(1, 101), 0) | {100: 1}, 15)
    )
    assert found == (100,)


def test_nothing_needed_and_nothing_there():
    for n in (0, 1, 30, 300):
        found, views, _ = drive(n, Windows(), lambda view: Seen([], len(view)))
        assert found == ()
        assert {p for view in views for p in view} == set(range(1, n + 1))


def test_prompts_without_room_for_a_window_lose_nothing():
    """Token limits cut a window's prompt: what it did not show is shown elsewhere."""
    worth = {p: p if p % 7 == 0 else 0 for p in range(1, 301)}
    for fits in (2, 9, 25):
        found, _, _ = drive(300, Windows(40, 20, 10), perfect(worth, 10, lambda _, f=fits: f))
        assert list(found) == [294 - 7 * i for i in range(10)]


def test_many_questions_share_batches_and_do_not_mix():
    rng = random.Random(3)
    counts = [0, 5, 40, 41, 90, 200, 500]
    worth = [{p: rng.random() * (rng.random() < 0.2) for p in range(1, n + 1)} for n in counts]
    calls = []

    def rerank(views):
        calls.append(len(views))
        return [perfect(worth[i], 15)(view) for i, view in views]

    found = run_plans(counts, Windows(), rerank)
    for known, chosen in zip(worth, found, strict=True):
        assert list(chosen) == sorted((p for p in known if known[p]), key=lambda p: -known[p])[:15]
    assert len(calls) <= 4
    assert calls[0] == 1 + 1 + 2 + 3 + 5 + 13


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"window": 1}, "window = 1 must be 2 or more"),
        ({"window": 10, "stride": 11}, r"stride = 11 must lie in 0\.\.10"),
        ({"stride": -1}, "stride = -1"),
        ({"budget": -1}, "budget = -1 must not be negative"),
    ],
)
def test_settings_without_sense_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Windows(**setting)


def test_sizes_left_open_are_the_prompts():
    assert Windows(window=0, stride=3, budget=0).within(6, 4) == Windows(6, 3, 4)
    assert Windows(5, 3, 2).within(6, 4) == Windows(5, 3, 2)
    with pytest.raises(InputError, match=r"stride = 7 must lie in 0\.\.6"):
        Windows(window=0, stride=7).within(6, 4)
    with pytest.raises(ValueError, match="call within first"):
        run_plans([9], Windows(window=0), lambda views: [])
