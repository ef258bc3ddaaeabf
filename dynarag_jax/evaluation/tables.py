"""Summaries as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from dynarag_jax.evaluation.summary import Summary
from dynarag_jax.metrics.intervals import Interval

# What tables call a figure; what is not here is called by its name.
_SHOWN: Mapping[str, str] = {
    "em": "EM",
    "f1": "F1",
    "acc": "Acc",
    "accuracy": "accuracy",
    "containment": "containment",
    "str_em": "STR-EM",
    "str_hit": "STR-Hit",
    "rouge_l": "ROUGE-L (rouge-score)",
    "rouge_l_kilt": "ROUGE-L (rouge, as KILT)",
    "rouge_lsum": "ROUGE-Lsum (rouge-score)",
    "set_f1": "set F1",
    "set_precision": "set precision",
    "set_recall": "set recall",
    "mrr": "MRR",
    "k": "mean k",
    "tokens": "passage tokens",
    "thought_tokens": "thought tokens",
}
SIZES = ("k", "tokens", "thought_tokens")


def shown(figure: str) -> str:
    """How tables call a figure."""
    name, at, k = figure.partition("@")
    name = {"ndcg": "nDCG", "answer_recall": "answer recall"}.get(name, name)
    return _SHOWN.get(figure, f"{name}{at}{k}")


def is_list_figure(figure: str) -> bool:
    """Whether a figure judges the list and not the answer."""
    return figure.startswith(("set_", "mrr")) or "@" in figure


def number(figure: str, value: float) -> str:
    """A figure as tables show it: shares in percent, passages and tokens as they are."""
    if figure == "k":
        return f"{value:.2f}"
    return f"{value:.1f}" if figure in SIZES else f"{100 * value:.1f}"


def interval(figure: str, found: Interval | None) -> str:
    """``mean [low, high]``; a dash where nothing is known."""
    if found is None:
        return "–"
    mean, low, high = (number(figure, x) for x in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; pipes and line breaks inside cells are kept out of its way."""
    clean = lambda text: " ".join(text.replace("|", "\\|").split())  # noqa: E731
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(clean, line)) + " |" for line in lines)


def _unit(figure: str) -> str:
    return shown(figure) if figure in SIZES else f"{shown(figure)} %"


def _figures(summaries: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(name for s in summaries for name in s.figures))


def _of(summary: Summary, figure: str) -> str:
    """A figure's cell, which says so where it leaves questions out."""
    value = summary.figures.get(figure)
    left_out = value is not None and value.n < summary.n
    return interval(figure, value) + (f" (n = {value.n:,})" if left_out and value else "")


def _unanswered(summary: Summary) -> str:
    parts = [f"{n} {state}" for state, n in summary.states.items() if n and state != "answered"]
    if not summary.states:
        return "–"
    return f"{summary.unanswered} ({', '.join(parts)})" if parts else "0"


def _sizes(summary: Summary) -> list[str]:
    if summary.sizes is None:
        return ["–", "–"]
    return [interval("k", summary.figures.get("k")), f"{summary.sizes.sd:.2f}"]


def answer_table(summaries: Sequence[Summary]) -> str:
    """The systems' answers: every metric, what was not answered, k and its spread, tokens.

    Tokens of thoughts have a column where some system thinks before it lists.
    """
    figures = [f for f in _figures(summaries) if not is_list_figure(f) and f not in SIZES]
    sized = any(s.sizes for s in summaries)
    read = any("tokens" in s.figures for s in summaries)
    head = ["system", "questions", "not answered", *map(_unit, figures)]
    head += ["mean k", "sd of k"] if sized else []
    head += ["passage tokens"] if read else []
    thinks = any("thought_tokens" in s.figures for s in summaries)
    head += [shown("thought_tokens")] if thinks else []
    rows = []
    for s in summaries:
        row = [s.system, f"{s.n:,}", _unanswered(s)]
        row += [_of(s, f) for f in figures]
        row += _sizes(s) if sized else []
        row += [interval("tokens", s.figures.get("tokens"))] if read else []
        row += [interval("thought_tokens", s.figures.get("thought_tokens"))] if thinks else []
        rows.append(row)
    return markdown(head, rows)


def list_table(summaries: Sequence[Summary]) -> str:
    """Ranking and set metrics of the systems' lists, a line a metric; empty without lists."""
    with_lists = [s for s in summaries if any(map(is_list_figure, s.figures))]
    rows = []
    for figure in filter(is_list_figure, _figures(with_lists)):
        ns = sorted({s.figures[figure].n for s in with_lists if figure in s.figures})
        cells = [interval(figure, s.figures.get(figure)) for s in with_lists]
        rows.append([_unit(figure), " to ".join(f"{n:,}" for n in ns), *cells])
    return markdown(["figure", "questions", *(s.system for s in with_lists)], rows) if rows else ""


def type_table(summaries: Sequence[Summary]) -> str:
    """The headline, set F1 and mean k by type of question; empty where questions have no types."""
    parts = [t for s in summaries for t in s.types]
    if not parts:
        return ""
    wanted = dict.fromkeys([s.headline for s in summaries if s.headline])
    figures = [*wanted, *(f for f in ("set_f1", "k") if f not in wanted)]
    figures = [f for f in figures if any(f in t.figures for t in parts)]
    head = ["type", "system", "questions", *map(_unit, figures)]
    rows = [
        [t.type, t.system, f"{t.n:,}", *(interval(f, t.figures.get(f)) for f in figures)]
        for name in sorted({t.type for t in parts})
        for t in parts
        if t.type == name
    ]
    return markdown(head, rows)


def by_dataset(summaries: Iterable[Summary]) -> dict[str, list[Summary]]:
    """The summaries under their datasets, in order."""
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.dataset, []).append(summary)
    return groups


_INTERVALS = "[low, high]: 95 % interval, bootstrap over questions."
_EVERY = "Every question is in every mean of the answers; what was not answered counts 0."
_LEFT_OUT = "Means with (n = ...) leave questions out."
_LISTS = "Means of lists are over the questions that a figure applies to."


def _closing(summaries: Sequence[Summary]) -> str:
    """What the numbers are means of."""
    answers = [
        (s.n, one.n)
        for s in summaries
        for name, one in s.figures.items()
        if not is_list_figure(name) and name not in SIZES
    ]
    parts = [_INTERVALS]
    if answers:
        parts.append(_EVERY if all(n == own for n, own in answers) else _LEFT_OUT)
    if any(is_list_figure(name) for s in summaries for name in s.figures):
        parts.append(_LISTS)
    return " ".join(parts)


def report(summaries: Sequence[Summary], notes: Sequence[str] = (), foot: str = "") -> str:
    """All tables of a scoring as a Markdown page; ``notes`` stand above, ``foot`` below them."""
    parts = [*notes]
    for dataset, group in by_dataset(summaries).items():
        parts += [f"## {dataset}", answer_table(group)]
        if lists := list_table(group):
            parts += ["### Lists", lists]
        if types := type_table(group):
            parts += ["### By type of question", types]
    closing = " ".join([_closing(summaries), *([foot] if foot else [])])
    return "\n\n".join([*parts, closing]) + "\n"


def side_by_side(summaries: Sequence[Summary]) -> str:
    """The systems as aligned text for a terminal: the headline, set F1, mean k, tokens."""
    wide = max(24, *(len(summary.system) + 1 for summary in summaries), 0)
    thinks = any("thought_tokens" in s.figures for s in summaries)
    more = f"{'thought':>9}" if thinks else ""
    lines = [f"{'system':<{wide}}{'score %':>10}{'set F1 %':>10}{'mean k':>8}{'tokens':>8}{more}"]
    for summary in summaries:
        known = {name: f for name, f in summary.figures.items() if f.n == summary.n}
        cells = [
            number(name, known[name].mean) if name in known else "–"
            for name in (summary.headline, "set_f1", "k", "tokens", "thought_tokens")
        ]
        widths = (10, 10, 8, 8, 9) if thinks else (10, 10, 8, 8)
        row = "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=False))
        lines.append(f"{summary.system:<{wide}}{row}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------- files


def file_name(system: str) -> str:
    """A system's name as a file's: letters, digits, ``-``, ``_`` and ``.``."""
    return re.sub(r"[^\w.-]+", "-", system).strip("-.") or "system"
