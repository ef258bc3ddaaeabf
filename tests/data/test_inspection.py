"""What is said of a file, and which questions a config both trains and evaluates on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynarag_jax.config import Run
from dynarag_jax.data.inspection import inspect_file
from dynarag_jax.data.overlap import normalized, overlap, texts_of
from dynarag_jax.data.reading import Reading
from dynarag_jax.errors import InputError
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.context import Context
from dynarag_jax.records import Passage, Question, write_passages, write_questions
from dynarag_jax.stages import Evaluate, Sft
from dynarag_jax.stages import inspect as stage
from dynarag_jax.stages.common.leakage import say_leakage

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PASSAGES = (Passage("a", "one two three", "A", 0.5), Passage("b", ""), Passage("c", "", ""))
QUESTIONS = [
    Question("1", "Where is Om?", ("here",), passages=PASSAGES, gold=("a", "x"), expert=(1,)),
    Question("2", "where is  OM", ("here", "there"), passages=PASSAGES[:1], gold=()),
    Question("3", "Why?"),
]


def test_everything_that_is_in_a_file_of_questions(tmp_path):
    write_questions(tmp_path / "q.jsonl", QUESTIONS)
    write_questions(tmp_path / "e.jsonl", [Question("9", "WHY?!"), Question("8", "Other?")])
    said = "\n".join(inspect_file(tmp_path / "q.jsonl", against=[tmp_path / "e.jsonl"]))
    for part in (
        "3 questions of format records; tasks: short 3",
        "answers: 2 questions have some, 1.0 each",
        "needed passages: known of 2 questions, 1.0 each, 1 need none, 1 need one that is not "
        "among their candidates",
        "candidates: median 1, 95 % up to 3, at most 3; 1 questions have none; 2 of 4 have a score",
        "expert's lists: 1, 1.0 passages each",
        "length of questions in words: median 3, 95 % up to 3, at most 3",
        "length of passages in words: median 2, 95 % up to 3, at most 3",
        "odd: 1 questions repeat another's text",
        "odd: 2 passages have no text",
        "odd: 1 passages equal another one of another id",
        f"shared with {tmp_path / 'e.jsonl'}: 1 of 3 questions, such as 'Why?'",
    ):
        assert part in said, part
    doubled = "\n".join(
        inspect_file(tmp_path / "q.jsonl", count=lambda texts: [7] * len(texts), unit="tokens")
    )
    assert "length of questions in tokens: median 7" in doubled


def test_a_corpus_judgments_and_what_is_neither(tmp_path, capsys):
    write_passages(tmp_path / "c.jsonl", PASSAGES)
    said = "\n".join(inspect_file(tmp_path / "c.jsonl"))
    assert "a corpus of 3 passages (ours), 1 with a title" in said
    assert "odd: 2 passages have no text" in said and "odd: 1 passages equal another" in said
    (tmp_path / "qrels").write_text("q1 0 d1 1\nq1 0 d2 0\nq2 0 d1 0\n")
    stage.run(Console("inspect"), stage.Inspect(str(tmp_path / "qrels")))
    out = capsys.readouterr().out
    assert "3 judgments of 2 questions; grades 0: 2, 1: 1" in out
    assert "odd: 1 questions have no relevant passage" in out
    (tmp_path / "x").write_text("hello\n")
    with pytest.raises(InputError, match=r"^nowhere: no such file or directory$"):
        inspect_file("nowhere")
    with pytest.raises(InputError, match=r"no questions: .*no passages: .*no judgments: "):
        inspect_file(tmp_path / "x")
    with pytest.raises(InputError, match="name the file"):
        stage.run(Console("inspect"), stage.Inspect())


def test_bad_records_are_counted_not_refused(tmp_path):
    rows = [{"question": "a?", "answer": "x"}, {"question": "b?", "answer": 7}]
    (tmp_path / "x").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "\n".join(inspect_file(tmp_path / "x", Reading()))
    assert "1 questions of format nq_open" in said and "odd: 1 bad records; line 2" in said


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no files of real questions in {DATA}")
def test_questions_that_real_files_share():
    """The files came with this count."""
    said = inspect_file(
        DATA / "hotpot-fullwiki-dev.jsonl.gz", against=[DATA / "hotpot-distractor-new.jsonl.gz"]
    )
    assert ": 493 of 1382 questions, such as " in said[-1]


def test_texts_are_compared_by_their_letters():
    same = ["Where is Om?", "where is  OM", "Ｗhere, is Om!"]
    assert {normalized(text) for text in same} == {"where is om"}
    assert normalized("दिल्ली") != normalized("दल")  # vowel signs are letters of words
    found = overlap(texts_of(QUESTIONS), texts_of([Question("x", "WHERE IS OM")]))
    assert (found.count, found.first) == (1, "where is  OM")


def test_leakage_is_named_before_training(tmp_path, capsys):
    write_questions(tmp_path / "train.jsonl", QUESTIONS)
    write_questions(tmp_path / "test.jsonl", [Question("5", "why"), Question("6", "New?")])
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    stages = {"sft": Sft(questions=train), "evaluate": Evaluate(questions=test)}
    context = Context(Run(str(tmp_path / "run")), stages, "sft")
    assert say_leakage(context, [train, str(tmp_path / "not-yet.jsonl")]) == 1
    said = capsys.readouterr().err
    assert f"leakage: 1 questions of {test} (stage 'evaluate') are trained on in {train}" in said
    stages["evaluate"] = Evaluate(questions=train)
    context = Context(Run(str(tmp_path / "run")), stages, "sft")
    assert say_leakage(context, [train]) == 2
    assert "evaluates on" in capsys.readouterr().err
