"""Answer metrics against torchmetrics' SQuAD evaluator, rouge-score and cases worked by hand."""

import gzip
import json
import random
import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from torchmetrics.functional.text import squad

from dynarag_jax.errors import InputError
from dynarag_jax.metrics import answers as m

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

ODDITIES = (
    "the a an The AN Theatre paris Paris, PARIS France's yes no noanswer No. 1,000 $5 U.S. "
    "‘quoted’ `tick` under_score Café naïve — – … ١٢ 東京 the-end a.b.c runs running nationality "
    "\t \n ''  İstanbul straße ǅ"
)
WORDS = ODDITIES.split(" ")
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=8).map(" ".join)
golds = st.lists(texts, max_size=3)


def perturbed(seed: int, count: int) -> list[tuple[str, list[str]]]:
    """Predictions made from their references by losing, doubling, swapping, respelling words."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        answers = [" ".join(rng.choices(WORDS, k=rng.randint(0, 6))) for _ in range(3)]
        words = rng.choice(answers).split(" ")
        for _ in range(rng.randint(0, 3)):
            i = rng.randrange(len(words) + 1)
            words[i : i + rng.randint(0, 1)] = rng.choices(WORDS, k=rng.randint(0, 2))
        text = " ".join(words)
        text = rng.choice([str.upper, str.lower, str.title, str])(text)
        pairs.append((text, answers))
    return pairs


def official(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1 by torchmetrics, which follows the official SQuAD script."""
    target = {"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "1"}
    found = squad({"prediction_text": prediction, "id": "1"}, target)
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100


def test_exact_match_and_f1_equal_the_squad_evaluator():
    right = partial = 0
    for prediction, answers in perturbed(seed=0, count=3000):
        if not prediction.strip() or not all(a.strip() for a in answers):
            continue  # a blank side is ours to define: it scores 0
        em, f1 = official(prediction, answers)
        assert m.exact_match(prediction, answers) == em, (prediction, answers)
        assert m.f1(prediction, answers, closed_rule=False) == pytest.approx(f1, abs=1e-6)
        right += em == 1
        partial += 0 < f1 < 1
    assert right > 300 and partial > 300  # the pairs exercise both


@pytest.mark.skipif(
    not (DATA / "NQ-open.dev.jsonl.gz").exists(), reason="needs ../shared/data/NQ-open.dev.jsonl.gz"
)
def test_exact_match_on_real_answers_equals_the_squad_evaluator():
    rng = random.Random(1)
    with gzip.open(DATA / "NQ-open.dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = rng.sample([json.loads(line)["answer"] for line in lines], 500)
    for answers in rows:
        prediction = "the " + rng.choice(answers).upper() + rng.choice([".", "", " x"])
        em, f1 = official(prediction, answers)
        assert m.exact_match(prediction, answers) == em
        assert m.f1(prediction, answers, closed_rule=False) == pytest.approx(f1, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("a.n apple", "apple"),  # punctuation goes before the articles: "a.n" is then "an"
        ("theatre and another", "theatre and another"),
        ("U.S.A.", "usa"),
        ("rock-n-roll", "rocknroll"),
        ("  a \t the\n", ""),
        ("It’s", "it’s"),  # only ASCII punctuation is deleted
    ],
)
def test_squad_normalizer(text, normal):
    assert m.normalize(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The_Beatles", "beatles"),
        ("rock-n-roll", "rock n roll"),
        ("It’s `a` ´test´", "it s test"),
        ("U.S.A.", "u s"),  # the lone "a" is then an article
    ],
)
def test_trivia_normalizer_puts_spaces(text, normal):
    assert m.normalize_trivia(text) == normal


@given(st.text(alphabet=string.printable + "‘’´éİß", max_size=40))
def test_normalizers_follow_their_definition(text):
    """The definition, letter by letter, with the articles dropped as whole words by hand."""
    for normalizer, blank in ((m.normalize, ""), (m.normalize_trivia, " ")):
        marks = set(string.punctuation) | (set("‘’´`") if blank else set())
        cleaned = "".join(blank if c in marks else c for c in text.lower())
        words = re.split(r"(\w+)", cleaned)
        kept = "".join(" " if w in ("a", "an", "the") else w for w in words)
        assert normalizer(text) == " ".join(kept.split())
        assert normalizer(normalizer(text)) == normalizer(text)


def test_blank_predictions_score_zero():
    """The released code tests the prediction inside the reference, so that blank scores 1."""
    for blank in ("", "  ", "\n"):
        for answers in (["Paris"], [""], ["the"], [")"], []):
            assert m.exact_match(".", [blank]) == m.f1(".", [blank]) == 0
            assert m.exact_match(blank, answers) == 0
            assert m.f1(blank, answers) == 0
            assert m.containment(blank, answers) == 0
            assert m.rouge_l(blank, answers) == 0
            assert m.rouge_lsum(blank, answers) == 0
            assert m.str_em(blank, [answers]) == 0


def test_a_reference_of_punctuation_can_be_matched_but_is_not_contained():
    assert m.exact_match("*", ["*"]) == 1 == m.f1("*", ["*"])
    assert m.containment("anything at all", ["*", "the"]) == 0


def test_a_question_without_references_scores_zero():
    assert m.exact_match("Paris", []) == m.f1("Paris", []) == m.rouge_lsum("Paris", []) == 0
    assert m.containment("Paris", []) == m.rouge_l("Paris", []) == m.str_em("Paris", []) == 0
    assert m.label_accuracy("SUPPORTS", []) == 0


def test_f1_counts_tokens_not_characters():
    """The released F1 zips characters; "abcd" and "abxx" share no token."""
    assert m.f1("abcd", ["abxx"]) == 0
    assert m.f1("new york city", ["york"]) == pytest.approx(2 * (1 / 3) / (1 + 1 / 3))
    assert m.f1("york york", ["york"]) == pytest.approx(2 * 0.5 * 1 / 1.5)  # counted once


def test_accuracy_is_not_of_first_letters():
    """The released accuracy compares first letters: "SAYS" would be "SUPPORTS"."""
    assert m.label_accuracy("SAYS so", ["SUPPORTS"]) == 0
    assert m.containment("Peru", ["Paris"]) == 0


def test_yes_no_rule():
    assert m.f1("no one", ["no"]) == 0 != m.f1("no one", ["no"], closed_rule=False)
    assert m.f1("no", ["no one"]) == 0 != m.f1("no", ["no one"], closed_rule=False)
    assert m.f1("yes it is", ["Yes."]) == 0
    assert m.f1("Yes!", ["yes"]) == 1
    assert m.f1("noanswer found", ["noanswer"]) == 0
    assert m.f1("no", ["yes", "No"]) == 1  # the maximum is over references, each by the rule


def test_containment_looks_one_way_only():
    """In the released reward "a" matches "Paris", since either may contain the other."""
    assert m.containment("the capital is Paris, of course", ["Paris"]) == 1
    assert m.containment("Par", ["Paris"]) == 0
    assert m.containment("It's rock n roll", ["rock-n-roll"], m.normalize_trivia) == 1
    assert m.containment("It's rock n roll", ["rock-n-roll"]) == 0


def test_str_em_keeps_the_pairs_apart():
    """The released ASQA score flattens all short answers into one list."""
    pairs = [["1969", "July 1969"], ["Neil Armstrong"], ["Apollo 11"], ["Eagle"]]
    assert m.str_em("Armstrong flew in 1969", pairs) == 0.25
    assert m.str_em("neil armstrong landed the Eagle in July 1969 (Apollo 11)", pairs) == 1
    assert m.str_em("", pairs) == 0


@given(texts, golds)
def test_scores_lie_in_the_unit_interval_and_agree_with_one_another(prediction, answers):
    em, f1 = m.exact_match(prediction, answers), m.f1(prediction, answers)
    assert em in (0, 1) and 0 <= f1 <= 1 and f1 >= em
    for normalizer in (m.normalize, m.normalize_trivia):
        inside = m.containment(prediction, answers, normalizer)
        assert inside in (0, 1)
    assert m.exact_match(prediction, answers[::-1]) == em
    assert m.f1(prediction, answers[::-1]) == f1
    assert m.f1(prediction, [*answers, "other"]) >= f1
    if prediction.strip():
        assert m.exact_match(f" {prediction} .", answers) == em


# ---------------------------------------------------------------------------- ROUGE

ORDINARY = (
    "the cat sat on a mat while running dogs ran quickly past nationally known generalizations . , "
    "dying dies happily ever-after ponies skies succeeded proceeding 42 3.14 Café news innings"
)
PROSE = ORDINARY.split()


def passages(seed: int, count: int, longest: int) -> list[str]:
    rng = random.Random(seed)
    made = [" ".join(rng.choices(PROSE, k=rng.randint(0, longest))) for _ in range(count)]
    return [re.sub(r" \. ", lambda _: rng.choice([".\n", ". "]), text) for text in made]


def test_rouge_l_equals_the_package():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    middling = 0
    for a, b in zip(passages(2, 400, 60), passages(3, 400, 60), strict=True):
        theirs = scorer.score(a, b)["rougeL"].fmeasure
        assert m.rouge_l(b, [a]) == pytest.approx(theirs, abs=1e-12)
        middling += 0.05 < theirs < 0.95
    assert middling > 300


def test_rouge_lsum_equals_the_package_with_the_arguments_in_its_order():
    """The released code swaps reference and prediction; summary-level LCS feels it."""
    scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=True)
    swapped = 0
    for a, b, c in zip(passages(4, 60, 40), passages(5, 60, 40), passages(6, 60, 40), strict=True):
        theirs = scorer.score_multi([a, c], b)["rougeLsum"].fmeasure
        assert m.rouge_lsum(b, [a, c]) == theirs
        swapped += max(scorer.score(b, r)["rougeLsum"].fmeasure for r in (a, c)) != theirs
    assert swapped > 0


@settings(max_examples=60, deadline=None)
@given(texts, golds)
def test_rouge_l_is_the_best_reference_by_the_package(prediction, references):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(r, prediction)["rougeL"].fmeasure for r in references]
    assert m.rouge_l(prediction, references) == pytest.approx(max(scores, default=0), abs=1e-12)


# ---------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("SUPPORTS", "SUPPORTS"),
        ("Supported.", "SUPPORTS"),
        ("label: refutes", "REFUTES"),
        ("The claim is REFUTED by passage [2].", "REFUTES"),
        ("NOT ENOUGH INFO", "NOT ENOUGH INFO"),
        ("not_enough_info", "NOT ENOUGH INFO"),
        ("There is not enough information to support or refute the claim.", "NOT ENOUGH INFO"),
        ("SUPPORTS. No passage refutes it.", "SUPPORTS"),
        ("REFUTES\nThe passages support another year.", "REFUTES"),
        ("SUPPORTS or REFUTES", None),
        ("SUPPORTS / REFUTES / NOT ENOUGH INFO", None),
        ("The passage does not support the claim", None),
        ("It doesn't fully support this", None),
        ("insupportable, unrefuted", None),
        ("", None),
        ("I cannot tell", None),
    ],
)
def test_fever_labels(text, label):
    assert m.parse_label(text) == label
    for gold in m.FEVER_LABELS:
        assert m.label_accuracy(text, [gold]) == (label == gold)


def test_an_unknown_reference_label_is_an_input_error():
    with pytest.raises(InputError, match=r"'SUPORTS' is none of SUPPORTS.*did you mean 'SUPPORTS'"):
        m.label_accuracy("SUPPORTS", ["SUPORTS"])
