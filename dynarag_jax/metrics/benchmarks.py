"""What each benchmark's authors count: the metrics of one prediction, by the benchmark's name.

The table is in `docs/metrics.md`; the metrics themselves are in ``answers`` and ``rouge``. Values
are in [0, 1]. A blank prediction scores 0 in all of them, so that a failed question can stay in the
denominator as the prediction ``""``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.metrics import answers as m
from dynarag_jax.metrics.normalizers import Normalizer
from dynarag_jax.metrics.rouge import rouge_l, rouge_l_kilt, rouge_lsum, split_sentences
from dynarag_jax.records import Question

Metric = Callable[[Question, str, Normalizer], float]
"""From a question, a prediction and how both are normalized to a score in [0, 1]."""


def short_answers(question: Question) -> list[list[str]]:
    """ASQA's short answers, a list for each QA pair, from the question's field ``qa_pairs``.

    Raises:
      InputError: the question has none, or they are something else than lists of strings.
    """
    pairs = question.extra.get("qa_pairs")
    if not isinstance(pairs, list) or not pairs:
        raise InputError(
            f"question '{question.id}': STR-EM needs its field 'qa_pairs', the short answers of "
            f"every QA pair as lists of strings; found {pairs!r}"
        )
    answers = []
    for i, pair in enumerate(pairs):
        texts = pair.get("short_answers") if isinstance(pair, dict) else pair
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"question '{question.id}': field 'qa_pairs[{i}]' must be a list of strings, "
                f"found {pair!r}"
            )
        answers.append(texts)
    return answers


def _em(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return m.exact_match(prediction, question.answers, normalizer)


def _squad_f1(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return m.f1(prediction, question.answers, normalizer, closed_rule=False)


def _hotpot_f1(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return m.f1(prediction, question.answers, normalizer)


def _containment(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return m.containment(prediction, question.answers, normalizer)


def _fever_accuracy(question: Question, prediction: str, normalizer: Normalizer) -> float:
    try:
        return m.label_accuracy(prediction, question.answers)
    except InputError as error:
        raise InputError(f"question '{question.id}': {error}") from None


def _label_accuracy(question: Question, prediction: str, normalizer: Normalizer) -> float:
    """FEVER's where the references are its labels; of other labels the exact match."""
    if all(m.parse_label(answer) is not None for answer in question.answers):
        return m.label_accuracy(prediction, question.answers)
    return m.exact_match(prediction, question.answers, normalizer)


def _str_em(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return m.str_em(prediction, short_answers(question), normalizer)


def _str_hit(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return m.str_hit(prediction, short_answers(question), normalizer)


def _rouge_l(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return rouge_l(prediction, question.answers)


def _rouge_l_kilt(question: Question, prediction: str, normalizer: Normalizer) -> float:
    return rouge_l_kilt(prediction, question.answers)


def _asqa_rouge(question: Question, prediction: str, normalizer: Normalizer) -> float:
    """On lower-cased sentences, one a line, as ASQA's script."""
    lines = ["\n".join(split_sentences(answer.lower())) for answer in question.answers]
    return rouge_lsum("\n".join(split_sentences(prediction.lower())), lines)


_SQUAD: Mapping[str, Metric] = {"em": _em, "f1": _squad_f1, "containment": _containment}
_HOTPOT: Mapping[str, Metric] = {"em": _em, "f1": _hotpot_f1, "containment": _containment}

BENCHMARKS: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {
        "nq": _SQUAD,
        "triviaqa": {"em": _em, "acc": _containment, "f1": _squad_f1},
        "hotpotqa": _HOTPOT,
        "2wikimultihopqa": _HOTPOT,
        "asqa": {"str_em": _str_em, "rouge_lsum": _asqa_rouge, "str_hit": _str_hit},
        "fever": {"accuracy": _fever_accuracy},
        "eli5": {"rouge_l": _rouge_l, "rouge_l_kilt": _rouge_l_kilt},
        "popqa": {"containment": _containment, "em": _em, "f1": _squad_f1},
        "musique": _SQUAD,
        "squad": _SQUAD,
    }
)
"""Dataset -> its metrics by name, the headline first."""

TASK_METRICS: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {
        "short": _SQUAD,
        "label": {"accuracy": _label_accuracy},
        "paragraph": {"rouge_l": _rouge_l, "f1": _squad_f1},
    }
)
"""Metrics of questions that belong to no named dataset, by the form of their answer."""

HEADLINE: dict[str, str] = {name: next(iter(found)) for name, found in BENCHMARKS.items()}
"""Dataset -> the metric that stands for it in a table of one number a dataset."""


def metrics_of(dataset: str, task: str = "short") -> Mapping[str, Metric]:
    """The metrics of a dataset, the headline first; those of ``task`` where ``dataset`` is empty.

    Raises:
      InputError: nothing is known of such a dataset.
    """
    metrics = BENCHMARKS.get(dataset) if dataset else TASK_METRICS.get(task)
    if metrics is None:
        hint = nearest(dataset, BENCHMARKS)
        raise InputError(
            f"no metrics for dataset '{dataset}'; known: {', '.join(BENCHMARKS)}{hint}"
        )
    return metrics


def headline_of(dataset: str, task: str = "short") -> str:
    """The headline metric of a dataset, or of a task where ``dataset`` is empty."""
    return next(iter(metrics_of(dataset, task)))


def score_prediction(
    question: Question, prediction: str, dataset: str = "", normalizer: Normalizer | None = None
) -> dict[str, float]:
    """The benchmark's metrics of one prediction, each in [0, 1], the headline first.

    Args:
      question: with its reference answers; ASQA's short answers in ``extra["qa_pairs"]``.
      prediction: the answer; ``""`` for a question that failed.
      dataset: a name of ``BENCHMARKS``; empty takes the metrics of the question's task.
      normalizer: of answers in EM, F1 and containment; None takes the benchmark's own.

    Raises:
      InputError: nothing is known of the dataset, or the question lacks what its metrics read.
    """
    rules = normalizer or (m.normalize_trivia if dataset == "triviaqa" else m.normalize)
    metrics = metrics_of(dataset, question.task)
    return {name: metric(question, prediction, rules) for name, metric in metrics.items()}
