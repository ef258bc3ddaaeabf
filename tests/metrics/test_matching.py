"""Answers in passages: DPR's rule, rebuilt from its description with the ``regex`` package."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from dynarag_jax.metrics.matching import answer_tokens, has_answer
from dynarag_jax.metrics.ranking import answer_recall_at

DATA = Path(__file__).parents[3] / "shared" / "data"
TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
UNKNOWN = regex.compile(r"\p{Cn}")


def tokens(text: str) -> list[str]:
    return [token.lower() for token in TOKEN.findall(unicodedata.normalize("NFD", text))]


def stands_in(passage: str, answers: list[str]) -> bool:
    """Karpukhin et al. 2020: NFD, tokens of letters, numbers and marks or one sign, uncased."""
    text = tokens(passage)
    sought = [tokens(answer) for answer in answers]
    return any(
        text[i : i + len(answer)] == answer
        for answer in sought
        if answer
        for i in range(len(text) - len(answer) + 1)
    )


@pytest.mark.parametrize(
    ("passage", "answer", "stands"),
    [
        ("Currington's vocals range widely.", "Currington", True),
        ("In the 2002–2003 season they won.", "2003", True),
        ("A Paris-based firm made it.", "Paris", True),
        ("Sung by Beyonce\u0301 in 2008.", "Beyonc\u00e9", True),
        ("Sung by Beyonce in 2008.", "Beyonc\u00e9", False),
        ("It was built in 1910.", "10", False),
        ("the U.S. won", "US", False),
        ("the U.S. won", "u.s.", True),
        ("a rock 'n' roll band", "rock n roll", False),
        ("it ended in 1999", "The End", False),
        ("東京タワー", "東京", False),
        ("any text", "", False),
        ("any text", " \u200b\n", False),
        ("", "text", False),
    ],
)
def test_what_stands_in_a_passage(passage: str, answer: str, stands: bool):
    assert has_answer(passage, [answer]) is stands
    assert has_answer(passage, [answer, "nothing like it"]) is stands
    assert answer_recall_at(["", passage], [answer], 2) == stands
    assert not has_answer(passage, [])


# Python's and regex's tables may be of different versions of Unicode: what both know.
known = st.characters(exclude_categories=("Cs", "Cn")).filter(lambda c: not UNKNOWN.match(c))


@given(st.text(known, max_size=30), st.text(known, max_size=6))
@example("ΟΔΟΣ.ΟΔΟΣ", "οδος")
@example("İstanbul ǅ ﬁ", "i̇stanbul")
@example("_a_b\u00a0c\x1cd\u2028e", "_")
def test_any_text_is_cut_as_described(passage: str, answer: str):
    assert answer_tokens(passage) == " ".join(tokens(passage))
    assert has_answer(passage, [answer]) == stands_in(passage, [answer])
    assert has_answer(f"{passage} {answer} {passage}", [answer]) == bool(tokens(answer))


def every_pair(name: str) -> list[tuple[str, list[str]]]:
    """Every (passage, answers) of a file of real questions."""
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        if name.endswith(".json.gz"):
            paragraphs = [p for article in json.load(file)["data"] for p in article["paragraphs"]]
            return [
                (p["context"], [a["text"] for a in q["answers"]])
                for p in paragraphs
                for q in p["qas"]
            ]
        records = [json.loads(line) for line in file]
    pairs = []
    for record in records:
        answers = record.get("answers") or [record["answer"]]
        for value in record.values():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                pairs += [(passage["text"], answers) for passage in value]
    return pairs


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("name", "pairs", "found"),
    [
        ("litm-nq-open-oracle.jsonl.gz", 2655, 2655),  # every oracle passage holds the answer
        ("litm-nq-20docs.jsonl.gz", 8820, 441),  # and no distractor does
        ("squad-dev-v1.1.json.gz", 10570, 10569),  # one answer is not in its paragraph
        ("nq-train-retrieved-top5.1000.jsonl.gz", 5000, 1621),
        ("popqa-1000-gold-retrieved.jsonl.gz", 12000, 5403),
    ],
)
def test_every_pair_of_the_real_files(name: str, pairs: int, found: int):
    real = every_pair(name)
    ours = [has_answer(passage, answers) for passage, answers in real]
    assert ours == [stands_in(passage, answers) for passage, answers in real]
    assert (len(real), sum(ours)) == (pairs, found)
