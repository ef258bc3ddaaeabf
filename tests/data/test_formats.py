"""Records of each format, as their sources publish them, and the questions they become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynarag_jax.data.formats import (
    FORMATS,
    WRITTEN,
    detect,
)
from dynarag_jax.data.reading import QuestionAccount, Reading, numbered_questions
from dynarag_jax.data.values import content_id, with_content_ids
from dynarag_jax.errors import InputError
from dynarag_jax.prompts import Message
from dynarag_jax.records import Passage, Question
from tests.data.cases import ASKED, CASES, LOIRE, P1, P2, SEINE


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **reading: Any) -> list[Question]:
    return [question for _, question in numbered_questions(path, Reading(**reading))]


@pytest.mark.parametrize(("name", "kind", "row", "wanted"), CASES, ids=[c[0] for c in CASES])
def test_a_record_is_known_and_becomes_a_question(name, kind, row, wanted, tmp_path):
    path = written(tmp_path / "any.txt", row)
    assert detect(path).name == kind
    (question,) = read(path)
    for field, value in wanted.items():
        found = getattr(question, field)
        if field == "extra":
            found = {key: found.get(key) for key in value}
        assert found == value, field


def test_each_format_has_a_case():
    assert {kind for _, kind, _, _ in CASES} == set(FORMATS) - {"fields"}


def test_no_record_is_of_two_formats():
    for name, kind, row, _ in CASES:
        assert [f.name for f in FORMATS.values() if f.fits(row)] == [kind], name


# Of each reader, values that must be refused; the path is the field that the message names.
WRONG = [
    ("contexts", {"question": ASKED, "answers": [1], "ctxs": []}, "answers"),
    ("contexts", {"question": ["x"], "answers": [], "ctxs": []}, "question"),
    ("contexts", {"question": ASKED, "ctxs": [{"text": 3}]}, "text"),
    ("contexts", {"question": ASKED, "ctxs": [P1 | {"score": "high"}]}, "score"),
    ("contexts", {"question": ASKED, "ctxs": [P1 | {"score": "nan"}]}, "score"),
    ("contexts", {"question": ASKED, "ctxs": [P1 | {"isgold": "yes"}]}, "isgold"),
    ("contexts", {"question": ASKED, "ctxs": [P1, P2 | {"id": "1"}]}, "another passage"),
    ("contexts", {"question": ASKED, "docs": [P1], "true_id": [2]}, "true_id"),
    ("contexts", {"question": ASKED, "ctxs": {"a": 1}}, "ctxs"),
    ("nq_open", {"question": ASKED, "answer": {"a": 1}}, "answer"),
    ("nq_open", {"question": "  ", "answer": ["a"]}, "question"),
    ("asqa", {"question": ASKED, "qa_pairs": [{"short_answers": "a"}], "docs": []}, "short_ans"),
    ("triviaqa", {"QuestionId": "1", "Question": ASKED, "Answer": ["a"]}, "Answer"),
    ("triviaqa", {"QuestionId": "1", "Question": ASKED, "Answer": {"Value": "a"}}, "Normalized"),
    ("popqa", {"question": ASKED, "possible_answers": "[1"}, "possible_answers"),
    ("hotpotqa", {"_id": "a", "question": ASKED, "context": [["t"]]}, "context"),
    ("hotpotqa", {"question": ASKED, "context": [["t", ["x"]]], "supporting_facts": [["t", "0"]]},
     "supporting_facts"),
    ("musique", {"id": "1", "question": ASKED, "paragraphs": [{"paragraph_text": "a"}],
                 "question_decomposition": [{"paragraph_support_idx": 4}]}, "paragraph_support"),
    ("squad", {"title": "t", "paragraphs": [{"context": "c"}]}, "qas"),
    ("kilt", {"id": "1", "input": ASKED, "output": [{"answer": 3}]}, "answer"),
    ("fever", {"id": "1", "claim": "c", "label": "MAYBE"}, "label"),
    ("scifact", {"id": "1", "claim": "c", "cited_doc_ids": "7", "evidence": []}, "cited_doc_ids"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "the same"),
    ("alpaca", {"instruction": "i", "output": 7}, "output"),
    ("rankllm", {"query": "q", "candidates": []}, "query"),
    ("records", {"id": "1", "question": ASKED, "task": "short", "qa_pairs": ["a"]}, "qa_pairs"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "field"), WRONG)
def test_wrong_values_are_refused_by_file_line_and_field(kind, row, field, tmp_path):
    good = next(case for _, k, case, _ in CASES if k == kind)
    path = written(tmp_path / "x.jsonl", good, row)
    with pytest.raises(InputError) as error:
        read(path, format=kind)
    assert str(error.value).startswith(f"{path}:2"), error.value
    assert field in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------------------- finding the format


def test_unknown_and_mixed_files_say_what_they_hold(tmp_path):
    path = written(tmp_path / "x.jsonl", {"foo": 1, "bar": 2})
    with pytest.raises(InputError, match=r"x.jsonl:1: of no known format: .*foo, bar.*--format"):
        detect(path)
    path = written(tmp_path / "x.jsonl", {"question": ASKED, "answer": "a"}, {"foo": 1})
    with pytest.raises(InputError, match="the first record is of nq_open, others differ"):
        detect(path)
    path = written(
        tmp_path / "x.jsonl", {"question": ASKED, "golden_answers": [], "gold_titles": []}
    )
    with pytest.raises(InputError, match=r"could be titles, flashrag; say which with --format"):
        detect(path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="holds no records"):
        detect(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no such file"):
        detect(tmp_path / "none.jsonl")


def test_options_are_checked():
    with pytest.raises(InputError, match=r"no format 'hotpot' \(did you mean 'hotpotqa'\?\)"):
        Reading(format="hotpot")
    with pytest.raises(InputError, match="did you mean 'musique'"):
        Reading(dataset="musiq")
    with pytest.raises(InputError, match="task must be one of"):
        Reading(task="long")
    with pytest.raises(InputError, match="must not be negative"):
        Reading(reject_limit=-1)


def test_the_dataset_decides_the_task(tmp_path):
    path = written(tmp_path / "x.jsonl", {"id": "1", "input": "why", "output": [{"answer": "so"}]})
    (question,) = read(path, dataset="eli5")
    assert question.task == "paragraph" and question.extra["dataset"] == "eli5"
    (question,) = read(path, dataset="2wiki", task="label")
    assert question.task == "label" and question.extra["dataset"] == "2wikimultihopqa"


def test_fields_that_mean_something_here_are_renamed(tmp_path):
    row = {"id": "1", "question": "q", "golden_answers": ["a"], "qa_pairs": [{"x": 1}], "task": 3}
    (question,) = read(written(tmp_path / "x.jsonl", row), format="flashrag")
    assert question.extra == {"source_qa_pairs": [{"x": 1}], "source_task": 3}


# ---------------------------------------------------------------------------- bad records, repeats


def test_bad_records_up_to_the_limit_are_set_aside(tmp_path):
    rows = [{"question": f"q {i}", "answer": i if i in (2, 4) else "a"} for i in range(6)]
    path = written(tmp_path / "x.jsonl", *rows)
    account = QuestionAccount()
    kept = list(numbered_questions(path, Reading(format="nq_open", reject_limit=2), account))
    assert [number for number, _ in kept] == [1, 2, 4, 6] and account.questions == 4
    assert [number for number, _ in account.rejected] == [3, 5]
    with pytest.raises(InputError, match=r"x.jsonl:5: .*'answer'.*found 4.*bad record 2"):
        read(path, format="nq_open", reject_limit=1)
    path.write_text(path.read_text().replace('{"question": "q 2"', '{"question": '))
    assert len(read(path, format="nq_open", reject_limit=2)) == 4


def test_repeated_ids(tmp_path):
    rows = [{"id": "a", "question": f"q {i}", "answer": "x"} for i in range(3)]
    path = written(tmp_path / "x.jsonl", *rows)
    with pytest.raises(InputError, match=r"x.jsonl:2: the id 'a' is that of line 1; --repeats"):
        read(path)
    account = QuestionAccount()
    kept = [q for _, q in numbered_questions(path, Reading(repeats="drop"), account)]
    assert [q.text for q in kept] == ["q 0"] and account.repeats == 2
    assert [q.id for q in read(path, repeats="rename")] == ["a", "a#2", "a#3"]


# ---------------------------------------------------------------------------- exports, ids


def test_what_llama_factory_trains_on(tmp_path):
    question = Question(
        "a", ASKED, ("Seine",), passages=(SEINE, LOIRE), expert=(2, 1), expert_source="x"
    )
    write = FORMATS["alpaca"].write
    assert write is not None
    rows = write(question)
    assert isinstance(rows, Iterator)
    lists, answer = rows
    assert lists["output"] == "[2], [1]" and answer["output"] == "Seine"
    assert "[1] Seine: The Seine" in lists["instruction"]
    assert "[1] Loire: The Loire" in answer["instruction"]  # the expert's order
    # The training stages read them as instructions.
    from dynarag_jax.training.instructions import read_instructions

    said = read_instructions(written(tmp_path / "x.jsonl", lists, answer))
    expected: Message = {"role": "user", "content": lists["instruction"]}
    assert said[0].messages[-1] == expected and said[0].reply == "[2], [1]"


def test_ids_from_content_make_equal_passages_one():
    twice = Passage("9", SEINE.text, SEINE.title)
    question = Question(
        "a", ASKED, passages=(SEINE, LOIRE, twice), gold=("9", "elsewhere"), expert=(3, 2, 1)
    )
    made = with_content_ids(question)
    one, two = (content_id(p.title, p.text) for p in (SEINE, LOIRE))
    assert [p.id for p in made.passages] == [one, two]
    assert made.gold == (one, "elsewhere") and made.expert == (1, 2)
    assert with_content_ids(made) == made


def test_what_can_be_written():
    protocols = {"contexts", "dpr", "asqa", "kilt", "flashrag", "rankllm", "beir"}
    assert protocols | {"alpaca", "preference", "records"} <= set(WRITTEN)
