"""Files read into columns: against the library's own readers; kept, changed, broken, foreign."""

from __future__ import annotations

import gzip
import json
import math
import os

import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.explore.columns import read_columns, together
from dynarag_jax.explore.kept import KeptColumns
from dynarag_jax.explore.run_records import RunRecords
from dynarag_jax.explore.sources import find_sets
from dynarag_jax.files import read_jsonl
from dynarag_jax.records import question_to_json, read_questions
from dynarag_jax.rollout_records import read_rollouts

from .conftest import ask


def at_offsets(path, columns):
    """The ids of the records at the columns' places."""
    raw = path.read_bytes()
    places = zip(columns.arrays["offset"], columns.arrays["length"], strict=True)
    return [json.loads(raw[o : o + n])["id"] for o, n in places]


def test_columns_are_the_records(made):
    path = made / "rollout" / "rollouts.jsonl"
    columns, rollouts = read_columns(path, "rollouts"), read_rollouts(path)
    assert columns.strings["id"] == [r.id for r in rollouts] == at_offsets(path, columns)
    ends = columns.arrays["each_start"]
    for i, rollout in enumerate(rollouts):
        own = slice(ends[i], ends[i + 1])
        assert columns.arrays["each_k"][own].tolist() == [len(t.list) for t in rollout.trajectories]
        rewards = [t.reward for t in rollout.trajectories]
        assert columns.arrays["each_reward"][own].tolist() == rewards
        counts = [t.count for t in rollout.trajectories]
        mean = np.average(rewards, weights=counts)
        assert columns.arrays["mean"][i] == pytest.approx(mean)
        assert (columns.arrays["best"][i], columns.arrays["worst"][i]) == (
            max(rewards), min(rewards)
        )  # fmt: skip
    path = made / "train.jsonl"
    columns, questions = read_columns(path, "questions"), read_questions(path)
    assert columns.strings["id"] == [q.id for q in questions] == at_offsets(path, columns)
    assert columns.strings["text"] == [q.text for q in questions]
    assert columns.arrays["needed"].tolist() == [len(q.gold_list() or ()) for q in questions]
    path = made / "evaluate" / "predictions.jsonl"
    columns, rows = read_columns(path, "predictions"), [row for _, row in read_jsonl(path)]
    assert columns.arrays["k"].tolist() == [row["k"] for row in rows]
    assert columns.arrays["score"].tolist() == [row["score"] for row in rows]
    systems = [columns.names["system"][code] for code in columns.arrays["system"]]
    assert systems == [row["system"] for row in rows]


def equal(one, other):
    assert (one.strings, one.names, one.wrong) == (other.strings, other.names, other.wrong)
    assert (one.unread, one.unfinished, one.sha256) == (
        other.unread,
        other.unfinished,
        other.sha256,
    )
    assert one.arrays.keys() == other.arrays.keys()
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, other.arrays[name])
        assert values.dtype == other.arrays[name].dtype


@pytest.mark.parametrize("kind", ["questions", "rollouts", "predictions"])
def test_what_is_kept_is_what_was_read(made, tmp_path, kind):
    path = {
        "questions": made / "train.jsonl",
        "rollouts": made / "rollout" / "rollouts.jsonl",
        "predictions": made / "evaluate" / "predictions.jsonl",
    }[kind]
    first, _ = KeptColumns(tmp_path).get(path, kind)
    equal(first, read_columns(path, kind))
    equal(KeptColumns(tmp_path).get(path, kind)[0], first)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    equal(KeptColumns(tmp_path).get(empty, kind)[0], KeptColumns(tmp_path).get(empty, kind)[0])
    # Kept columns that were cut off are made again.
    for kept in tmp_path.glob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:-100])
    equal(KeptColumns(tmp_path).get(path, kind)[0], first)


def test_a_changed_file_is_read_again(made, tmp_path):
    path = tmp_path / "rollouts.jsonl"
    lines = (made / "rollout" / "rollouts.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]))
    kept = KeptColumns(tmp_path / "kept")
    assert len(kept.get(path, "rollouts")[0]) == 5
    path.write_text("".join(lines))
    assert len(kept.get(path, "rollouts")[0]) == len(lines)
    # Of the same size, and changed a nanosecond later.
    status = path.stat()
    path.write_text("".join(lines).replace('"t0"', '"tX"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert kept.get(path, "rollouts")[0].strings["id"][lines_of(lines, "t0")] == "tX"


def lines_of(lines, name):
    return next(i for i, line in enumerate(lines) if json.loads(line)["id"] == name)


def test_broken_lines_are_counted_and_named_and_an_unfinished_one_is_said(tmp_path):
    good = {"id": "a", "shown": 2, "policy": "p", "reference": "r", "trajectories": []}
    lines = [
        json.dumps(good),
        "{not json",
        json.dumps(good),
        json.dumps(good | {"id": "b", "trajectories": [{"list": [3]}]}),
        json.dumps(good | {"id": "c", "trajectories": [{"list": [1], "reward": "much"}]}),
        "",
        json.dumps(good | {"id": "d"}),
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(lines) + '\n{"id": "e", "sho')
    columns = read_columns(path, "rollouts")
    assert columns.strings["id"] == ["a", "d"]
    assert math.isnan(columns.arrays["mean"][0])
    assert columns.unread == 4
    assert columns.unfinished
    for at, said in enumerate(
        ["not valid JSON", "repeats 'a' of line 1", "outside 1..2", "reward"]
    ):
        assert said in columns.wrong[at]
        assert columns.wrong[at].startswith(f"{path}:{at + 2}")
    # A last line that is whole but for its end is a record.
    path.write_text("\n".join([lines[0], lines[-1]]))
    assert read_columns(path, "rollouts").strings["id"] == ["a", "d"]


def test_parts_of_a_rollout_are_one(copied):
    place = copied / "rollout"
    whole = read_columns(place / "rollouts.jsonl", "rollouts")
    lines = (place / "rollouts.jsonl").read_text().splitlines(keepends=True)
    (place / "rollouts.jsonl").unlink()
    # The parts overlap in one record, as after a kill while they are merged.
    (place / "rollouts.part-0.jsonl").write_text("".join(lines[:5]))
    (place / "rollouts.part-1.jsonl").write_text("".join(lines[4:]))
    paths = next(one for one in find_sets(copied) if one.files[0].kind == "rollouts").files[0].paths
    assert [path.name for path in paths] == ["rollouts.part-0.jsonl", "rollouts.part-1.jsonl"]
    both = together([read_columns(path, "rollouts") for path in paths])
    assert both.strings["id"] == whole.strings["id"]
    for name in whole.arrays.keys() - {"offset"}:
        np.testing.assert_array_equal(both.arrays[name], whole.arrays[name])
    records = RunRecords(copied)
    records.wait()
    (one,) = (s for s in records.state()["sets"] if s["name"] == "train")
    for number in range(len(lines)):
        name = json.loads(lines[number])["id"]
        assert records.question({"set": "train", "id": name})["rollouts"][0]["lists"]
    assert one["sides"][0]["questions"] == len(lines)


@pytest.mark.parametrize("form", ["gzip", "array", "dpr"])
def test_question_files_of_other_forms(copied, form):
    """As stages read them: packed, a JSON array, another project's fields."""
    questions = read_questions(copied / "train.jsonl")
    rows = [question_to_json(q) for q in questions]
    source = copied / "train.jsonl"
    if form == "gzip":
        source.write_bytes(gzip.compress(source.read_bytes()))
    elif form == "array":
        source.write_text(json.dumps(rows, indent=1))
    else:
        source.write_text(json.dumps([
            {"id": q.id, "question": q.text, "answers": list(q.answers), "positive_ctxs": [
                {"passage_id": p.id, "title": p.title, "text": p.text} for p in q.passages
            ], "negative_ctxs": [], "hard_negative_ctxs": []} for q in questions
        ]))  # fmt: skip
    for _ in range(2):  # the second time from what was kept
        records = RunRecords(copied)
        records.wait()
        state = records.state()
        assert not state["failed"]
        found = records.questions({"set": "train"})
        texts = {row["id"]: row["text"] for row in found["rows"]}
        assert texts == {q.id: q.text for q in questions}
        shown = records.question({"set": "train", "id": "t2"})["question"]
        assert [p["text"] for p in shown["passages"]] == [p.text for p in questions[2].passages]


def test_a_run_that_cannot_be_written_is_read_at_each_start(copied, monkeypatch):
    (copied / ".explore").write_text("a file stands where the folder would be")
    said = []
    records = RunRecords(copied, said.append)
    records.wait()
    assert records.questions({"set": "train"})["total"] == 12
    assert "cannot be written" in said[0]
    assert not records.state()["kept"]


def test_what_changed_behind_the_records_is_said(copied):
    rows = [question_to_json(q) for q in read_questions(copied / "evaluation.jsonl")]
    kept = [row | {"ctxs": [{**c, "id": "x" + c["id"]} for c in row["ctxs"]]} for row in rows[1:]]
    new = question_to_json(ask("new", 3))
    (copied / "evaluation.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*kept, new])
    )
    (copied / "train.jsonl").unlink()
    records = RunRecords(copied)
    records.wait()
    train, evaluation = records.state()["sets"]
    assert "no such file" in train["notes"][0]
    assert "was changed after stage 'evaluate' read it" in " ".join(evaluation["notes"])
    assert "lacks 1 questions" in " ".join(evaluation["notes"])
    assert records.question({"set": "train", "id": "t1"})["question"] is None
    found = records.questions({"set": "evaluation"})
    assert found["total"] == 10  # the new one has no records, the lost one no text
    one = records.question({"set": "evaluation", "id": "e1"})
    before = next(x for x in one["systems"] if x["name"] == "before")
    assert "other ids" in before["note"] or not before["list"]


@pytest.mark.parametrize("what", ["nothing", "no run", "no records"])
def test_what_is_no_run_is_refused(made, tmp_path, what):
    if what == "no records":
        (tmp_path / "sft").mkdir()
        (tmp_path / "sft" / "run.json").write_text('{"stage": "sft", "config": {"class": "Sft"}}')
    said = {"nothing": "no such run", "no run": "no stage has run", "no records": r"\(sft\) has"}
    with pytest.raises(InputError, match=said[what]):
        RunRecords(tmp_path / "nowhere" if what == "nothing" else tmp_path)
