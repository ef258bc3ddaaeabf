"""The page ``report.html``: one file, without scripts, that opens offline."""

from __future__ import annotations

from collections.abc import Callable

from dynarag_jax.files import PathLike, atomic_write
from dynarag_jax.metrics.intervals import Interval
from dynarag_jax.report import scales
from dynarag_jax.report.examples import example_card
from dynarag_jax.report.guide import guide
from dynarag_jax.report.markup import Markup, element, escape, join
from dynarag_jax.report.plots import heat_map, line_panel, same_shape, svg
from dynarag_jax.report.points import mark, systems_plot
from dynarag_jax.report.schema import RunReport, SystemRow, TypeRow, TypeScores
from dynarag_jax.report.style import SHEET

_DASH = "–"
Show = Callable[[float], str]


# ---------------------------------------------------------------------------- the top


def _lede(report: RunReport) -> Markup:
    before, after = report.first("cloning"), report.last("feedback")
    row = after or before
    if row is None:
        return Markup()
    metric, facts = report.answer_metric, report.facts
    count = f"{facts.questions:,} question{'' if facts.questions == 1 else 's'}"
    text = (
        f"The policy “{row.name}” reaches {metric} {scales.percent(row.answer.mean)} % on {count} "
        f"and reads {scales.passages(row.mean_k.mean)} passages per question"
    )
    if facts.needed_mean_k is not None:
        text += f", where {scales.passages(facts.needed_mean_k)} are needed"
    text += "."
    if before and after:
        text += (
            f" Before feedback it was {scales.percent(before.answer.mean)} % with "
            f"{scales.passages(before.mean_k.mean)} passages."
        )
    if report.change:
        c = report.change
        text += (
            f" The difference in {metric} is {100 * c.mean:+.1f} points (95 % interval "
            f"{100 * c.low:+.1f} to {100 * c.high:+.1f}, p\u00a0=\u00a0{c.p_value:.2g})."
        )
    return element("p", text, class_="lede")


def _tiles(report: RunReport) -> Markup:
    before, after = report.first("cloning"), report.last("feedback")
    row = after or before
    if row is None:
        return Markup()

    def tile(
        what: str,
        get: Callable[[SystemRow], Interval | None],
        show: Show,
        unit: str,
        aside: str = "",
    ) -> Markup:
        value = get(row)
        if value is None:
            return Markup()
        was = [f"95 %: {scales.ends(value, show)}"]
        earlier = get(before) if before and after else None
        if earlier is not None:
            was.append(f"before feedback {show(earlier.mean)}{unit}")
        if aside:
            was.append(aside)
        number = element("b", show(value.mean), element("small", unit) if unit else None)
        lines = (element("div", line, class_="was") for line in was)
        return element("div", element("div", what, class_="what"), number, *lines, class_="tile")

    show_tokens = scales.tokens_format(s.tokens for s in (before, after) if s)
    needed = report.facts.needed_mean_k
    aside = f"needed {scales.passages(needed)}" if needed is not None else ""
    return element(
        "div",
        tile(report.answer_metric, lambda s: s.answer, scales.percent, "\u00a0%"),
        tile("Set F1", lambda s: s.set_f1, scales.percent, "\u00a0%"),
        tile("Passages read, mean\u00a0k", lambda s: s.mean_k, scales.passages, "", aside),
        tile("Passage tokens read, mean", lambda s: s.tokens, show_tokens, ""),
        class_="tiles",
    )


# ---------------------------------------------------------------------------- systems


def _cell(interval: Interval | None, show: Show, label: str, aside: str = "") -> Markup:
    if interval is None:
        return element("td", _DASH, class_="n", data_label=label)
    lines = [scales.ends(interval, show), *([aside] if aside else [])]
    small = (element("span", line, class_="ends") for line in lines)
    return element("td", show(interval.mean), *small, class_="n", data_label=label)


def _swatch(system: SystemRow) -> Markup:
    drawn = svg(15, 15, system.role, mark(system.role, 7.5, 7.5))
    return element("span", drawn, class_="swatch", aria_hidden="true")


def _systems(report: RunReport) -> Markup:
    if not report.systems:
        return element("p", "No system was evaluated.", class_="caption")
    metric = report.answer_metric
    failures = any(s.failed for s in report.systems)
    show_tokens = scales.tokens_format(s.tokens for s in report.systems)
    heads = [
        ("System", "", None),
        (metric, "%", "n"),
        ("Set F1", "%", "n"),
        ("Mean k", "passages", "n"),
        ("Tokens read", "per question", "n"),
    ]
    if failures:
        heads.append(("Failed", "questions", "n"))
    head = element(
        "tr",
        *(
            element("th", name, join(element("br"), element("small", unit)) if unit else None,
                    class_=class_, scope="col")
            for name, unit, class_ in heads
        ),
    )  # fmt: skip
    rows = []
    for s in report.systems:
        spread = "" if s.k_sd is None else f"sd {scales.passages(s.k_sd)}"
        cells = [
            _cell(s.answer, scales.percent, f"{metric} (%)"),
            _cell(s.set_f1, scales.percent, "Set F1 (%)"),
            _cell(s.mean_k, scales.passages, "Mean k", spread),
            _cell(s.tokens, show_tokens, "Tokens read"),
        ]
        if failures:
            none = "n" if s.failed else "n zero"
            cells.append(element("td", f"{s.failed:,}", class_=none, data_label="Failed"))
        learned = "learned" if s.role in ("cloning", "feedback") else None
        name = element("th", _swatch(s), s.name, scope="row")
        rows.append(element("tr", name, *cells, class_=learned))
    table = element("table", element("thead", head), element("tbody", *rows), class_="stack key")
    needed = report.facts.needed_mean_k
    wide = systems_plot(report.systems, metric, needed, class_="wide-only")
    narrow = systems_plot(
        report.systems, metric, needed, width=350, height=400, class_="narrow-only"
    )
    caption = element(
        "p",
        "Higher is better, further left is cheaper. Bars are 95 % intervals. The gray line joins "
        "the fixed top-k systems; the dashed one leads from behavior cloning through the rounds of "
        "feedback.",
        class_="caption",
    )
    return join(element("figure", wide, narrow), caption, table)


# ---------------------------------------------------------------------------- how many


def _matrices(report: RunReport) -> Markup:
    matrices = [m for m in (report.k_before, report.k_after) if m and m.counts]
    shaped, more = same_shape(matrices)
    maps = [
        element("figure", heat_map(matrix.title, counts, more))
        for matrix, counts in zip(matrices, shaped, strict=True)
    ]
    caption = element(
        "p",
        "Numbers are questions. The stronger a cell's color, the larger its share of its row; "
        "outlined cells are those where as many passages were listed as are needed.",
        class_="caption",
    )
    return join(element("div", *maps, class_="panels"), caption)


def _types(report: RunReport) -> Markup:
    def pair(row: TypeRow, get: Callable[[TypeScores], float | None], show: Show, label: str):
        cells = []
        for when, scores, class_ in (
            ("before", row.before, "n first"),
            ("after", row.after, "n"),
        ):
            value = None if scores is None else get(scores)
            shown = _DASH if value is None else show(value)
            cells.append(element("td", shown, class_=class_, data_label=f"{label}, {when}"))
        return cells

    columns = [
        (report.answer_metric, "%", lambda s: s.answer, scales.percent),
        ("Set F1", "%", lambda s: s.set_f1, scales.percent),
        ("Mean k", "passages", lambda s: s.mean_k, scales.passages),
    ]
    top = element(
        "tr",
        element("th", "Type", rowspan=2, scope="col"),
        element("th", "Questions", rowspan=2, class_="n", scope="col"),
        element("th", "Needed k", rowspan=2, class_="n", scope="col"),
        *(element("th", name, " ", element("small", unit), colspan=2, class_="n", scope="colgroup")
          for name, unit, _, _ in columns),
    )  # fmt: skip
    below = element(
        "tr",
        *(
            element("th", element("small", when), class_="n", scope="col")
            for _ in columns
            for when in ("before", "after")
        ),
    )
    rows = []
    for row in report.types:
        needed = _DASH if row.needed_k is None else scales.passages(row.needed_k)
        cells = [
            element("td", f"{row.questions:,}", class_="n", data_label="Questions"),
            element("td", needed, class_="n", data_label="Needed k"),
        ]
        for name, _, get, show in columns:
            cells += pair(row, get, show, name)
        rows.append(element("tr", element("th", row.name, scope="row"), *cells))
    return element("table", element("thead", top, below), element("tbody", *rows), class_="stack")


# ---------------------------------------------------------------------------- the run


def _curves(report: RunReport) -> Markup:
    panels = (element("figure", line_panel(curve)) for curve in report.curves)
    smoothed = any(len(curve.steps) > 150 for curve in report.curves)
    said = "Lines are moving averages; the values themselves stand faint behind them."
    caption = element("p", said, class_="caption") if smoothed else None
    return join(element("div", *panels, class_="panels"), caption)


def _facts(report: RunReport) -> Markup:
    f = report.facts
    total = sum(f.seconds.values())
    pairs: list[tuple[str, Markup | str | None]] = [
        ("Command", element("code", f.command) if f.command else None),
        ("Configuration", f.config),
        ("Seed", str(f.seed)),
        ("Questions evaluated", f"{f.questions:,}"),
        ("Candidate passages", None if f.candidates is None else f"{f.candidates} per question"),
        ("Reward", f.reward or None),
        ("Time", scales.duration(total) if f.seconds else None),
        (
            "Peak memory",
            None if f.peak_memory_bytes is None else scales.memory(f.peak_memory_bytes),
        ),
        ("Versions", ", ".join(f"{k} {v}" for k, v in f.versions.items()) or None),
    ]
    items = (join(element("dt", k), element("dd", v)) for k, v in pairs if v is not None)
    listed = element("dl", *items, class_="facts")
    if not f.seconds:
        return listed
    longest = max([*f.seconds.values(), 1e-9])
    rows = [
        element("tr", element("th", stage, scope="row"),
                element("td", scales.duration(seconds), class_="n"),
                element("td", element("span", class_="stage-bar",
                                      style=f"width:{max(100 * seconds / longest, 0):.1f}%"),
                        class_="bar-cell"))
        for stage, seconds in f.seconds.items()
    ]  # fmt: skip
    head = element(
        "tr", element("th", "Stage"), element("th", "Time", class_="n"), element("th", "")
    )
    return join(listed, element("table", element("thead", head), element("tbody", *rows)))


# ---------------------------------------------------------------------------- the whole


def render(report: RunReport) -> str:
    """The page as one HTML document."""
    count = len(report.examples)
    named = {1: "One question", 10: "Ten questions"}.get(count, f"{count} questions")
    cards = (example_card(i, e) for i, e in enumerate(report.examples, 1))
    sections: list[tuple[str, str, Markup | None]] = [
        ("guide", "How to read this page", guide(report)),
        ("systems", "Answers against passages read", _systems(report)),
        (
            "k",
            "How many passages: chosen against needed",
            _matrices(report)
            if any(m and m.counts for m in (report.k_before, report.k_after))
            else None,
        ),
        ("types", "By type of question", _types(report) if report.types else None),
        ("curves", "Training", _curves(report) if report.curves else None),
        ("examples", f"{named} in full", join(*cards) if count else None),
        ("run", "The run", _facts(report)),
    ]
    present = [(key, title, body) for key, title, body in sections if body is not None]
    links = (element("a", title, href=f"#{key}") for key, title, _ in present)
    body = element(
        "body",
        element(
            "header",
            element("p", f"Run report · {report.facts.config} · seed {report.facts.seed}",
                    class_="eyebrow"),
            element("h1", report.title),
            _lede(report),
            *(element("p", note, class_="note") for note in report.notes),
            _tiles(report),
            element("nav", *links, aria_label="Sections"),
        ),
        element(
            "main",
            *(element("section", element("h2", title), inner, id=key)
              for key, title, inner in present),
        ),
        element("footer", "This page is one file: no scripts, nothing loaded from elsewhere."),
    )  # fmt: skip
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'),
        element("title", report.title),
        element("style", Markup(SHEET)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def write_report(path: PathLike, report: RunReport) -> None:
    """Write the page, atomically."""
    with atomic_write(path) as stream:
        stream.write(render(report))
