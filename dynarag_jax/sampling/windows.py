"""Reranking more candidates than a prompt shows: windows, rounds of survivors, one final pass.

Every candidate is shown in some window of the first round, and a window's list says which of its
passages survive. Survivors go on to the next round, in the retriever's order, until they fit in one
window: the *final pass* over them decides the order across windows, and its list is the result.
Where windows drop too little for that (a budget of half a window and more), the windows' lists are
merged instead: windows of the lists' heads, whose best are taken until the budget is reached.

A reranker that knows the right order gets the right list from any window, stride and budget. One
that does not still gives a list without repeats, over positions of the whole candidate list (never
of a window), after a bounded number of calls: rounds halve the survivors, and a merge removes a
passage a call.

``plan`` is a generator: it yields windows and is sent what the reranker wrote for each, so that
``run_plans`` can put the windows of many questions into one batch. No model is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from dynarag_jax.errors import InputError

Positions = tuple[int, ...]
"""1-based positions in a question's whole list of candidates."""


@dataclass(frozen=True)
class Windows:
    """How candidates beyond one prompt are reranked."""

    window: int = 40
    """passages a window shows; 40 is the paper's, 0 takes as many as a prompt has ids"""
    stride: int = 0
    """passages from the start of one window to the next at most, so that smaller ones overlap and a
    passage has several chances to survive; 0 is the window"""
    budget: int = 15
    """passages in the final list at most; 0 takes as many as a list holds"""

    def __post_init__(self) -> None:
        if self.window < 2 and self.window != 0:
            raise InputError(f"windows: window = {self.window} must be 2 or more, to compare")
        if self.stride < 0 or 0 < self.window < self.stride:
            raise InputError(
                f"windows: stride = {self.stride} must lie in 0..{self.window}, the window: a "
                f"larger one skips passages"
            )
        if self.budget < 0:
            raise InputError(f"windows: budget = {self.budget} must not be negative")

    def within(self, ids: int, max_list: int) -> Windows:
        """The windows for prompts of ``ids`` passages and lists of ``max_list``: no 0 is left.

        Raises:
          InputError: ``ids`` is 1, or less than the stride.
        """
        return replace(self, window=self.window or ids, budget=self.budget or max_list)


@dataclass(frozen=True)
class Seen:
    """What the reranker made of one window.

    Attributes:
      chosen: places in the window, from 1, best first.
      shown: how many of the window's passages its prompt showed: the first ones.
    """

    chosen: Sequence[int]
    shown: int


Plan = Generator[list[Positions], list[Seen], Positions]


def cover(positions: Sequence[int], window: int, stride: int) -> list[Positions]:
    """Windows over ``positions``, evenly spaced, at most ``stride`` from start to start."""
    spare = len(positions) - window
    if spare <= 0:
        return [tuple(positions)] if positions else []
    gaps = -(-spare // stride)
    starts = [spare * i // gaps for i in range(gaps + 1)]
    return [tuple(positions[s : s + window]) for s in starts]


def plan(n: int, windows: Windows) -> Plan:
    """Rerank ``n`` candidates: yields windows as positions, is sent a ``Seen`` for each of them.

    Returns:
      The final list, positions from 1 to n without repeats, at most the budget of them.
    """
    if not (windows.window and windows.budget):
        raise ValueError("windows whose sizes are left to the prompts: call within first")
    window, stride = windows.window, windows.stride or windows.window
    left = tuple(range(1, n + 1))
    while len(left) > window:
        before = len(left)
        runs, narrowest = yield from _round(left, window, stride, windows.budget)
        left = tuple(sorted(set().union(*runs)))
        if len(left) <= narrowest:
            window = max(2, narrowest)
        elif 2 * len(left) > before:
            # Little was dropped, so that another round would read nearly the same again.
            return (yield from _merge(_without_repeats(runs), window, windows.budget))
    if not left:
        return ()
    (seen,) = yield [left]
    if seen.shown < len(left):
        # The final prompt does not hold them all: what it shows is merged with what it does not.
        runs, _ = yield from _round(left[seen.shown :], window, window, windows.budget)
        runs = [_chosen(left, seen)[: windows.budget], *runs]
        return (yield from _merge(_without_repeats(runs), max(2, seen.shown), windows.budget))
    return _chosen(left, seen)[: windows.budget]


def _chosen(window: Positions, seen: Seen) -> Positions:
    """A window's list in positions of the whole list of candidates."""
    return tuple(window[place - 1] for place in seen.chosen)


def _round(
    positions: Positions, window: int, stride: int, budget: int
) -> Generator[list[Positions], list[Seen], tuple[list[Positions], int]]:
    """Show every position in a window; returns the windows' lists and the fewest shown of any."""
    runs: list[Positions] = []
    narrowest = window
    unseen = positions
    while unseen:
        views = cover(unseen, window, stride)
        answers = yield views
        shown: set[int] = set()
        for view, seen in zip(views, answers, strict=True):
            shown.update(view[: seen.shown])
            # The budget's best of all are among the budget's best of each window.
            runs.append(_chosen(view, seen)[:budget])
            if seen.shown < len(view):
                narrowest = min(narrowest, seen.shown)
        # What a prompt had no room for is shown in windows of its own.
        unseen = tuple(p for p in unseen if p not in shown)
    return [run for run in runs if run], narrowest


def _without_repeats(runs: Sequence[Positions]) -> list[Positions]:
    """Overlapping windows may both keep a passage: it stays where it was kept first."""
    taken: set[int] = set()
    kept = []
    for run in runs:
        kept.append(tuple(p for p in run if p not in taken))
        taken.update(run)
    return [run for run in kept if run]


def _merge(
    runs: list[Positions], window: int, budget: int
) -> Generator[list[Positions], list[Seen], Positions]:
    """Merge ordered lists, two at a time, into one of at most ``budget``."""
    while len(runs) > 1:
        pairs = [runs[i : i + 2] for i in range(0, len(runs), 2)]
        merges = [_merge_two(*pair, window, budget) for pair in pairs if len(pair) == 2]
        alone = [pair[0] for pair in pairs if len(pair) == 1]
        merged = yield from _together(merges)
        runs = [run for run in merged if run] + alone
    return runs[0][:budget] if runs else ()


def _merge_two(first: Positions, second: Positions, window: int, budget: int) -> Plan:
    """Merge two ordered lists by windows over their heads, which the reranker orders.

    The reranker drops what it shows and does not list, but for a list as long as the budget: what
    is left out of that was not refused, only not reached.
    """
    runs = [list(first), list(second)]
    out: list[int] = []
    while all(runs) and len(out) < budget:
        # Half the window each, and what the second has no use for is the first's.
        size = max(window // 2, window - len(runs[1]))
        heads = [runs[0][:size], runs[1][: window - min(size, len(runs[0]))]]
        # In turn, so that a prompt that does not hold the window shows heads of both.
        view = [p for i in range(max(map(len, heads))) for head in heads for p in head[i : i + 1]]
        (seen,) = yield [tuple(view)]
        chosen, shown = _chosen(tuple(view), seen), set(view[: seen.shown])
        if len(chosen) < min(budget, seen.shown):
            refused = shown.difference(chosen)
            runs = [[p for p in run if p not in refused] for run in runs]
        # An order is sure as long as both lists' next passages were in view. The first place always
        # is, so that every call takes or drops a passage.
        for p in chosen:
            run = next(run for run in runs if p in run)
            run.remove(p)
            out.append(p)
            if any(other and other[0] not in shown for other in runs):
                break
    return tuple([*out, *runs[0], *runs[1]][:budget])


def _together(plans: Sequence[Plan]) -> Generator[list[Positions], list[Seen], list[Positions]]:
    """Run plans side by side: their windows are yielded together."""
    results: list[Positions] = [()] * len(plans)
    asks: dict[int, list[Positions]] = {}
    for i, one in enumerate(plans):
        try:
            asks[i] = next(one)
        except StopIteration as stop:
            results[i] = stop.value
    while asks:
        answers = iter((yield [view for views in asks.values() for view in views]))
        for i, views in list(asks.items()):
            try:
                asks[i] = plans[i].send([next(answers) for _ in views])
            except StopIteration as stop:
                results[i] = stop.value
                del asks[i]
    return results


def expected_calls(n: int, windows: Windows) -> tuple[int, int]:
    """Prompts that ``n`` candidates take where windows keep one passage each, and all they may.

    Prompts that do not hold a whole window add to both.
    """
    return _calls(n, windows, 1), _calls(n, windows, windows.budget)


def _calls(n: int, windows: Windows, kept: int) -> int:
    going, answers, calls = plan(n, windows), None, 0
    try:
        while True:
            views = next(going) if answers is None else going.send(answers)
            calls += len(views)
            answers = [Seen(range(1, min(kept, len(v)) + 1), len(v)) for v in views]
    except StopIteration:
        return calls


Reranker = Callable[[list[tuple[int, Positions]]], Sequence[Seen | InputError]]
"""``reranker(views)``: what it chose of each (question's index, positions shown), or why it could
not."""


def run_plans(
    counts: Sequence[int],
    windows: Windows,
    rerank: Reranker,
    going: Callable[[bool], bool] = bool,
) -> list[Positions | InputError]:
    """Rerank many questions side by side, a batch of windows at a time.

    Args:
      counts: how many candidates each question has.
      rerank: called with the windows of all questions that are not finished yet.
      going: whether there is a next batch, told whether there is one of these questions; of several
        processes all go on while one does, since they rerank in common.

    Returns:
      The list of each question, or why a window of it could not be read.
    """
    plans = [plan(n, windows) for n in counts]
    results: list[Positions | InputError] = [()] * len(plans)
    answers: dict[int, list[Seen] | None] = dict.fromkeys(range(len(plans)))
    while True:
        asks: dict[int, list[Positions]] = {}
        for i, answer in answers.items():
            try:
                asks[i] = next(plans[i]) if answer is None else plans[i].send(answer)
            except StopIteration as stop:
                results[i] = stop.value
        views = [(i, view) for i, own in asks.items() for view in own]
        if not going(bool(views)):
            return results
        seen = iter(rerank(views))
        answers = {}
        for i, own in asks.items():
            read = [next(seen) for _ in own]
            if wrong := [one for one in read if isinstance(one, InputError)]:
                results[i] = wrong[0]
            else:
                answers[i] = [one for one in read if isinstance(one, Seen)]
