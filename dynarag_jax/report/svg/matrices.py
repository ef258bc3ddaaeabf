"""Matrices of questions: needed against chosen k, and the ranks of needed passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynarag_jax.report.schema import KMatrix, RankRow
from dynarag_jax.report.svg.drawing import svg, text
from dynarag_jax.report.svg.markup import Markup, element
from dynarag_jax.report.svg.scales import shorten

_MOST_COLUMNS = 16


def same_shape(matrices: Sequence[KMatrix]) -> tuple[list[list[list[int]]], bool]:
    """The counts of all matrices on the same rows and columns, to be compared by eye.

    Columns nobody chose at the far end are dropped; beyond sixteen the last column holds the rest,
    and the second result is True.
    """
    rows = max((len(m.counts) for m in matrices), default=0)
    columns = rows  # at least the diagonal
    for matrix in matrices:
        for row in matrix.counts:
            columns = max([columns, *(i + 1 for i, count in enumerate(row) if count)])
    width = min(columns, _MOST_COLUMNS)
    made = []
    for matrix in matrices:
        full = [[0] * width for _ in range(rows)]
        for i, row in enumerate(matrix.counts):
            for j, count in enumerate(row):
                full[i][min(j, width - 1)] += int(count)
        made.append(full)
    return made, columns > width


def _shaded(
    title: str,
    label: str,
    rows: Sequence[tuple[str, int, Sequence[int]]],
    columns: Sequence[str],
    axis: str,
    said: Callable[[int, int], str],
    width: float,
    matches: bool,
) -> Markup:
    """A matrix of counts, each cell as strong as its share of its row's questions.

    Args:
      label: what a screen reader says of it.
      rows: name, questions and counts of each.
      axis: what the columns are.
      said: of a row and a column, shown where the pointer rests.
      matches: outline the cells whose row and column are the same.
    """
    left, top, high = 34.0, 50.0, 34.0
    wide = min(52.0, (width - left - 70) / max(len(columns), 1))
    right, bottom = left + len(columns) * wide, top + len(rows) * high
    parts = [
        text(0, 14, shorten(title, 52), "title"),
        text(0, 36, "needed k", "label"),
        text(right + 8, 36, "questions", "label"),
    ]
    digits = 11.5 if wide >= 30 else 8.5
    for i, (name, total, counts) in enumerate(rows):
        y = top + i * high
        parts.append(text(left - 10, y + high / 2 + 4, name, "tick", "end"))
        parts.append(text(right + 8, y + high / 2 + 4, f"{total:,}", "tick"))
        for j, count in enumerate(counts):
            share, x = min(count / total, 1.0) if total else 0.0, left + j * wide
            parts.append(
                element("rect", element("title", said(i, j)), x=x + 1, y=y + 1, width=wide - 2,
                        height=high - 2, rx=2, class_="cell", fill_opacity=round(share, 3))
            )  # fmt: skip
            ink = "dark" if share > 0.55 else "pale" if count == 0 else ""
            parts.append(
                element("text", f"{count}", x=x + wide / 2, y=y + high / 2 + 4,
                        text_anchor="middle", class_=f"count {ink}".strip(),
                        font_size=min(digits, wide / (0.62 * max(len(str(count)), 2))))
            )  # fmt: skip
    for i in range(min(len(rows), len(columns)) if matches else 0):  # on top of the cells
        parts.append(
            element("rect", x=left + i * wide + 1, y=top + i * high + 1, width=wide - 2,
                    height=high - 2, rx=2, class_="match")
        )  # fmt: skip
    for j, name in enumerate(columns):
        parts.append(text(left + (j + 0.5) * wide, bottom + 16, name, "tick", "middle"))
    parts.append(text(right, bottom + 32, axis, "label", "end"))
    return svg(width, bottom + 38, label, *parts)


def heat_map(title: str, counts: Sequence[Sequence[int]], more: bool = False) -> Markup:
    """Questions by needed k (rows) and chosen k (columns), shaded by their share of the row.

    Args:
      title: above the map.
      counts: ``counts[needed][chosen]``.
      more: the last column holds that k and all larger ones.
    """
    columns = len(counts[0]) if counts else 0
    totals = [sum(row) for row in counts]
    last = columns - 1 if more else -1

    def said(i: int, j: int) -> str:
        many = " or more" if j == last else ""
        return f"needed {i}, chosen {j}{many}: {counts[i][j]} of {totals[i]}"

    right = sum(counts[i][i] for i in range(min(len(counts), columns)))
    label = f"{title}: {right} of {sum(totals)} questions with as many passages as needed"
    rows = [(str(i), totals[i], row) for i, row in enumerate(counts)]
    names = [f"{j}+" if j == last else str(j) for j in range(columns)]
    return _shaded(title, label, rows, names, "chosen k (passages)", said, 400.0, matches=True)


def rank_map(ranks: Sequence[RankRow]) -> Markup:
    """At which ranks the needed passages stand, a row for every needed k.

    Beyond sixteen ranks the last column holds the rest, and another those that are no candidates
    where there are any.
    """
    columns = max((len(row.at) for row in ranks), default=0)
    width = min(columns, _MOST_COLUMNS)
    names = [str(j + 1) for j in range(width)]
    if columns > width:
        names[-1] += "+"
    absent = any(row.absent for row in ranks)
    rows = []
    for row in ranks:
        at = [*row.at, *[0] * (columns - len(row.at))]
        counts = [*at[: width - 1], sum(at[width - 1 :])] if width else []
        rows.append((str(row.needed), row.questions, counts + [row.absent] * absent))

    def said(i: int, j: int) -> str:
        row = ranks[i]
        where = f"at rank {names[j]}" if j < width else "not among the candidates"
        return f"needed {row.needed}, {where}: {rows[i][2][j]}, of {row.questions} questions"

    return _shaded(
        "Needed passages by rank",
        f"ranks of the needed passages of {sum(row.questions for row in ranks)} questions",
        rows,
        [*names, *["none"] * absent],
        "rank in the candidates' order",
        said,
        400.0 if width <= 10 else 640.0,
        matches=False,
    )
