"""Records out of files of every shape, in memory that one record bounds."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dynarag_jax import files, json_stream
from dynarag_jax.data.formats import detect
from dynarag_jax.data.reading import Reading, numbered_questions
from dynarag_jax.errors import InputError
from dynarag_jax.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"question": f'q {i} \u00e9\n"[{{', "answer": [str(i)] * (i % 3)} for i in range(300)]
SHAPES = {
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "blank lines and returns": "\r\n\n".join(json.dumps(row) for row in ROWS),
    "array": json.dumps(ROWS),
    "array over lines": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "objects over lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "document": json.dumps({"version": 1, "x": {"data": 2}, "data": ROWS, "more": [1]}),
    "TriviaQA's document": json.dumps({"Data": ROWS, "Domain": "web"}, indent=4),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_shape_plain_and_packed(name, suffix, tmp_path):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pack[suffix](SHAPES[name].encode()))
    assert [row for _, row in read_rows(path)] == ROWS
    questions = [q for _, q in numbered_questions(path)]
    assert len({q.id for q in questions}) == len(ROWS) and questions[0].id in ("q1", "q2", "q3")
    assert [list(q.answers) for q in questions] == [list(dict.fromkeys(r["answer"])) for r in ROWS]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_values_that_straddle_what_is_read_at_once(size, tmp_path, monkeypatch):
    """Whatever the size of the pieces; the real one is 64 KiB."""

    class Slow:
        def __init__(self, file):
            self.file = file

        def read(self, wanted):
            return self.file.read(min(wanted, size))

    for name in ("array over lines", "document"):
        path = tmp_path / "x"
        path.write_text(SHAPES[name])
        with path.open("rb") as file:
            scanner = json_stream.Scanner(path, Slow(file))  # type: ignore[arg-type]
            if name == "document":
                for _ in range(2):
                    scanner.take("{,")
                    scanner.value(), scanner.take(":"), scanner.value()
                scanner.take(","), scanner.value(), scanner.take(":")
            assert [row for _, row in scanner.elements()] == ROWS


def test_line_numbers(tmp_path):
    path = tmp_path / "x"
    path.write_text(json.dumps(ROWS[:3], indent=0))
    lines = path.read_text().split("\n")
    assert [lines[number - 1] for number, _ in read_rows(path)] == ["{"] * 3
    path.write_text('[{"a": 1},\n\n 7,\n{"b": 2}]')
    found = list(read_rows(path))
    assert [number for number, _ in found] == [1, 3, 4]
    assert str(found[1][1]) == f"{path}:3: expected a JSON object, found int"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}] x', "'x' after the end"),
        ('[{"a": 1} {"b": 2}]', "expected ',' or ']'"),
        ('[{"a": 1},', "not valid JSON"),
        ('[{"a": 1}, {"b', "not valid JSON"),
        ('{"data": [{"a": 1}', "the end of the file"),
        ('{"data": [{"a": 1}], 7: 1}', "a field without a name"),
        ('{"data": [{"a": 1}]} {}', "after the end"),
    ],
)
def test_documents_that_end_wrong(text, message, tmp_path):
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x:1: ") as error:
        list(read_rows(path))
    assert message in str(error.value)


def test_a_record_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "LONGEST_LINE", 1 << 17)
    path = tmp_path / "x"
    path.write_text('[{"a": 1},\n{"b": "' + "x" * (1 << 20))
    with pytest.raises(InputError, match="x:2: a record of more than"):
        list(read_rows(path))
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 17)
    path.write_text('{"a": 1}\n{"b": "' + "x" * (1 << 20))
    with pytest.raises(InputError, match="x:2: a line of more than"):
        list(read_rows(path))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".json"])
def test_what_packs_a_file_is_seen_from_its_content(tmp_path, pack, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pack(b'\xef\xbb\xbf{"a": 1}\r\n{"b": 2}\r\n'))
    assert list(read_rows(path)) == [(1, {"a": 1}), (2, {"b": 2})]


def test_other_unicode_is_refused_by_name(tmp_path):
    path = tmp_path / "x"
    path.write_bytes('{"a": 1}\n'.encode("utf-16"))
    with pytest.raises(InputError, match="x:1: is UTF-16 text; save it as UTF-8"):
        list(read_rows(path))


def test_tables(tmp_path):
    path = tmp_path / "popqa.tsv"
    path.write_text(
        "id\tprop\tquestion\tpossible_answers\n"
        '1\tcapital\tWhat is the capital of "France"?\t"[""Paris"", ""Paname""]"\n'
        '2\tcapital\tAnd of Spain?\t"[""Madrid""]"\n3\tshort\n'
    )
    assert detect_and_count(path) == ("popqa", 2, 1)
    questions = [q for _, q in numbered_questions(path, Reading(reject_limit=1))]
    assert questions[0].answers == ("Paris", "Paname") and questions[0].type == "capital"
    with pytest.raises(InputError, match=r"popqa.tsv:4: has 2 fields, and there are 4 columns"):
        list(numbered_questions(path, Reading(format="popqa")))


def detect_and_count(path):
    rows = [row for _, row in read_rows(path)]
    good = sum(isinstance(row, dict) for row in rows)
    return detect(path).name, good, len(rows) - good


def test_parquet_as_the_hub_stores_it(tmp_path):
    path = tmp_path / "0000.parquet"
    context = {"title": ["A", "B"], "sentences": [["One.", " Two."], ["Three."]]}
    row = {
        "id": "5", "question": "q", "answer": "a", "type": "bridge", "level": "easy",
        "supporting_facts": {"title": ["B"], "sent_id": [0]}, "context": context,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row | {"id": str(i)} for i in range(200)]), path)
    assert detect(path).name == "hotpotqa"
    questions = [q for _, q in numbered_questions(path)]
    assert len(questions) == 200 and questions[3].id == "3"
    assert [p.text for p in questions[0].passages] == ["One. Two.", "Three."]
    assert questions[0].gold == (questions[0].passages[1].id,)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-20] + b"x" * 16 + whole[-4:], b"PAR1"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"0000.parquet: not a readable Parquet file"):
            list(read_rows(path))
    path.write_bytes(whole)
    pq.write_table(pa.table({"question": [b"raw"], "answer": ["a"]}), path)
    ((_, found),) = read_rows(path)
    assert found == {"question": "raw", "answer": "a"}


# ---------------------------------------------------------------------------- memory

MEASURE = """
import re, sys
from pathlib import Path
from dynarag_jax.data.reading import Reading, numbered_questions

def peak():  # getrusage's figure begins with the parent's
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

baseline = peak()
count = sum(1 for _ in numbered_questions(sys.argv[1], Reading(repeats="drop")))
print(count, (peak() - baseline) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
@pytest.mark.parametrize("shape", ["lines", "array", "document"])
def test_memory_is_that_of_a_record_not_of_the_file(shape, tmp_path):
    """200 MB packed, 300 MB unpacked: what is held beside the ids are a few records."""
    rng = random.Random(0)
    path = tmp_path / "large.json.gz"
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 "
    count, unpacked = 0, 0
    opening = {"lines": "", "array": "[", "document": '{"version": "1", "data": ['}[shape]
    closing = {"lines": "", "array": "]", "document": "]}"}[shape]
    between = "\n" if shape == "lines" else ",\n"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(opening)
        pool = ["".join(rng.choices(letters, k=700)) for _ in range(5000)]
        while path.stat().st_size < 200_000_000:
            for _ in range(200):
                ctxs = [{"id": str(i), "title": "t", "text": rng.choice(pool)} for i in range(45)]
                row = {"id": f"{count}", "question": "q", "answers": ["a"], "ctxs": ctxs}
                line = (between if count else "") + json.dumps(row)
                unpacked += len(line)
                file.write(line)
                count += 1
        file.write(closing)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    read, extra = map(int, done.stdout.split())
    print(f"{shape}: {unpacked / 1e6:.0f} MB unpacked, {extra / 1e6:.0f} MB of memory")
    assert read == count
    assert extra < 64_000_000 < unpacked / 4
