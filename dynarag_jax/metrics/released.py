"""Wrong on purpose: how the code released with DynamicRAG scores, for comparison with its numbers.

Nothing here measures what its name says. Each function reproduces, from a description of its
behavior, one metric of the released evaluation (GasolSun36/DynamicRAG, commit be08b2a) with its
mistakes, so that a reader can tell how much of a difference they make. ``benchmarks`` is the
protocol that is right.

The mistakes: ``match`` looks for the prediction *inside* the reference, so that an empty one is
always right and a longer one never is; ``accuracy`` compares first letters; ``f1`` pairs the
prediction's letters with the references, one by one; ROUGE is given reference and prediction in
each other's places, and a blank reference ends the search; all short answers of an ASQA question
are one list, any of which will do; questions that failed or have no answers leave the denominator;
and a file belongs to ASQA if its path contains "asqa".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.metrics.answers import normalize
from dynarag_jax.metrics.benchmarks import metrics_of, short_answers
from dynarag_jax.metrics.rouge import package_rouge_l
from dynarag_jax.records import Question

MARK = "released-code: wrong on purpose"
"""What stands beside every number of this module."""


def match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the lower-cased prediction is inside some lower-cased reference; ``""`` always is."""
    text = prediction.replace("\n", "").strip().lower()
    return float(any(text in reference.lower() for reference in references))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Exact match, the one metric that is right, but for blank predictions: equal if both blank."""
    return float(any(normalize(prediction) == normalize(r) for r in references))


def first_letter(prediction: str, references: Sequence[str]) -> float:
    """``accuracy``: 1.0 if prediction and first reference begin with the same letter.

    The released script ends with an IndexError on a blank prediction or first reference; here that
    scores 0.
    """
    text = prediction.replace("\n", "").strip()
    return float(bool(text and references[0]) and text[0] == references[0][0])


def zipped_f1(prediction: str, references: Sequence[str]) -> float:
    """``f1``, in percent: letter i of the prediction against reference i; 0 where it says NaN."""

    def of_pair(letter: str, reference: str) -> float:
        given, gold = normalize(letter).split(), normalize(reference).split()
        shared = sum((Counter(given) & Counter(gold)).values())
        return 2 * shared / (len(given) + len(gold)) if shared else 0.0

    scores = [of_pair(a, b) for a, b in zip(prediction, references, strict=False)]
    return 100 * sum(scores) / len(scores) if scores else 0.0


def swapped_rouge(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L of the package ``rouge`` with the arguments swapped; 0 once a reference is empty.

    The released script ends with a ValueError where a side holds no sentence; here that scores 0.
    """
    best = 0.0
    if prediction:
        for reference in references:
            if reference == "":
                return 0.0
            best = max(best, package_rouge_l(reference, prediction))
    return best


METRICS = {
    "match": match,
    "em": exact_match,
    "accuracy": first_letter,
    "f1": zipped_f1,
    "rouge": swapped_rouge,
}
"""The metrics by the names of the released script's option."""


def metric_of(dataset: str, task: str = "short") -> str:
    """The released metric that the paper's number of a dataset can have come from.

    The one command in the release scores NQ by ``match``; ``accuracy`` fits the labels of FEVER and
    ``rouge`` ELI5. The release does not say which was used for the others: ``match`` is taken.
    """
    metrics_of(dataset, task)  # the dataset is one of those known
    if dataset == "fever" or (not dataset and task == "label"):
        return "accuracy"
    return "rouge" if dataset == "eli5" or (not dataset and task == "paragraph") else "match"


def references_of(question: Question, asqa: bool) -> list[str]:
    """A question's references; of ASQA all short answers of all its QA pairs in one list."""
    if asqa:
        return [text for pair in short_answers(question) for text in pair]
    return list(question.answers)


def score_prediction(
    question: Question, prediction: str | None, dataset: str = "", metric: str = ""
) -> float | None:
    """The released script's score of one prediction, or None where the question is dropped.

    Args:
      prediction: None for a question that failed (an id out of range, say): it is dropped.
      metric: a name of ``METRICS``; empty takes ``metric_of`` the dataset.
    """
    metric = metric or metric_of(dataset, question.task)
    if metric not in METRICS:
        hint = nearest(metric, METRICS)
        raise InputError(f"no released metric '{metric}'; known: {', '.join(METRICS)}{hint}")
    references = references_of(question, dataset == "asqa")
    if prediction is None or not references:
        return None
    return METRICS[metric](prediction, references)
