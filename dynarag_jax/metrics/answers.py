"""Answer metrics: exact match, F1, containment, STR-EM, label accuracy; ROUGE is in ``rouge``.

Every function takes one prediction and its references and returns a score in [0, 1], the maximum
over the references. A blank prediction scores 0, and so does a question without references, so
that no question ever leaves the denominator.

Normalizers map text to text. ``normalize`` is SQuAD's (Rajpurkar et al. 2016), which NQ-open,
HotpotQA, 2WikiMultihopQA and ASQA use too; ``normalize_trivia`` is TriviaQA's (Joshi et al. 2017);
others are in ``normalizers``.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.metrics.normalizers import Normalizer
from dynarag_jax.metrics.normalizers import normalize as normalize
from dynarag_jax.metrics.normalizers import normalize_trivia as normalize_trivia
from dynarag_jax.metrics.rouge import rouge_l as rouge_l
from dynarag_jax.metrics.rouge import rouge_lsum as rouge_lsum

# ---------------------------------------------------------------------------- short answers


def exact_match(
    prediction: str, answers: Iterable[str], normalizer: Normalizer = normalize
) -> float:
    """1.0 if the normalized prediction equals some normalized answer, else 0.0.

    A few published answers are punctuation or articles only (``)``, ``The``) and normalize to
    nothing. A prediction that has text may match them so, as in the official script; a blank one
    may not, and a blank answer matches nothing.
    """
    if not prediction.strip():
        return 0.0
    wanted = normalizer(prediction)
    return float(any(normalizer(answer) == wanted for answer in answers if answer.strip()))


_CLOSED = frozenset({"yes", "no", "noanswer"})


def f1(
    prediction: str,
    answers: Iterable[str],
    normalizer: Normalizer = normalize,
    *,
    closed_rule: bool = True,
) -> float:
    """Token F1 between the normalized prediction and the best normalized answer.

    With ``closed_rule`` (HotpotQA, Yang et al. 2018) a yes/no/noanswer on either side scores 0
    unless both sides are the same; without it the score is SQuAD's. Where neither side has a token
    left, the score is 1 if the prediction is not blank (SQuAD 2.0).
    """
    if not prediction.strip():
        return 0.0
    text = normalizer(prediction)
    tokens = text.split()
    counts = Counter(tokens)
    best = 0.0
    for answer in answers:
        gold_text = normalizer(answer)
        if closed_rule and gold_text != text and (text in _CLOSED or gold_text in _CLOSED):
            continue
        gold = gold_text.split()
        if not tokens or not gold:
            best = max(best, float(tokens == gold and answer.strip() != ""))
            continue
        shared = sum((counts & Counter(gold)).values())
        best = max(best, 2 * shared / (len(tokens) + len(gold)))
    return best


def containment(
    prediction: str, answers: Iterable[str], normalizer: Normalizer = normalize
) -> float:
    """1.0 if some normalized answer is a substring of the normalized prediction ("Acc").

    An answer that normalizes to nothing is inside every text and therefore counts as inside none.
    """
    text = normalizer(prediction)
    return float(any((a := normalizer(answer)) != "" and a in text for answer in answers))


def str_em(
    prediction: str,
    short_answers: Sequence[Sequence[str]],
    normalizer: Normalizer = normalize,
) -> float:
    """ASQA's STR-EM (Stelmakh et al. 2022): the share of QA pairs that the prediction answers.

    Args:
      prediction: the long answer.
      short_answers: for each QA pair of the question its acceptable short answers. Pairs are kept
        apart: one found answer settles its own pair only.
    """
    if not short_answers:
        return 0.0
    contained = (containment(prediction, pair, normalizer) for pair in short_answers)
    return sum(contained) / len(short_answers)


def str_hit(
    prediction: str,
    short_answers: Sequence[Sequence[str]],
    normalizer: Normalizer = normalize,
) -> float:
    """1.0 if the prediction answers every QA pair, else 0.0 (ALCE, Gao et al. 2023)."""
    return float(bool(short_answers) and str_em(prediction, short_answers, normalizer) == 1.0)


# ---------------------------------------------------------------------------- labels

FEVER_LABELS: Mapping[str, tuple[str, ...]] = {
    "SUPPORTS": ("supports", "supported", "support"),
    "REFUTES": ("refutes", "refuted", "refute"),
    "NOT ENOUGH INFO": ("not enough info", "not enough information", "nei"),
}
"""FEVER's labels (Thorne et al. 2018) and the spellings read as each."""

_NEGATION = r"(?:not|never|neither|cannot|\w+n['’]t)(?:\s+\w+)?\s+"


def _any_of(spellings: Iterable[str]) -> str:
    words = "|".join(re.escape(s) for s in sorted(spellings, key=len, reverse=True))
    return rf"(?<!\w)(?:{words})(?!\w)"


@functools.cache
def _label_pattern(spellings: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"({_NEGATION})?{_any_of(spellings)}", re.IGNORECASE)


@functools.cache
def _infinitive(spellings: tuple[str, ...]) -> re.Pattern[str]:
    """``to support or refute``: what evidence is for, not a verdict."""
    word = _any_of(spellings)
    return re.compile(rf"\bto\s+{word}(?:\s+(?:or|and)\s+{word})*", re.IGNORECASE)


def parse_label(text: str, labels: Mapping[str, tuple[str, ...]] = FEVER_LABELS) -> str | None:
    """The class label that an answer states, or None if it states none or several.

    The first sentence that states a label decides, so that an explanation may follow. A sentence
    that states two labels, or one under a negation ("does not support"), is unparseable. An
    infinitive ("not enough info to support the claim") states nothing.
    """
    spellings = tuple(s for known in labels.values() for s in known)
    text = _infinitive(spellings).sub(" ", text.replace("_", " "))
    for sentence in re.split(r"[.!?;]\s+|\n", text):
        found: set[str] = set()
        # Labels of several words first: "not enough info" must not be taken apart.
        for label in sorted(labels, key=lambda name: -len(name)):
            for mention in _label_pattern(tuple(labels[label])).finditer(sentence):
                if mention[1]:
                    return None
                found.add(label)
            sentence = _label_pattern(tuple(labels[label])).sub(" ", sentence)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def label_accuracy(
    prediction: str,
    answers: Iterable[str],
    labels: Mapping[str, tuple[str, ...]] = FEVER_LABELS,
) -> float:
    """1.0 if the label stated by the prediction is a reference label; unparseable scores 0.0.

    Raises:
      InputError: a reference is not one of ``labels``.
    """
    gold = set()
    for answer in answers:
        label = parse_label(answer, labels)
        if label is None:
            hint = nearest(answer.upper(), labels)
            raise InputError(f"reference label '{answer}' is none of {', '.join(labels)}{hint}")
        gold.add(label)
    return float(parse_label(prediction, labels) in gold)
