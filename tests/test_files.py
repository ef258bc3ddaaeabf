"""Files that survive kills and refuse, by file and line, what they cannot hold."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import zstandard
from hypothesis import given, settings

from dynarag_jax import files
from dynarag_jax.atomic import atomic_directory, atomic_write
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import (
    JsonlAppender,
    dump_line,
    fingerprint,
    read_json,
    read_jsonl,
    require_file,
    sha256_file,
    write_json,
    write_jsonl,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=4)


@settings(max_examples=40)
@given(st.lists(OBJECTS, max_size=5), st.booleans())
def test_what_is_written_is_read(tmp_path_factory, records, zipped):
    path = tmp_path_factory.mktemp("jsonl") / ("x.jsonl.gz" if zipped else "x.jsonl")
    if zipped:
        path.write_bytes(gzip.compress("".join(map(dump_line, records)).encode()))
    else:
        assert write_jsonl(path, iter(records)) == len(records)
    assert list(read_jsonl(path)) == list(enumerate(records, 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "not valid JSON at column 8"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is no JSON number"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 200_000 + b"}", "not valid JSON"),
    ],
    ids=["cut", "list", "latin", "nan", "infinity", "surrogate", "digits", "deep"],
)
def test_bad_lines_are_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}\n\n  \n' + line + b"\n")
    lines = read_jsonl(path)
    assert next(lines) == (1, {"a": "😀"})
    with pytest.raises(InputError) as error:
        next(lines)
    # Line 4: blank lines are skipped, but counted.
    assert str(error.value).startswith(f"{path}:4: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_directories_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        next(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="expected a corpus, found a directory"):
        require_file(tmp_path, "corpus")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x.json: not valid JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: b"plain text\n" + data,
        lambda data: data[:40] + bytes(b ^ 0x55 for b in data[40:80]) + data[80:],
        lambda data: data[:-8] + b"\0" * 4 + data[-4:],
    ],
    ids=["half", "without-tail", "not-gzip", "flipped", "checksum"],
)
def test_broken_gzip_is_named(tmp_path, spoil):
    path = tmp_path / "x.jsonl.gz"
    data = gzip.compress(b"".join(b'{"a": %d}\n' % (i * i) for i in range(5000)))
    path.write_bytes(spoil(data))
    with pytest.raises(InputError, match=r"x.jsonl.gz:\d+: "):
        list(read_jsonl(path))


@pytest.mark.parametrize("frames", [1, 3])
def test_zstd_is_read(tmp_path, frames):
    path = tmp_path / "x.jsonl.zst"
    lines = [b'{"a": %d}\n' % (i * i) for i in range(30_000)]
    parts = [b"".join(lines[i::frames]) for i in range(frames)]
    path.write_bytes(b"".join(map(zstandard.compress, parts)))
    assert [row["a"] for _, row in read_jsonl(path)] == [
        i * i for first in range(frames) for i in range(first, 30_000, frames)
    ]


@pytest.mark.parametrize("spoil", [lambda d: d[: len(d) // 2], lambda d: d[:-1], lambda d: d[9:]])
def test_broken_zstd_is_named(tmp_path, spoil):
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(spoil(zstandard.compress(b'{"a": 1}\n' * 5000)))
    with pytest.raises(InputError, match=r"x.jsonl.zst:\d+: (broken|not)"):
        list(read_jsonl(path))


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "' + "x" * 5000)
    with pytest.raises(InputError, match=r"x.jsonl:1: a line of more than"):
        list(read_jsonl(path))


# ---------------------------------------------------------------------------- atomic writes


class Broken(Exception):
    """Something that goes wrong while a file is written."""


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail():
        with atomic_write(path) as stream:
            stream.write("half")
            raise Broken

    with pytest.raises(Broken):
        fail()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(path, [{"a": 1}, {"a": float("inf")}])
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_write_makes_its_directories_and_keeps_the_umask(tmp_path):
    path = tmp_path / "new" / "deep" / "x.bin"
    before = os.umask(0o027)
    try:
        with atomic_write(path, "wb") as stream:
            stream.write(b"\0\1")
            assert not path.exists()
    finally:
        os.umask(before)
    assert path.read_bytes() == b"\0\1"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    def make(fail, overwrite=False):
        with atomic_directory(tmp_path / "d", overwrite) as place:
            (place / "file").write_text("new" if fail is None else "broken")
            if fail:
                raise fail

    with pytest.raises(Broken):
        make(Broken)
    assert os.listdir(tmp_path) == []
    make(None)
    with pytest.raises(InputError, match="exists already"):
        make(None)
    with pytest.raises(Broken):
        make(Broken, overwrite=True)
    assert (tmp_path / "d" / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["d"]


def test_the_old_directory_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_text("old")
    replace, calls = os.replace, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_once)

    def make():
        with atomic_directory(tmp_path / "d", overwrite=True) as place:
            (place / "file").write_text("new")

    with pytest.raises(OSError, match="disk full"):
        make()
    assert (tmp_path / "d" / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["d"]


def test_an_old_directory_that_cannot_come_back_either_is_not_lost(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_text("old")
    replace, calls = os.replace, []

    def fail_after_one(source, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError("the disk has gone")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_after_one)
    with (
        pytest.raises(OSError, match="the disk has gone"),
        atomic_directory(tmp_path / "d", overwrite=True) as place,
    ):
        (place / "file").write_text("new")
    (kept,) = tmp_path.rglob("file")
    assert kept.read_text() == "old" and ".old." in kept.parts[-3]


def test_what_a_killed_process_left_is_cleared_up_and_what_it_moved_comes_back(tmp_path):
    """A process is killed in a write, in a directory's, and between the two renames of another."""
    script = """
import os, sys
from pathlib import Path
from dynarag_jax import atomic
os.chdir(sys.argv[1])
with atomic.atomic_directory("d"):
    pass
Path("d/file").write_text("old")
replace = os.replace
def replace_once(source, target):
    replace(source, target)
    os.kill(os.getpid(), 9)
with atomic.atomic_write("half.json") as stream, atomic.atomic_directory("e") as place:
    Path(place, "x").write_text("half")
    with atomic.atomic_directory("d", overwrite=True) as place:
        Path(place, "file").write_text("new")
        os.replace = replace_once
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    left = {name.split(".")[1] for name in os.listdir(tmp_path)}
    assert left == {"half", "e", "d"} and not (tmp_path / "d").exists()
    # A living process's are left alone, and so is what only looks like them.
    others = {f".x.json.{platform.node().replace('.', '-')}-{os.getpid()}.abcd", ".x.json.abcd1234"}
    for name in others:
        (tmp_path / name).touch()
    write_json(tmp_path / "new.json", {})
    assert set(os.listdir(tmp_path)) == others | {"d", "new.json"}
    assert (tmp_path / "d" / "file").read_text() == "old"


# ---------------------------------------------------------------------------- appending


@settings(max_examples=40)
@given(records=st.lists(OBJECTS, min_size=1, max_size=4), lost=st.integers(0, 400))
def test_a_kill_in_mid_line_loses_that_line_only(tmp_path_factory, records, lost):
    """The file is cut at any byte, as a kill or a full disk does, and continued."""
    path = tmp_path_factory.mktemp("append") / "x.jsonl"
    records = [{**record, "id": str(i)} for i, record in enumerate(records)]
    whole = "".join(map(dump_line, records)).encode()
    cut = whole[: max(0, len(whole) - lost % (len(whole) + 1))]
    path.write_bytes(cut)
    standing = cut.count(b"\n")
    with JsonlAppender(path) as out:
        assert out.done == {str(i) for i in range(standing)}
        assert out.repaired == len(cut) - (cut.rfind(b"\n") + 1)
        for record in records:
            if record["id"] not in out.done:
                out.append(record)
    assert path.read_bytes() == whole


def test_a_long_unfinished_line_is_found_from_behind(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + b'{"id": "' + b"x" * 200_000)
    with JsonlAppender(path) as out:
        assert out.repaired == 200_008
        assert out.done == {"a"}


def test_lines_are_on_disk_when_a_process_is_killed(tmp_path):
    code = (
        "import os, signal, sys; from dynarag_jax.files import JsonlAppender\n"
        "out = JsonlAppender(sys.argv[1])\n"
        "for i in range(3): out.append({'id': str(i), 'text': 'é'})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.jsonl"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL
    assert [r["id"] for _, r in read_jsonl(tmp_path / "x.jsonl")] == ["0", "1", "2"]


def test_a_key_of_ones_own_and_records_without_it(tmp_path):
    path = tmp_path / "x.jsonl"
    with JsonlAppender(path, key=lambda r: f"{r['q']}/{r['n']}") as out:
        out.append({"q": "a", "n": 1})
    assert JsonlAppender(path, key=lambda r: f"{r['q']}/{r['n']}").done == {"a/1"}
    with pytest.raises(InputError, match=r"x.jsonl:1: no usable key .*'id'"):
        JsonlAppender(path)


# ---------------------------------------------------------------------------- hashes and hints


def test_fingerprints_are_of_the_content(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint(json.loads('{"b": [2], "a": 1}'))
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_the_nearest_name_is_hinted():
    assert nearest("learning_rat", ["learning_rate", "batch"]) == " (did you mean 'learning_rate'?)"
    assert nearest("zzz", ["learning_rate"]) == ""
