"""Our metrics against what the benchmarks' own scripts said; see official/README.md."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dynarag_jax.metrics import released
from dynarag_jax.metrics.answers import normalize, normalize_trivia
from dynarag_jax.metrics.benchmarks import score_prediction
from dynarag_jax.records import Question

OFFICIAL = json.loads(
    gzip.decompress((Path(__file__).parent / "official/scores.json.gz").read_bytes())
)
SCORES = OFFICIAL["scores"]


def question(pair: dict, golds: int | None = None) -> Question:
    extra = {"qa_pairs": pair["short_answers"]} if "short_answers" in pair else {}
    return Question("q", "?", tuple(pair["answers"][:golds]), extra=extra)


def nothing_left(pair: dict, golds: int | None = None) -> bool:
    """Both sides are articles and punctuation only: F1 is ours to define (1, as in SQuAD 2.0)."""
    answers = pair["answers"][:golds]
    sides = [pair["prediction"], *answers]
    return any(
        not n(sides[0]) and any(not n(a) for a in answers) for n in (normalize, normalize_trivia)
    )


@pytest.mark.parametrize("dataset", ["hotpotqa", "2wikimultihopqa", "triviaqa", "musique"])
def test_short_answers_equal_the_benchmarks_own_script(dataset):
    golds = 1 if dataset == "hotpotqa" else None
    compared = 0
    for pair, em, f1 in zip(
        OFFICIAL["short"], SCORES[f"{dataset}/em"], SCORES[f"{dataset}/f1"], strict=True
    ):
        if not pair["prediction"].strip() or nothing_left(pair, golds):
            continue
        ours = score_prediction(question(pair, golds), pair["prediction"], dataset)
        assert ours["em"] == em, pair
        assert ours["f1"] == pytest.approx(f1, abs=1e-6), pair
        compared += 1
    assert compared > 2350


def test_str_em_equals_alce():
    compared = 0
    for pair, em, hit in zip(
        OFFICIAL["long"], SCORES["asqa/str_em"], SCORES["asqa/str_hit"], strict=True
    ):
        # The script finds an answer of articles and punctuation inside any text, ours in none.
        if not all(normalize(text) for texts in pair["short_answers"] for text in texts):
            continue
        ours = score_prediction(question(pair), pair["prediction"], "asqa")
        assert ours["str_em"] == pytest.approx(em, abs=1e-6), pair
        assert ours["str_hit"] == hit
        compared += 1
    assert compared > 350


def test_asqa_rouge_equals_alce():
    for pair, theirs in zip(OFFICIAL["long"], SCORES["asqa/rouge_lsum"], strict=False):
        ours = score_prediction(question(pair), pair["prediction"], "asqa")["rouge_lsum"]
        assert ours == pytest.approx(theirs, abs=1e-6), pair


def test_eli5_rouge_equals_kilt():
    for pair, theirs in zip(OFFICIAL["long"], SCORES["eli5/rouge_l_kilt"], strict=True):
        ours = score_prediction(question(pair), pair["prediction"], "eli5")["rouge_l_kilt"]
        assert ours == pytest.approx(theirs, abs=1e-6), pair


@pytest.mark.parametrize("metric", ["match", "em", "f1"])
def test_the_released_protocol_reproduces_the_released_script(metric):
    differs = 0
    for pair, theirs in zip(OFFICIAL["short"], SCORES[f"released/{metric}"], strict=True):
        ours = released.score_prediction(question(pair), pair["prediction"], metric=metric)
        assert ours == pytest.approx(theirs, abs=1e-6), pair
        right = score_prediction(question(pair), pair["prediction"], "nq")
        differs += theirs != right["f1" if metric == "f1" else "em"]
    assert differs > (0 if metric == "em" else 100)  # it is wrong on purpose


def test_the_released_rouge_reproduces_the_released_script():
    for pair, theirs in zip(OFFICIAL["long"], SCORES["released/rouge"], strict=True):
        if pair["prediction"].strip(" ."):
            ours = released.score_prediction(question(pair), pair["prediction"], metric="rouge")
            assert ours == pytest.approx(theirs, abs=1e-6), pair
