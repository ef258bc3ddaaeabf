"""The questions shown in full: passages, lists sampled, what each policy chose."""

from __future__ import annotations

from collections.abc import Sequence

from dynarag_jax.prompts import format_list
from dynarag_jax.report.markup import Markup, element, join
from dynarag_jax.report.schema import Choice, Example, SampledList, ShownPassage

_UNFOLDED = 1500
"""Characters of passages neither needed nor chosen that are shown without a click."""


def _ids(ids: Sequence[int]) -> Markup:
    many = " many" if len(ids) > 6 else ""
    return element("code", format_list(tuple(ids)), class_=f"ids{many}")


def _answer(text: str) -> Markup:
    shown = element("span", text, dir="auto")
    return shown if text.strip() else element("em", "no answer")


def _passage(passage: ShownPassage, rank: int | None) -> Markup:
    tags = []
    if passage.needed:
        tags.append(element("span", "needed", class_="tag needed"))
    if rank is not None:
        tags.append(element("span", f"chosen {rank}", class_="tag chosen"))
    title = join(element("b", passage.title, dir="auto"), " ") if passage.title else Markup()
    classes = " ".join(
        c for c, on in (("needed", passage.needed), ("chosen", rank is not None)) if on
    )
    return element(
        "li", element("span", f"[{passage.number}]", class_="num"), " ", title,
        element("span", passage.text, dir="auto"), *tags, class_=classes or None,
    )  # fmt: skip


def _passages(example: Example) -> Markup:
    final = tuple(example.choices[-1].list) if example.choices else ()
    ranks = {number: rank for rank, number in enumerate(final, 1)}
    aside = [p for p in example.passages if not p.needed and p.number not in ranks]
    fold = sum(len(p.text) for p in aside) > _UNFOLDED
    if not example.passages:
        return element("p", "No passages.", class_="meta")
    if not fold:
        items = (_passage(p, ranks.get(p.number)) for p in example.passages)
        return element("ol", *items, class_="passages")
    main = [p for p in example.passages if p.needed or p.number in ranks]
    opened = element("ol", *(_passage(p, ranks.get(p.number)) for p in main), class_="passages")
    rest = element("ol", *(_passage(p, None) for p in aside), class_="passages")
    summary = element("summary", f"{len(aside)} passages neither needed nor chosen")
    return join(opened if main else Markup(), element("details", summary, rest))


def _choices(choices: Sequence[Choice]) -> Markup:
    rows = []
    for choice in choices:
        verdict = Markup()
        if choice.right is not None:
            word, class_ = ("✓ right", "right") if choice.right else ("✗ wrong", "wrong")
            verdict = join(" ", element("span", word, class_=class_))
        rows.append(
            element("tr", element("th", choice.name, scope="row"), element("td", _ids(choice.list)),
                    element("td", _answer(choice.answer), verdict))
        )  # fmt: skip
    head = element(
        "thead", element("tr", *(element("th", h) for h in ("Policy", "List", "Answer")))
    )
    return element("table", head, element("tbody", *rows))


def _terms(sampled: SampledList) -> Markup:
    said = (f"{name} {value:.3g}" for name, value in sampled.terms.items())
    return join(*(element("span", term, class_="term") for term in said))


def _sampled(lists: Sequence[SampledList]) -> Markup:
    best_first = sorted(lists, key=lambda s: (-s.reward, -s.count))
    rows = [
        element("tr", element("td", f"{s.count}×", class_="n"), element("td", _ids(s.list)),
                element("td", _answer(s.answer)),
                element("td", f"{s.reward:.3f}", _terms(s), class_="n"))
        for s in best_first
    ]  # fmt: skip
    names = (("Times", "n"), ("List", None), ("Answer", None), ("Reward", "n"))
    head = element("tr", *(element("th", name, class_=class_) for name, class_ in names))
    return element("table", element("thead", head), element("tbody", *rows))


def example_card(number: int, example: Example) -> Markup:
    """One question with its passages on one side, lists and answers on the other."""
    meta = " · ".join(part for part in (f"{number}", example.type, example.id) if part)
    golds = (
        element("bdi", " | ".join(example.answers)) if example.answers else element("em", "unknown")
    )
    right = []
    if example.choices:
        right += [element("h4", "What each policy chose"), _choices(example.choices)]
    if example.sampled:
        total = sum(s.count for s in example.sampled)
        right += [
            element("h4", f"{total} lists sampled for feedback, best reward first"),
            _sampled(example.sampled),
        ]
    if not right:
        right = [element("p", "No list was recorded for this question.", class_="meta")]
    left = [element("h4", "Passages, in the order of the search"), _passages(example)]
    return element(
        "article",
        element("div", meta, class_="meta"),
        element("h3", example.question, dir="auto"),
        element("p", "Reference answer: ", golds, class_="gold"),
        element("div", element("div", *left), element("div", *right), class_="sides"),
        class_="card",
    )
