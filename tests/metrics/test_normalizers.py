"""Answers in other scripts: MLQA's rules rebuilt from their description, Unicode's by example."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.metrics import answers as m
from dynarag_jax.metrics.benchmarks import score_prediction
from dynarag_jax.metrics.normalizers import (
    MLQA_ARTICLES,
    MetricsConfig,
    normalize_mlqa,
    normalize_unicode,
)
from dynarag_jax.records import Question

ARTICLES = {
    "de": "ein eine einen einem eines einer der die das den dem des".split(),
    "en": "a an the".split(),
    "es": "un una unos unas el la los las".split(),
    "vi": "của là cái chiếc những".split(),
}
WORDS = "the a A das Der el la của là là. الكتاب ال 北京 是 市 東 भारत x-y «x» U.S. 。 ، ¿Qué?"
WORDS = [*WORDS.split(), "it's", "1,5", "straße"]


def described(text: str, language: str) -> list[str]:
    """Tokens after MLQA's script: lower case, no punctuation, no articles, Chinese one by one."""
    text = regex.sub(r"[\p{P}$+<=>^`|~]", "", text.lower())
    if language == "ar":
        text = text.replace("ال", " ")
    for article in ARTICLES.get(language, ()):
        text = regex.sub(rf"(?<!\w){article}(?!\w)", " ", text)
    if language == "zh":
        text = "".join(f" {c} " if "一" <= c <= "龥" else c for c in text)
    return text.split()


@pytest.mark.parametrize("language", sorted(MLQA_ARTICLES))
@given(words=st.lists(st.sampled_from(WORDS), max_size=6), joint=st.sampled_from(["", " ", "  "]))
def test_mlqa_normalizes_as_its_script(language: str, words: list[str], joint: str):
    text = joint.join(words)
    assert normalize_mlqa(text, language).split() == described(text, language)


@given(st.lists(st.sampled_from(WORDS), max_size=5), st.lists(st.sampled_from(WORDS), max_size=5))
def test_mlqa_scores_as_its_script(answer: list[str], gold: list[str]):
    question = Question("q", "?", (" ".join(gold),), extra={"language": "zh"})
    rules = MetricsConfig("mlqa").normalizer(question)
    found = score_prediction(question, " ".join(answer), "squad", rules)
    ours, theirs = described(" ".join(answer), "zh"), described(" ".join(gold), "zh")
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if ours and theirs:
        assert found["em"] == (ours == theirs)
        assert found["f1"] == pytest.approx(2 * shared / (len(ours) + len(theirs)))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("「東京タワー」です。", "東 京 タ ワ ー で す"),
        ("ﾊﾟﾘ", "パ リ"),  # half-width kana and its mark are one character
        ("กรุงเทพฯ", "ก รุ ง เ ท พ ฯ"),
        ("The Straße, ½ Ⅳ", "the strasse 1⁄2 iv"),
        ("¿Qué? «école»", "qué école"),
        ("2002–2003", "20022003"),
        ("دُبَيّ،", "دُبَيّ"),
        ("x\u3000y", "x y"),
    ],
)
def test_unicode_normalizes_any_script(text: str, tokens: str):
    assert normalize_unicode(text) == tokens


@given(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40))
def test_unicode_is_one_form_of_equal_texts(text: str):
    once = normalize_unicode(text)
    assert normalize_unicode(once) == once
    assert normalize_unicode(unicodedata.normalize("NFD", text)) == once
    assert not any(unicodedata.category(c).startswith("P") for c in once)


def test_other_rules_change_what_counts_as_the_same():
    question = Question("q", "?", ("北京市",), extra={"language": "zh"})
    assert score_prediction(question, "北京", "nq") == {"em": 0, "f1": 0, "containment": 0}
    for rules in ("unicode", "mlqa"):
        found = score_prediction(question, "北京", "nq", MetricsConfig(rules).normalizer(question))
        assert found == {"em": 0, "f1": pytest.approx(4 / 5), "containment": 0}
    ideographs = Question("q", "?", ("東京タワー",))
    unicode = MetricsConfig("unicode").normalizer(ideographs)
    assert score_prediction(ideographs, "「東京タワー」。", "nq", unicode)["em"] == 1
    assert MetricsConfig().normalizer(ideographs) is None
    pairs = [["東京"], ["京都"]]
    assert m.str_em("東京と京都。", pairs, normalize_unicode) == 1


def test_rules_that_cannot_be_followed_are_named():
    with pytest.raises(InputError, match=r"no rules for language 'ja'; it has ar, de, en"):
        MetricsConfig("mlqa", "ja")
    with pytest.raises(InputError, match="question 'q': MLQA's rules need its field 'language'"):
        MetricsConfig("mlqa").normalizer(Question("q", "?"))
    with pytest.raises(InputError, match="has no effect on 'unicode'"):
        MetricsConfig("unicode", "de")
    assert MetricsConfig().note() == "" and "Unicode" in MetricsConfig("unicode").note()
