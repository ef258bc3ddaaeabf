"""ROUGE-L of KILT against the package rouge 1.0.1; the stemmed one is in test_answers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge import Rouge

from dynarag_jax.metrics.rouge import rouge_l, rouge_l_kilt, split_sentences

WORDS = "the The cat cats sat on a mat . .. x.y Dog, dog 3.14 \n runs ran ... Café x".split(" ")


def official(prediction: str, reference: str) -> float:
    """As KILT's evaluator calls it."""
    try:
        scores = Rouge(metrics=["rouge-l"]).get_scores(prediction, reference, avg=True)
    except ValueError:  # a side without a sentence
        return 0.0
    return scores["rouge-l"]["f"]


def test_kilt_rouge_equals_the_package():
    rng = random.Random(0)
    middling = empty = 0
    for _ in range(3000):
        prediction, *golds = (" ".join(rng.choices(WORDS, k=rng.randint(0, 25))) for _ in range(3))
        if not prediction.strip():
            continue
        theirs = max(official(prediction, gold) for gold in golds)
        assert rouge_l_kilt(prediction, golds) == pytest.approx(theirs, abs=1e-12)
        middling += 0.05 < theirs < 0.95
        empty += theirs == 0
    assert middling > 1000 and empty > 5


@given(st.text("ab .\n", max_size=40), st.text("ab .\n", max_size=40))
def test_kilt_rouge_equals_the_package_on_any_text(prediction, reference):
    theirs = official(prediction, reference) if prediction.strip() else 0.0
    assert rouge_l_kilt(prediction, [reference]) == pytest.approx(theirs, abs=1e-12)


def test_the_two_implementations_disagree():
    """Stems, punctuation and sets of words: which one was used belongs beside the number."""
    prediction, reference = "Cats run, cats run, cats run", "a cat runs"
    assert rouge_l(prediction, [reference]) == pytest.approx(2 * 2 / (6 + 3))
    assert rouge_l_kilt(prediction, [reference]) == 0


def test_kilt_rouge_survives_what_overflows_the_packages_recursion():
    long = " ".join(f"w{i}" for i in range(1200))
    with pytest.raises(RecursionError):
        official(long, long)
    assert rouge_l_kilt(long, [long]) == pytest.approx(1)


def test_blank_sides_score_zero():
    assert rouge_l_kilt("", ["a"]) == rouge_l_kilt(" \n", ["a", ""]) == 0
    assert rouge_l_kilt("a", []) == rouge_l_kilt("a", [""]) == rouge_l_kilt("...", ["a"]) == 0


def test_sentences():
    assert split_sentences("one two. three four? five!") == ("one two.", "three four?", "five!")
    assert split_sentences("") == ()
