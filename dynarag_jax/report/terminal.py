"""The final table for a terminal: plain text, aligned, at most 100 columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from dynarag_jax.metrics.intervals import Interval
from dynarag_jax.report import numbers
from dynarag_jax.report.schema import RunReport

WIDTH = 100


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _one_line(text: str) -> str:
    """``text`` without line breaks, control or format characters, which a terminal would obey."""
    shown = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)
    return " ".join(shown.split())


def _fit(text: str, width: int) -> str:
    """``text`` cut or padded to ``width`` terminal columns."""
    if _columns(text) > width:
        while text and _columns(text) > width - 1:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text + " " * (width - _columns(text))


def _name(text: str, width: int) -> str:
    """As ``_fit``; what is cut is the middle, since names often differ at their ends."""
    if _columns(text) <= width:
        return _fit(text, width)
    tail = ""
    while _columns(text[-len(tail) - 1 :]) <= width // 2:
        tail = text[-len(tail) - 1 :]
    return _fit(text, width - _columns(tail)) + tail


def _wrapped(parts: list[str], gap: str = "   ") -> list[str]:
    """The parts on as few lines as hold them; a part too long for a line is cut."""
    lines: list[str] = []
    for part in parts:
        part = part if _columns(part) <= WIDTH else _fit(part, WIDTH)
        if lines and _columns(lines[-1] + gap + part) <= WIDTH:
            lines[-1] += gap + part
        else:
            lines.append(part)
    return lines


def _scores(values: list[Interval | None], show: Callable[[float], str]) -> list[str]:
    """``mean [low, high]`` with the three numbers of all rows aligned."""
    known = [v for v in values if v is not None]
    if not known:
        return ["–" for _ in values]
    wide = [max(len(show(getattr(v, part))) for v in known) for part in ("mean", "low", "high")]
    return [
        "–".rjust(wide[0]).ljust(sum(wide) + 4)
        if v is None
        else f"{show(v.mean):>{wide[0]}} [{show(v.low):>{wide[1]}},{show(v.high):>{wide[2]}}]"
        for v in values
    ]


def terminal_table(report: RunReport) -> str:
    """The systems' scores with 95 % intervals, and the facts of the run, for a terminal.

    No line is wider than 100 columns; long names are cut. Ends without a newline.
    """
    facts, rows = report.facts, report.systems
    lines = [_fit(_one_line(report.title), WIDTH).rstrip()]
    about = [f"config {_one_line(facts.config)}", f"seed {facts.seed}"]
    about.append(f"{facts.questions:,} question{'' if facts.questions == 1 else 's'}")
    if facts.needed_mean_k is not None:
        about.append(f"needed mean k {numbers.passages(facts.needed_mean_k)}")
    lines += [*_wrapped(about), ""]
    if rows:
        read = [s.tokens for s in rows]
        columns = [
            (
                f"{_one_line(report.answer_metric)[:14]} %",
                _scores([s.answer for s in rows], numbers.percent),
            ),
            ("set F1 %", _scores([s.set_f1 for s in rows], numbers.percent)),
            ("mean k", _scores([s.mean_k for s in rows], numbers.passages)),
            ("passage tokens", _scores(read, numbers.tokens_format(read))),
        ]
        thought = [s.thought_tokens for s in rows]
        if any(thought):
            columns.append(("thought tokens", _scores(thought, numbers.tokens_format(thought))))
        if any(s.failed for s in rows):
            columns.append(("failed", [f"{s.failed:,}".rjust(6) for s in rows]))
        widths = [max(len(head), *map(_columns, cells)) for head, cells in columns]
        names = [_one_line(s.name) for s in rows]
        gap = "  " if WIDTH - sum(widths) - 2 * len(widths) >= 16 else " "
        room = WIDTH - sum(widths) - len(gap) * len(widths)
        first = min(max(_columns(n) for n in [*names, "system"]), room)
        heads = gap.join(head.ljust(w) for (head, _), w in zip(columns, widths, strict=True))
        lines.append(f"{_fit('system', first)}{gap}{heads}".rstrip())
        lines.append("─" * (first + sum(widths) + len(gap) * len(widths)))
        for i, name in enumerate(names):
            cells = [cells[i].ljust(w) for (_, cells), w in zip(columns, widths, strict=True)]
            lines.append(f"{_name(name, first)}{gap}{gap.join(cells)}".rstrip())
        lines.append("[low,high]: 95 % interval, bootstrap over questions")
    if report.change:
        c = report.change
        lines += _wrapped(
            [
                f"{report.answer_metric} after feedback minus before: {100 * c.mean:+.1f} points "
                f"[{100 * c.low:+.1f},{100 * c.high:+.1f}], p = {c.p_value:.2g}"
            ]
        )
    if facts.seconds:
        total = sum(facts.seconds.values())
        stages = [f"{_one_line(k)} {numbers.duration(v)}" for k, v in facts.seconds.items()]
        lines += ["", *_wrapped([*stages, f"total {numbers.duration(total)}"])]
    if facts.peak_memory_bytes is not None:
        lines.append(f"peak memory {numbers.memory(facts.peak_memory_bytes)}")
    return "\n".join(lines)
