"""Whatever a file holds, a reader makes questions of it or says in one line what is wrong."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from dynarag_jax.data.formats import FORMATS, detect
from dynarag_jax.data.reading import QuestionAccount, Reading, numbered_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import dump_line
from dynarag_jax.records import Question, question_from_json, question_to_json
from dynarag_jax.rows import read_rows
from dynarag_jax.training.instructions import read_instructions
from tests.data.cases import CASES

TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
ODD = (
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats(allow_nan=False)
    | TEXT | st.sampled_from(["", "None", "[1]", "nan", "-1", "SUPPORTS"])
)  # fmt: skip
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
ONE_AFTER_ANOTHER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


def places(value, path=()):
    """The paths of all values within one."""
    yield path
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inner:
            yield from places(item, (*path, key))


def spoiled(value, path, new):
    if not path:
        return new
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return value


def checked(question: Question) -> None:
    """A question is one of ours: strictly typed, and written and read again the same."""
    line = dump_line(question_to_json(question))
    assert question_from_json(json.loads(line), "again") == question


def no_traceback(path, **reading) -> str:
    """Read a file; return what is wrong with it, or an empty text."""
    wrong = ""
    try:
        for _, question in numbered_questions(path, Reading(**reading)):
            checked(question)
    except InputError as error:
        wrong = str(error)
    assert "\n" not in wrong and (not wrong or str(path) in wrong)
    return wrong


@pytest.mark.parametrize("case", range(len(CASES)), ids=[c[0] for c in CASES])
def test_a_record_with_a_value_of_any_kind(case, tmp_path):
    _, kind, row, _ = CASES[case]
    paths = [path for path in places(row) if path]
    path = tmp_path / "x.jsonl"

    @settings(max_examples=25)
    @given(st.sampled_from(paths), JSON)
    def tried(place, value):
        path.write_bytes(json.dumps(spoiled(row, place, value)).encode() + b"\n")
        no_traceback(path, format=kind)

    tried()


# A list where a text should be, a text where a list should be, and so on.
OTHER_KINDS = {str: [7, ["x"], {"x": "y"}], list: [7, {"x": "y"}], dict: [7, "text"], bool: ["yes"]}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_value_of_a_wrong_kind_is_never_taken(kind, tmp_path):
    """Fields that are read refuse other kinds; those that are not are kept as they are."""
    path = tmp_path / "x.jsonl"
    for name, k, row, _ in CASES:
        if k != kind:
            continue
        path.write_text(json.dumps(row) + "\n")
        ((_, question),) = numbered_questions(path, Reading(format=kind))
        for place in filter(None, places(row)):
            value = row
            for key in place:
                value = value[key]
            for wrong in OTHER_KINDS.get(type(value), []):
                path.write_text(json.dumps(spoiled(row, place, wrong)) + "\n")
                if no_traceback(path, format=kind):
                    continue
                ((_, changed),) = numbered_questions(path, Reading(format=kind))
                # Taken: then nothing of the question is of it, or it is kept as it is, or it is one
                # of the few liberties: a number as id, one text for a list
                # of texts.
                liberty = isinstance(value, str) and wrong == 7 and str(7) in str(changed)
                liberty |= isinstance(value, list) and wrong == "text" and "text" in changed.answers
                liberty |= isinstance(value, str) and wrong == ["x"] and changed.answers[0] == "x"
                liberty |= isinstance(value, bool) and changed.answers == (wrong,)
                # A passage may be a bare text.
                liberty |= isinstance(value, dict) and "text" in {p.text for p in changed.passages}
                same = replace(changed, extra={}) == replace(question, extra={})
                assert liberty or same, (name, place, wrong, changed)


@ONE_AFTER_ANOTHER
@given(st.lists(JSON | st.dictionaries(TEXT, JSON, max_size=4), max_size=4), st.booleans())
def test_files_of_any_json(tmp_path, values, as_array):
    path = tmp_path / "x.json"
    text = json.dumps(values) if as_array else "".join(json.dumps(v) + "\n" for v in values)
    path.write_text(text)
    try:
        rows = list(read_rows(path))
    except InputError:
        rows = []
    assert all(isinstance(row, dict | InputError) for _, row in rows)
    no_traceback(path)
    for kind in ("contexts", "kilt", "squad"):
        no_traceback(path, format=kind, reject_limit=100)
    with contextlib.suppress(InputError):
        read_instructions(path)


@ONE_AFTER_ANOTHER
@given(st.binary(max_size=200))
def test_files_of_any_bytes(tmp_path, data):
    for name in ("x.jsonl", "x.jsonl.gz", "x.jsonl.zst"):
        path = tmp_path / name
        path.write_bytes(data)
        assert no_traceback(path) or data


@ONE_AFTER_ANOTHER
@given(st.data())
def test_good_files_that_were_damaged(tmp_path, data):
    """Cut off, or with bytes changed: what is read before the damage is good, and no traceback."""
    rows = [{"id": str(i), "question": f"q{i} é", "answer": ["a"]} for i in range(40)]
    shape = data.draw(st.sampled_from(["lines", "array", "document"]))
    whole = (
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if shape == "lines"
        else json.dumps(rows if shape == "array" else {"v": 1, "data": rows}, ensure_ascii=False)
    ).encode()
    suffix = data.draw(st.sampled_from(["", ".gz", ".zst"]))
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    packed = bytearray(pack[suffix](whole))
    cut = data.draw(st.booleans())
    at = data.draw(st.integers(0, len(packed) - 1))
    if cut:
        del packed[at:]
    else:
        packed[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / f"x.json{suffix}"
    path.write_bytes(packed)
    account, read = QuestionAccount(), []
    try:
        for _, question in numbered_questions(path, Reading(format="nq_open"), account):
            read.append(question)
        wrong = ""
    except InputError as error:
        wrong = str(error)
        assert "\n" not in wrong
    # Packed data have checksums or ends, so that what is missing is noticed; so has a JSON
    # document its end. Only plain lines may end early at the end of a line.
    if cut and (suffix or shape != "lines"):
        assert wrong
    if not wrong and cut:
        assert packed.endswith((b"\n", b"}")) and len(read) < 41


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "q", "answer": NaN}',
        '{"question": "q", "answer": "a", "score": 1e999}',
        '{"question": "q", "answer": "a", "score": -Infinity}',
        '{"question": "q\\ud800", "answer": "a"}',
        '{"question": "q", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"question": "q", "answer": "a", "n": ' + "9" * 5000 + "}",
        '{"question": "q", "answer": "a"',
        '{"question": "q" "answer": "a"}',
        "{'question': 'q', 'answer': 'a'}",
        "question: q",
        '"question"',
        "null",
    ],
)
@pytest.mark.parametrize("shape", ["line", "array", "document"])
def test_what_is_no_json_is_refused(text, shape, tmp_path):
    path = tmp_path / "x.json"
    good = '{"question": "first", "answer": "a"}'
    whole = {
        "line": f"{good}\n{text}\n",
        "array": f"[{good},\n{text}]",
        "document": f'{{"version": "1", "data": [{good},\n{text}]}}',
    }
    path.write_text(whole[shape])
    said = no_traceback(path, format="nq_open")
    assert said.startswith(f"{path}:2: "), said


def test_not_utf_8(tmp_path):
    for text in (b'{"question": "\xff"}\n', b'[{"question": "\xff"}]', b"id\tquestion\n1\t\xff\n"):
        path = tmp_path / "x"
        path.write_bytes(text)
        assert "not UTF-8" in no_traceback(path, format="nq_open")
    # The mark that some editors put first is no part of the text.
    path.write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "a"}\n')
    assert detect(path).name == "nq_open" and not no_traceback(path)
    path.write_bytes(b'\xef\xbb\xbf[{"question": "q", "answer": "a"}]')
    assert detect(path).name == "nq_open" and not no_traceback(path)
