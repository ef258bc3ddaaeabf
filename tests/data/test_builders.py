"""Prepared datasets: written by TFDS as ArrayRecord, read without TensorFlow, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dynarag_jax.data.builders import PreparedQuestions, is_prepared, prepare, splits
from dynarag_jax.data.catalog import ALIASES, BENCHMARKS, benchmark
from dynarag_jax.data.formats import FORMATS
from dynarag_jax.data.hub import hub_splits
from dynarag_jax.errors import InputError
from dynarag_jax.metrics import benchmarks
from dynarag_jax.records import TASKS, Passage, Question

ROOT = Path(__file__).resolve().parents[2]
ASKED = [
    Question(
        f"q{i}", f"Frage {i} é", ("a", "b") if i % 2 else (), passages=(
            Passage("p", "text", "title", 0.1 + i), Passage("r", "\u2603")),
        gold=() if i % 3 else None, expert=(2, 1), extra={"dataset": "nq", "qa_pairs": [["x"]]},
    )
    for i in range(25)
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("datasets")
    made = {"train": lambda: iter(ASKED), "validation": lambda: iter(ASKED[:4])}
    assert prepare("nq", place, made) == {"train": 25, "validation": 4}
    return place / "nq"


def test_questions_come_back_exactly_and_in_order(prepared):
    train = PreparedQuestions(prepared, "train")
    assert splits(prepared) == {"train": 25, "validation": 4}
    assert len(train) == 25 and list(train) == ASKED
    assert train[7] == ASKED[7] and train[-1] == ASKED[-1] and train[3:6] == ASKED[3:6]
    assert train[0].passages[0].score == 0.1  # TFDS itself would keep 32 bits of it
    with pytest.raises(IndexError):
        train[25]
    assert list(PreparedQuestions(prepared / "1.0.0", "validation")) == ASKED[:4]


def test_tensorflow_is_never_imported_and_tfds_reads_it(prepared):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "from dynarag_jax.data.builders import PreparedQuestions\n"
        "assert len(PreparedQuestions(sys.argv[1], 'train')) == 25\n"
        "made = tfds.builder_from_directory(sys.argv[1] + '/1.0.0')\n"
        "source = made.as_data_source(split='train')\n"
        "assert source[3]['id'] == b'q3' and source[3]['answers'] == [b'a', b'b'], source[3]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(prepared)], cwd=ROOT, check=True)


def test_the_room_imports_without_tfds(tmp_path):
    code = (
        "import sys\nfrom dynarag_jax.data import builders, conversion, formats, hub\n"
        "heavy = {'tensorflow_datasets', 'array_record', 'pyarrow', 'zstandard', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sys.modules['array_record'] = None\n"
        "from dynarag_jax.errors import MissingExtra\n"
        "try:\n    builders.prepare('nq', sys.argv[1], {})\n"
        "except MissingExtra as error:\n    assert 'dynarag_jax[data]' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)


def test_mistakes(prepared, tmp_path):
    with pytest.raises(InputError, match=r"no split 'test'.*it has train, validation"):
        PreparedQuestions(prepared, "test")
    with pytest.raises(InputError, match="no prepared dataset here"):
        PreparedQuestions(tmp_path, "train")
    with pytest.raises(InputError, match="is prepared already"):
        prepare("nq", prepared.parent, {})
    assert is_prepared(prepared) and not is_prepared(tmp_path)

    def broken():
        yield ASKED[0]
        raise InputError("file:2: field 'question' is missing")

    with pytest.raises(InputError, match=r"^file:2: field 'question' is missing$"):
        prepare("nq", tmp_path, {"train": broken})
    assert not is_prepared(tmp_path / "nq")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="no dataset that TFDS can open"):
        PreparedQuestions(damaged, "train")


def test_damaged_records_are_named(prepared, tmp_path):
    place = tmp_path / "nq"
    place.mkdir()
    for file in (prepared / "1.0.0").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    record = next(place.glob("nq-train*"))
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(InputError, match=r"nq\[train\].*cannot be read"):
        list(PreparedQuestions(place, "train"))


# ---------------------------------------------------------------------------- the catalog


def test_the_catalog_agrees_with_the_metrics_and_the_formats():
    assert set(BENCHMARKS) == set(benchmarks.BENCHMARKS)
    for name, entry in BENCHMARKS.items():
        assert set(entry.metrics) <= set(benchmarks.BENCHMARKS[name])
        assert entry.metrics[0] == benchmarks.HEADLINE[name]
        assert entry.task in TASKS and set(entry.formats) <= set(FORMATS)
    assert set(ALIASES.values()) <= set(BENCHMARKS)
    assert benchmark("2Wiki") is BENCHMARKS["2wikimultihopqa"]
    with pytest.raises(InputError, match=r"no benchmark 'asaq' \(did you mean 'asqa'\?\)"):
        benchmark("asaq")


def test_files_of_the_hub():
    entry = BENCHMARKS["hotpotqa"]
    names = [f"distractor/{s}/{i:04}.parquet" for s in ("train", "validation") for i in range(2)]
    assert hub_splits([".gitattributes", "fullwiki/test/0000.parquet", *names], entry) == {
        "train": names[:2], "validation": names[2:],
    }  # fmt: skip
    alone = replace(entry, hub_config="")
    assert hub_splits(["default/test/0000.parquet"], alone) == {
        "test": ["default/test/0000.parquet"]
    }
    with pytest.raises(InputError, match="there are a, b; get the files elsewhere"):
        hub_splits(["a/test/0000.parquet", "b/test/0000.parquet"], alone)
    with pytest.raises(InputError, match="no whole files"):
        hub_splits(["distractor/partial-train/0000.parquet"], entry)
