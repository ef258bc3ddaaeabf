"""Corpora in every format, whole and broken, and the passages on disk."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings

from dynarag_jax.errors import InputError
from dynarag_jax.records import Passage
from dynarag_jax.retrieval import store as stores
from dynarag_jax.retrieval.corpora import (
    CorpusAccount,
    CorpusConfig,
    corpus_files,
    read_corpus,
    split,
)
from dynarag_jax.retrieval.store import Store, write_store

ROWS = [
    Passage("1", 'Aaron is a "prophet" of old.', "Aaron"),
    Passage("2", "Two\twords\nand lines.", "B & C"),
    Passage("x-3", "", "Nothing"),
    Passage("4", "Zürich, 東京 🗼", ""),
]


def lines(values) -> bytes:
    return "".join(json.dumps(v) + "\n" for v in values).encode()


def tsv(rows) -> bytes:
    """As psgs_w100.tsv is written: the text in quotes, quotes within it doubled."""
    body = "".join('{}\t"{}"\t{}\n'.format(p.id, p.text.replace('"', '""'), p.title) for p in rows)
    return ("id\ttext\ttitle\n" + body).encode()


def parquet(rows) -> bytes:
    table = pa.table({
        "_id": [p.id for p in rows], "title": [p.title for p in rows],
        "other": list(range(len(rows))), "text": [p.text for p in rows],
    })  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


FORMATS = {
    "ours": lambda rows: lines({"id": p.id, "title": p.title, "text": p.text} for p in rows),
    "beir": lambda rows: lines(
        {"_id": p.id, "title": p.title, "text": p.text, "metadata": {}} for p in rows
    ),
    "contents": lambda rows: lines(
        {"id": p.id, "contents": f'"{p.title}"\n{p.text}'} for p in rows
    ),
    "tsv": tsv,
    "parquet": parquet,
}
# A line of a TSV file holds no line ends, and what is cut into fields no tabs.
WITHOUT_TABS = [p if p.id != "2" else Passage("2", "Two words.", "B & C") for p in ROWS]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_format_is_seen_and_read(tmp_path, kind, packed):
    rows = WITHOUT_TABS if kind == "tsv" else ROWS
    data = FORMATS[kind](rows)
    if packed and kind == "parquet":
        pytest.skip("Parquet is packed within")
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    path = tmp_path / f"corpus.data{packed}"
    path.write_bytes(pack(data))
    account = CorpusAccount()
    assert list(read_corpus(CorpusConfig(files=(str(path),)), account)) == rows
    assert account.formats == {str(path): kind} and account.counts == {str(path): 4}
    assert (account.records, account.passages, account.empty, account.rejected) == (4, 4, 1, [])


def test_contents_without_a_title(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(lines([
        {"id": 7, "contents": "one line"}, {"id": "8", "contents": "line", "title": "T"},
    ]))  # fmt: skip
    found = list(read_corpus(CorpusConfig(files=(str(path),))))
    assert found == [Passage("7", "one line"), Passage("8", "line", "T")]


def test_many_files_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, kind in enumerate(("beir", "contents", "ours")):
        path = Path("wiki") / f"{i}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(FORMATS[kind]([Passage(f"{kind}{j}", "t", "T") for j in range(2)]))
    config = CorpusConfig(files=("wiki/2.jsonl", "wiki/[01].jsonl"))
    assert [p.id for p in read_corpus(config)] == [
        "ours0", "ours1", "beir0", "beir1", "contents0", "contents1",
    ]  # fmt: skip
    assert corpus_files(["**/*.jsonl"]) == [Path(f"wiki/{i}.jsonl") for i in range(3)]
    Path("empty").mkdir()
    assert corpus_files(["wiki"]) == corpus_files(["wiki/*.jsonl"])
    for files, says in {
        ("none/*.jsonl",): "none/\\*.jsonl: no file fits",
        ("",): "a name among files is empty",
        ("wiki/1.jsonl", "wiki/*.jsonl"): "wiki/1.jsonl: is named twice",
        ("empty",): "empty: no corpus: no corpus.jsonl",
    }.items():
        with pytest.raises(InputError, match=says):
            corpus_files(files)


BAD = {
    "json": (b'{"id": "9", "text": \n', ":2: not valid JSON"),
    "field": (b'{"id": "9", "text": 5}\n', ":2: field 'text' must be a string, found 5"),
    "id": (b'{"text": "x"}\n', ":2: field 'id' is missing"),
    "utf8": (b'{"id": "9", "text": "\xff"}\n', ":2: not UTF-8"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_is_named_and_counted_against_the_limit(tmp_path, what):
    bad, says = BAD[what]
    path = tmp_path / "c.jsonl"
    good = [lines([{"id": str(i), "text": "t"}]) for i in range(3)]
    path.write_bytes(good[0] + bad + good[1] + bad + good[2])
    files = (str(path),)
    with pytest.raises(InputError, match=says):
        list(read_corpus(CorpusConfig(files=files)))
    with pytest.raises(InputError, match=r":4: .*\(bad record 2\)"):
        list(read_corpus(CorpusConfig(files=files, reject_limit=1)))
    account = CorpusAccount()
    found = list(read_corpus(CorpusConfig(files=files, reject_limit=2), account))
    assert [p.id for p in found] == ["0", "1", "2"]
    assert len(account.rejected) == 2 and says[3:] in account.rejected[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"hello\n", ":1: neither a JSON object nor the header"),
        (b'{"name": "x"}\n', ":1: a passage has 'id' and 'text'.*found 'name'"),
        (b"id\ttext\ttitle\n1\tonly text\n", ":2: has 2 fields, and there are 3 columns"),
        (b"id\ttext\ttitle\n1\ta\tb\tc\n", ":2: has 4 fields, and there are 3 columns"),
        (b"id\ttext\ttitle\n\ta\tb\n", ":2: field 'id' must not be empty"),
        (b"PAR1 nonsense", "not a readable Parquet file"),
    ],
)
def test_what_is_no_corpus(tmp_path, data, says):
    path = tmp_path / "c"
    path.write_bytes(data)
    with pytest.raises(InputError, match=says):
        list(read_corpus(CorpusConfig(files=(str(path),))))


def test_parquet_columns(tmp_path):
    pq.write_table(pa.table({"docid": [1, None], "body": ["a", "b"]}), tmp_path / "a")
    rows = read_corpus(CorpusConfig(files=(str(tmp_path / "a"),)))
    assert next(rows) == Passage("1", "a")
    with pytest.raises(InputError, match="row 2: field 'id' is missing"):
        next(rows)
    pq.write_table(pa.table({"number": [1], "text": ["a"]}), tmp_path / "b")
    account = CorpusAccount()
    (unnamed,) = read_corpus(CorpusConfig(files=(str(tmp_path / "b"),)), account)
    assert (unnamed.text, len(unnamed.id)) == ("a", 13) and account.unread == {"number": 1}
    assert "named by their content" in account.notes()[0]
    pq.write_table(pa.table({"id": [1], "words": ["a"]}), tmp_path / "c")
    with pytest.raises(InputError, match=r"no column for the text .*it has id, words"):
        list(read_corpus(CorpusConfig(files=(str(tmp_path / "c"),))))


def test_settings_that_cannot_be():
    for fields, says in [
        ({"files": ()}, "files is empty"),
        ({"overlap": 1}, "overlap = 1"),
        ({"words": 5, "overlap": 5}, "overlap = 5"),
        ({"reject_limit": -1}, "must not be negative"),
    ]:
        with pytest.raises(InputError, match=says):
            CorpusConfig(**fields)


@given(
    st.lists(st.text("ab \n\tü", min_size=0, max_size=6), max_size=40).map(" ".join),
    st.integers(1, 12),
    st.data(),
)
def test_splitting_loses_no_word_and_repeats_only_the_overlap(text, words, data):
    overlap = data.draw(st.integers(0, words - 1))
    parts = list(split(Passage("d", text, "T"), words, overlap))
    every = text.split()
    if not every:
        assert parts == [Passage("d", text, "T")]
        return
    cut = [p.text.split() for p in parts]
    assert all(len(c) == words for c in cut[:-1]) and 1 <= len(cut[-1]) <= words
    assert [p.id for p in parts] == [f"d#{i}" for i in range(len(parts))]
    assert cut[0] + [w for c in cut[1:] for w in c[overlap:]] == every
    assert all(b[:overlap] == a[-overlap:] for a, b in itertools.pairwise(cut) if overlap)
    assert all(len(c) > overlap for c in cut[1:])


# ---------------------------------------------------------------------------- fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
RECORD = st.dictionaries(st.sampled_from(["id", "_id", "text", "title", "contents"]), JSON)
DATA = (
    st.binary(max_size=200)
    | st.lists(RECORD, max_size=4).map(lambda r: "\n".join(map(json.dumps, r)).encode())
    | st.binary(max_size=60).map(lambda b: b"id\ttext\ttitle\n" + b)
    | st.binary(max_size=60).map(lambda b: b"PAR1" + b)
)


@settings(max_examples=150)
@given(DATA, st.sampled_from(["", ".gz", ".zst"]), st.booleans())
def test_anything_at_all_is_read_or_refused(tmp_path_factory, data, suffix, pack):
    path = tmp_path_factory.mktemp("fuzz") / f"c{suffix}"
    if pack and suffix:
        data = (gzip.compress if suffix == ".gz" else zstandard.compress)(data)
    path.write_bytes(data)
    account = CorpusAccount()
    refused = ""
    found = []
    try:
        found = list(read_corpus(CorpusConfig(files=(str(path),), reject_limit=10), account))
    except InputError as error:
        refused = str(error)
    if refused:
        assert str(path) in refused
        return
    assert len(found) == account.passages
    assert all(isinstance(p.id, str) and p.id.strip() for p in found)
    assert all(isinstance(p.text, str) and isinstance(p.title, str) for p in found)


# ---------------------------------------------------------------------------- the store


def test_a_store_gives_any_passage(tmp_path):
    account = CorpusAccount()
    rows = [*ROWS, *(Passage(f"p{i}", f"text {i}") for i in range(500))]
    account.empty = 1
    store = write_store(tmp_path / "s", iter(rows), account)
    again = Store(tmp_path / "s")
    assert list(again) == rows and again[-1] == rows[-1] and again[2:5] == rows[2:5]
    assert len(again) == 504 and again.fingerprint == store.fingerprint
    assert list(again.ids()) == [p.id for p in rows]
    assert [again.row(p.id) for p in rows] == list(range(504)) and again.row("p500") is None
    assert again.manifest["empty"] == 1
    assert '"empty": true' in (tmp_path / "s" / "passages.jsonl").read_text().splitlines()[2]
    with pytest.raises(IndexError):
        again[504]
    other = write_store(tmp_path / "t", iter(rows[1:]), CorpusAccount())
    assert other.fingerprint != store.fingerprint


def test_ids_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_hash", lambda name: 5)
    store = write_store(tmp_path / "s", iter(ROWS), CorpusAccount())
    assert [store.row(p.id) for p in ROWS] == [0, 1, 2, 3] and store.row("none") is None


def test_an_id_that_repeats_is_an_error_and_leaves_nothing(tmp_path):
    for name, ids in (("a", "pq"), ("b", "rsp")):
        (tmp_path / name).write_bytes(lines({"id": i, "text": "t"} for i in ids))
    account = CorpusAccount()
    files = (str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(InputError, match=r"passage 3 of .*b repeats the id 'p' of passage 1 of"):
        write_store(tmp_path / "s", read_corpus(CorpusConfig(files=files), account), account)
    with pytest.raises(InputError, match="holds no passages"):
        write_store(tmp_path / "s", iter(()), CorpusAccount())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_store_that_was_cut_short_is_refused(tmp_path):
    write_store(tmp_path / "s", iter(ROWS), CorpusAccount())
    whole = (tmp_path / "s" / "passages.jsonl").read_bytes()
    (tmp_path / "s" / "passages.jsonl").write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"passages.jsonl: cut short or changed"):
        Store(tmp_path / "s")
    (tmp_path / "s" / "passages.jsonl").write_bytes(whole)
    np.save(tmp_path / "s" / "offsets.npy", np.zeros(2, np.int64))
    with pytest.raises(InputError, match=r"cut short or changed"):
        Store(tmp_path / "s")
    with pytest.raises(InputError, match="holds no passages"):
        Store(tmp_path / "nowhere")
