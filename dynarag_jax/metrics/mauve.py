"""MAUVE (Pillutla et al. 2021) by the package ``mauve-text``, which is not installed with ours.

It compares two sets of texts and needs GPT-2 in PyTorch; ASQA's users report it for fluency.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from dynarag_jax.errors import InputError, MissingExtra

WORDS = 100
"""Words of question and answer that ALCE compares."""


def mauve_texts(questions: Sequence[str], answers: Sequence[str]) -> list[str]:
    """What ALCE compares: question and answer on one line, cut to 100 words, bare at the end."""
    joined = (f"{q} {a.strip()}".split() for q, a in zip(questions, answers, strict=True))
    return [" ".join(words[:WORDS]).rstrip(string.punctuation) for words in joined]


def mauve(
    questions: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[str],
    model: str = "gpt2-large",
    **options: Any,
) -> float:
    """MAUVE in [0, 1] of predictions against references, one of each a question, set up as ALCE's.

    Args:
      model: a GPT-2 by hub id or directory; the package wants ``gpt2`` in its name.
      options: further arguments of ``mauve.compute_mauve``, such as ``device_id``.

    Raises:
      MissingExtra: the package is absent.
      InputError: the three differ in number, or there are none.
    """
    if not len(questions) == len(predictions) == len(references) or not questions:
        raise InputError(
            f"MAUVE: {len(questions)} questions, {len(predictions)} predictions and "
            f"{len(references)} references; give one of each a question, and at least one"
        )
    try:
        from mauve import compute_mauve  # type: ignore[import-not-found]
    except ImportError:
        raise MissingExtra("mauve-text", "mauve", "MAUVE") from None
    settings = {"max_text_length": 512, "featurize_model_name": model, "batch_size": 8}
    result = compute_mauve(
        p_text=mauve_texts(questions, references),
        q_text=mauve_texts(questions, predictions),
        **(settings | options),
    )
    return float(result.mauve)
