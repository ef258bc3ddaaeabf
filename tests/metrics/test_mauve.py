"""MAUVE is another package's: what it is given, and what is said where it is absent."""

import importlib.util

import pytest

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.metrics.mauve import mauve, mauve_texts


def test_texts_are_alces():
    assert mauve_texts(["Who?"], [" It was\nOrlen.!  "]) == ["Who? It was Orlen"]
    assert mauve_texts(["q"], ["w " * 300]) == [" ".join(["q", *["w"] * 99])]


def test_numbers_must_agree():
    with pytest.raises(InputError, match="2 questions, 1 predictions and 1 references"):
        mauve(["a", "b"], ["c"], ["d"])


@pytest.mark.skipif(importlib.util.find_spec("mauve") is not None, reason="mauve-text is here")
def test_the_absent_package_is_named():
    with pytest.raises(MissingExtra, match=r"MAUVE needs the package 'mauve-text'.*\[mauve\]"):
        mauve(["a"], ["b"], ["c"])
