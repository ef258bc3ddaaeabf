"""The counts behind the page's plots, over the questions that were found."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynarag_jax.explore.columns import UNKNOWN
from dynarag_jax.explore.query import LONGEST, changed
from dynarag_jax.explore.table import QuestionTable, Side


def overview(
    table: QuestionTable, found: np.ndarray, a: Side | None, b: Side | None
) -> dict[str, Any]:
    """What the plots of some questions show.

    Args:
      found: [Q] bool.
    """
    sides = {"a": a, "b": b}
    return {
        "sides": {letter: _side(table, found, side) for letter, side in sides.items() if side},
        "compared": _compared(found, a, b) if a and b else None,
    }


def _lists(found: np.ndarray, side: Side) -> tuple[np.ndarray, ...]:
    """Every list of a side: its question's place, k, value, and how often it was written."""
    rows = np.flatnonzero(found & (side.place >= 0) & ~side.failed)
    if side.value_name == "score":
        return rows, side.k[rows], side.value[rows], np.ones(len(rows), np.int64)
    arrays, own = side.columns.arrays, side.place[rows]
    starts, sizes = arrays["each_start"], np.diff(arrays["each_start"])[own]
    # The places of every question's lists, one after the other.
    first = np.repeat(starts[own] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    at = first + np.arange(len(first))
    return np.repeat(rows, sizes), *(arrays[f"each_{n}"][at] for n in ("k", "reward", "count"))


def _side(table: QuestionTable, found: np.ndarray, side: Side) -> dict[str, Any]:
    row, k, value, count = _lists(found, side)
    known = k != UNKNOWN
    row, k, value, count = row[known], k[known], value[known], count[known]
    size = np.minimum(k, LONGEST)
    needed = np.where(table.needed[row] == UNKNOWN, -1, np.minimum(table.needed[row], LONGEST))
    # A row for each needed k, the first for where it is unknown.
    place = (needed + 1) * (LONGEST + 1) + size
    cells = np.bincount(place, count, (LONGEST + 2) * (LONGEST + 1)).astype(np.int64)
    cells = cells.reshape(LONGEST + 2, LONGEST + 1)
    valued = np.isfinite(value)
    counts = np.bincount(size[valued], count[valued], LONGEST + 1)
    sums = np.bincount(size[valued], (value * count)[valued], LONGEST + 1)
    own = found & (side.place >= 0)
    values = side.value[own]
    values = values[np.isfinite(values)]
    return {
        "questions": int(own.sum()),
        "failed": int((own & side.failed).sum()),
        "lists": int(count.sum()),
        "mean_k": float((k * count).sum() / count.sum()) if count.sum() else None,
        "mean_needed": float((needed * count)[needed >= 0].sum() / count[needed >= 0].sum())
        if count[needed >= 0].sum()
        else None,
        "mean_value": float(values.mean()) if len(values) else None,
        "cells": [
            [int(n) - 1, int(m), int(cells[n, m])] for n, m in np.argwhere(cells > 0)
        ],  # needed (-1: unknown), k, lists
        "by_k": [
            [int(m), int(counts[m]), float(sums[m] / counts[m])] for m in np.flatnonzero(counts)
        ],  # k, lists, mean value
    }


def _compared(found: np.ndarray, a: Side, b: Side) -> dict[str, Any]:
    both = found & (a.place >= 0) & (b.place >= 0)
    listed = both & ~a.failed & ~b.failed & (a.k != UNKNOWN) & (b.k != UNKNOWN)
    steps = np.clip(b.k[listed] - a.k[listed], -LONGEST, LONGEST)
    sizes, counts = np.unique(steps, return_counts=True)
    comparable = a.value_name == b.value_name
    return {
        "questions": int(both.sum()),
        "list_changed": int((found & changed(a, b, "list")).sum()),
        "answer_changed": int((found & changed(a, b, "answer")).sum()),
        "better": int((found & changed(a, b, "better")).sum()) if comparable else None,
        "worse": int((found & changed(a, b, "worse")).sum()) if comparable else None,
        "k_change": [[int(s), int(c)] for s, c in zip(sizes, counts, strict=True)],
    }
