"""The terminal's table and summary.json."""

import dataclasses
import json
import math
import unicodedata

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.metrics.intervals import Interval, bootstrap
from dynarag_jax.report import schema as s
from dynarag_jax.report import summary, terminal_table, write_summary


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_table_says_what_the_report_says(report):
    table = terminal_table(report)
    lines = table.splitlines()
    assert max(map(width, lines)) <= 100
    for system in report.systems:
        # A name too long for its column loses its middle, and no two look alike.
        names = [line for line in lines if line.startswith(system.name)] or [
            line for line in lines if "…" in line and system.name.startswith(line.split("…")[0])
        ]
        (row,) = names if system.role == "shuffled" else names[:1]
        assert "shuffled" in row or system.role != "shuffled"
        a, k = system.answer, system.mean_k
        assert f"{100 * a.mean:.1f} [{100 * a.low:.1f},{100 * a.high:.1f}]" in row
        assert f"{k.mean:.2f} [{k.low:.2f},{k.high:.2f}]" in row
        assert row.endswith(f"{system.failed}")
    assert f"needed mean k {report.facts.needed_mean_k:.2f}" in table
    assert "sft 4 min 01 s" in table and "total 5 min 55 s" in table and "1.87 GB" in table
    assert "points" in table and "p = " in table


def test_columns_are_aligned(report):
    lines = terminal_table(report).splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    rows = lines[rule + 1 : rule + 1 + len(report.systems)]
    # The brackets of each of the four interval columns stand below each other.
    places = {tuple(i for i, c in enumerate(row) if c in "[,]" and i > 19) for row in rows}
    assert len(places) == 1 and len(next(iter(places))) == 12


def test_table_stays_within_its_width_whatever_the_names_and_numbers():
    long, big = "東京" * 40 + "\x1b[31m\nname", bootstrap([1.0])
    huge = Interval(123456.0, 123000.0, 124000.0, 1)
    report = s.RunReport(
        "title " * 40,
        s.RunFacts("config" * 30, 0, 1, seconds={f"stage {i} " * 5: 4000.0 for i in range(9)}),
        [s.SystemRow(long, "other", big, big, dataclasses.replace(big, mean=45.0), huge,
                     failed=123456),
         s.SystemRow("x", "other", big, None, big)],
        answer_metric="ROUGE-L, by the rouge-score package",
    )  # fmt: skip
    table = terminal_table(report)
    assert max(map(width, table.splitlines())) <= 100
    assert "\x1b" not in table and "123,456" in table


def test_table_without_systems_or_stages():
    bare = s.RunReport("A run", s.RunFacts("c", 3, 1))
    assert terminal_table(bare).splitlines()[1] == "config c   seed 3   1 question"
    one = s.SystemRow("behavior cloning", "cloning", bootstrap([1]), None, bootstrap([0]))
    row = terminal_table(dataclasses.replace(bare, systems=[one])).splitlines()[5]
    assert row.split() == ["behavior", "cloning", "100.0", "[100.0,100.0]", "–", "0.00",
                           "[0.00,0.00]", "–"]  # fmt: skip


def test_summary_holds_the_numbers_as_fractions(report, tmp_path):
    write_summary(tmp_path / "summary.json", report)
    read = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert read == summary(report)
    assert read["seed"] == 0 and read["seconds"]["sft"] == 241.0
    assert read["seconds_total"] == pytest.approx(sum(report.facts.seconds.values()))
    assert read["peak_memory_bytes"] == 1_873_000_000
    assert read["needed_mean_k"] == report.facts.needed_mean_k
    assert list(read["systems"]) == [system.name for system in report.systems]
    assert [row["needed"] for row in read["ranks"]] == [1, 2, 3]
    assert read["ranks"][1]["at"][5] == 170 and read["ranks"][1]["absent"] == 5
    for system in report.systems:
        found = read["systems"][system.name]
        assert found["answer"] == {
            "mean": system.answer.mean, "low": system.answer.low, "high": system.answer.high,
        }  # fmt: skip
        assert 0 <= found["answer"]["low"] <= found["answer"]["mean"] <= 1
        assert found["mean_k"]["mean"] == system.mean_k.mean
        assert found["failed"] == system.failed
    assert read["change"]["p_value"] == report.change.p_value
    assert read["types"]["two_hop"]["after"]["mean_k"] == pytest.approx(2.1)


def test_summary_takes_a_mapping_and_refuses_what_json_has_not(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_summary(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}  # the old file stands
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_summary_refuses_two_systems_of_one_name(report):
    with pytest.raises(InputError, match="two systems have the name 'behavior cloning'"):
        summary(dataclasses.replace(report, systems=[report.systems[0]] * 2))
