"""What the DynamicRAG paper reports, and what stands between its numbers and a run's.

Numbers are those of arXiv 2505.07233 (NeurIPS 2025) with LLaMA-3-8B, in percent as printed there:
the main table, and the ablation for the row without retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dynarag_jax.evaluation.summary import Summary
from dynarag_jax.evaluation.tables import interval, markdown, shown

SOURCE = "DynamicRAG, arXiv 2505.07233, LLaMA-3-8B"

Kind = Literal["model", "none", "top-k", "static", "oracle", "other"]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "nq": ("em",),
    "triviaqa": ("em", "acc"),
    "hotpotqa": ("em",),
    "2wikimultihopqa": ("em",),
    "asqa": ("str_em",),
    "fever": ("accuracy",),
    "eli5": ("rouge_l",),
}
"""The paper's table: dataset -> its metrics, by this library's names. What the paper calls EM of
ASQA is STR-EM; it does not say which ROUGE-L it uses."""


@dataclass(frozen=True)
class Reported:
    """One row of the paper's table.

    Attributes:
      name: as the paper calls it.
      kind: which systems of a run it stands beside.
      numbers: dataset -> metric -> percent; what the paper leaves out is left out.
    """

    name: str
    kind: Kind
    numbers: Mapping[str, Mapping[str, float]]


def _row(name: str, kind: Kind, numbers: Sequence[float | None]) -> Reported:
    cells = [(dataset, metric) for dataset, metrics in COLUMNS.items() for metric in metrics]
    by_dataset: dict[str, dict[str, float]] = {}
    for (dataset, metric), value in zip(cells, numbers, strict=True):
        if value is not None:
            by_dataset.setdefault(dataset, {})[metric] = value
    return Reported(name, kind, by_dataset)


REPORTED: tuple[Reported, ...] = (
    #                       NQ  Trivia EM, Acc  Hotpot 2Wiki ASQA FEVER ELI5
    _row("no retrieval (ablation)", "none", (25.0, None, None, 25.6, None, 15.7, None, None)),
    _row("vanilla RAG", "top-k", (36.4, None, 57.4, 26.1, 24.6, 24.9, 34.6, 24.0)),
    _row("RAG + static reranker", "static", (37.5, None, 64.5, 28.7, 25.3, 29.8, 49.7, 23.7)),
    _row("SFT only", "other", (39.1, 67.5, 74.2, 31.5, 27.1, 46.8, 82.1, 22.9)),
    _row("RankRAG-8B", "other", (50.6, 82.9, 89.5, 35.3, 31.4, None, 93.8, None)),
    _row("DynamicRAG-8B", "model", (48.4, 78.3, 87.4, 36.7, 34.2, 56.3, 91.4, 24.6)),
)

QUESTIONS: Mapping[str, int] = {"nq": 3610, "hotpotqa": 7405}
"""Questions in the evaluation sets that the paper names, where their number is beyond doubt."""


@dataclass(frozen=True)
class Setup:
    """What a run's numbers depend on, as words; empty where nobody said."""

    model: str = ""
    parameters: str = ""
    training: str = ""
    retriever: str = ""
    candidates: str = ""
    lists: str = ""
    answers: str = ""
    scoring: str = ""


PAPER = Setup(
    model="LLaMA-3-8B",
    parameters="8B",
    training="150k examples: 20k behavior cloning, 100k generator SFT, 30k DPO",
    retriever="Contriever-MSMARCO over English Wikipedia of 2018 (psgs_w100, 21M passages)",
    candidates="45",
    lists="temperature 0.2, at most 15 passages",
    answers="greedy, 50 tokens (256 on ELI5)",
    scoring="not stated; what the released scripts print: --protocol released-code",
)

_WORDS: Mapping[str, str] = {
    "candidates": "candidates shown to the reranker",
    "lists": "how lists are written",
    "answers": "how answers are written",
}


def setup_table(ours: Setup, questions: Mapping[str, int]) -> str:
    """The paper's set-up beside a run's, a line each; lines that differ say so.

    Args:
      questions: of each dataset of the run.
    """
    rows = []
    for name, theirs in vars(PAPER).items():
        own = getattr(ours, name)
        rows.append([_WORDS.get(name, name), theirs, own or "not stated"])
    for dataset, count in questions.items():
        theirs = f"{QUESTIONS[dataset]:,}" if dataset in QUESTIONS else "not stated"
        rows.append([f"questions of {dataset}", theirs, f"{count:,}"])
    for row in rows:
        row.append("" if row[1] == row[2] else "differs" if "not stated" not in row else "?")
    return markdown(["", "paper", "this run", ""], rows)


def beside_the_paper(summaries: Sequence[Summary], kinds: Mapping[str, Kind]) -> str:
    """A run's systems and the paper's rows in one table, each system over its counterpart.

    Args:
      summaries: of all systems and datasets.
      kinds: what each system is; rows of the paper without a counterpart come last.
    """
    there = {(s.dataset, s.system): s for s in summaries}
    datasets = list(dict.fromkeys(s.dataset for s in summaries))
    columns = [
        (dataset, metric)
        for dataset in datasets
        for metric in COLUMNS.get(dataset, (_headline(summaries, dataset),))
    ]
    head = ["system", "source", *(f"{d} {shown(m)} %" for d, m in columns)]

    def ours(system: str) -> list[str]:
        cells = []
        for dataset, metric in columns:
            summary = there.get((dataset, system))
            cells.append(interval(metric, summary.figures.get(metric) if summary else None))
        return [system, "this run", *cells]

    def paper(row: Reported) -> list[str]:
        numbers = [row.numbers.get(d, {}).get(m) for d, m in columns]
        return [row.name, "paper", *("–" if n is None else f"{n:.1f}" for n in numbers)]

    lines: list[list[str]] = []
    order: tuple[Kind, ...] = ("none", "top-k", "static", "other", "model", "oracle")
    for kind in order:
        lines += [ours(system) for system, own in kinds.items() if own == kind]
        lines += [paper(row) for row in REPORTED if row.kind == kind]
    return markdown(head, lines)


def _headline(summaries: Sequence[Summary], dataset: str) -> str:
    return next(s.headline for s in summaries if s.dataset == dataset)
