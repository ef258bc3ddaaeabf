"""The table beside MaxText: ratios of what is kept, and nothing that is not there."""

from __future__ import annotations

import ast
import json
import sys

import pytest

from benchmarks import maxtext
from dynarag_jax.compilers.topologies import read_topology

NAME = "v5p:4x4x4"


def run(monkeypatch, capsys, folder, *arguments: str) -> str:
    files = ["--results", str(folder / "theirs.json"), "--ours", str(folder / "ours.json")]
    monkeypatch.setattr(sys, "argv", ["maxtext", *files, *arguments])
    maxtext.main()
    return capsys.readouterr().out


def test_the_table_sets_what_is_kept_side_by_side(tmp_path, monkeypatch, capsys):
    gib = 2**30
    ours = {
        "held": 4 * gib, "operations": 2e12,
        "sent": {"all-gather": 2e9, "all-reduce": 1e9}, "compiler": "libtpu 2",
        "date": "2026-01-01", "traffic": 0.0, "model": 1e12,
    }  # fmt: skip
    theirs = {
        "held": 8 * gib, "operations": 8e12,
        "sent": {"all-gather": 12e9}, "versions": {"maxtext": "0", "jax": "1", "libtpu": "2"},
        "date": "2026-01-02", "traffic": 2.765e12,
    }  # fmt: skip
    pair = maxtext.row_of(NAME, "pair")
    assert pair.name == "llama3-8b full full v5p:4x4x4/1x64x1 pair"
    # Twice in a chip's memory, three times the operations for four questions.
    four = maxtext.row_of(NAME, "pair", 4)
    assert four.name == "llama3-8b full full v5p:4x4x4/1x64x1 pair*4"
    more = ours | {"held": 8 * gib, "operations": 6e12, "model": 4e12}
    (tmp_path / "ours.json").write_text(json.dumps({four.name: more, pair.name: ours}))
    (tmp_path / "theirs.json").write_text(json.dumps({f"{NAME} pair": theirs}))
    text = run(monkeypatch, capsys, tmp_path, "--tasks", "pair", "sft", "--table")
    row = "| v5p:4x4x4 | pair | 1 | 4.0 | 8.0 | 0.50 | 2.0 | 8.0 | 0.25 | 3.0 | 12.0 | 0.25 |"
    assert row in text
    # Operations and bytes are those of one of four questions.
    of_four = "| v5p:4x4x4 | pair | 4 | 8.0 | 8.0 | 1.00 | 1.5 | 8.0 | 0.19 | 0.8 | 12.0 | 0.06 |"
    assert of_four in text
    # Ours is bound by links (3e9 of 6e11 bytes a second), MaxText by memory, one second of it.
    device = read_topology(NAME).accelerator
    seconds = max(2e12 / device.peak, 3e9 / device.links)
    traffic = 2.765e12 / device.bandwidth
    rest = f" {seconds:.2f} | {traffic:.2f} | {seconds / traffic:.2f} |"
    useful = maxtext.model_operations(NAME, "pair")
    # Two sequences of 8,192 tokens: six operations a parameter (less the embedding) and token, and
    # attention over half of all pairs of positions.
    parameters, attended = 8.03e9 - 128256 * 4096, 32 * 12 * 4096 * 8192 / 2
    assert useful == pytest.approx(2 * 8192 * (6 * parameters + attended), rel=0.01)
    rest += f" {1e12 / device.peak / seconds:.0%} | {useful / device.peak / traffic:.0%} |"
    assert row + rest in text
    # A task of which one side was not compiled is no row.
    assert "sft: not in" in text
    assert "| sft |" not in text
    assert text.endswith("MaxText 0, JAX 1, libtpu 2, 2026-01-02; ours by libtpu 2, 2026-01-01\n")


def test_nothing_is_compiled_without_maxtexts_python(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="--python"):
        run(monkeypatch, capsys, tmp_path)


def test_what_maxtexts_python_runs_is_a_program():
    assert ast.parse(maxtext.KEEP).body


def test_slices_have_as_many_chips_as_maxtext_means():
    # v5p counts two cores a chip.
    for name, theirs in maxtext.SLICES.items():
        kind, _, count = theirs.partition("-")
        assert read_topology(name).devices * (2 if kind == "v5p" else 1) == int(count)
