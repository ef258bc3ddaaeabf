"""The matrix of plan against compiler: its rows are real models', and what is kept is not lost."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import compile as matrix
from dynarag_jax.compilers.topologies import read_topology
from dynarag_jax.errors import InputError
from dynarag_jax.sharding import abstract_mesh, mesh_sizes

PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "gemma3-1b": 999_885_952,
    "qwen3-4b": 4_022_468_096,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
}
"""as their model cards and checkpoints count them"""


def run(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["compile", *arguments])
    matrix.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("family", matrix.FAMILIES)
def test_rows_are_of_the_models_that_they_name(family):
    for mesh in matrix.MESHES[family]:
        row = matrix.Row(family, "lora", "full", mesh, "group")
        _, cfg, streams, sizes = matrix.prepare(row)
        devices = read_topology(mesh.partition("/")[0]).devices
        assert mesh_sizes(*sizes, devices) == sizes
        assert streams["reranker"].branches == 8
        assert streams["reranker"].batch == sizes[0] * sizes[1]
        planned = matrix.planned(row)
        assert planned.parameters == PARAMETERS[family]
        # Rank 16 beside seven matrices a layer.
        q, kv = cfg.heads * cfg.head_size, cfg.kv_heads * cfg.head_size
        beside = 2 * (cfg.width + q) + 2 * (cfg.width + kv) + 3 * (cfg.width + cfg.mlp)
        assert planned.trained == 16 * cfg.layers * beside


def test_a_mesh_may_cut_prompts():
    row = matrix.Row("gemma3-1b", "lora", "full", "v5e:2x4/1x2x4x1", "sft")
    _, _, streams, sizes = matrix.prepare(row)
    assert (sizes, streams["reranker"].batch) == ((1, 2, 4, 1), 2)
    whole = matrix.Row("gemma3-1b", "lora", "full", "v5e:2x4/1x8x1", "sft")
    parts, rows = matrix.planned(row), matrix.planned(whole)
    assert parts.weights == rows.weights
    assert parts.activations < 0.3 * rows.activations
    with pytest.raises(SystemExit, match="give SLICE/DATAxFSDPxTENSOR"):
        matrix.prepare(matrix.Row("gemma3-1b", "lora", "full", "v5e:2x4/8", "sft"))


def test_rows_that_stand_in_the_file_are_shown_and_not_compiled_again(
    tmp_path, monkeypatch, capsys
):
    mesh = "v5e:2x4/1x8x1"
    row = matrix.Row("gemma3-1b", "lora", "full", mesh, "pair")
    other = matrix.Row("gemma3-1b", "full", "full", mesh, "pair")
    kept = {"date": "2026-01-02", "compiler": "libtpu 0", "seconds": 61.0}
    estimate = matrix.planned(row).total
    found = kept | {
        "held": estimate // 2, "operations": 3e13,
        "model": 2e13, "traffic": 1e11, "sent": {"all-gather": 2e9, "all-reduce": 1e9},
        "bound": "compute", "bound_seconds": 0.2, "mfu": 0.5,
    }  # fmt: skip
    dots = matrix.Row("gemma3-1b", "lora", "dots", mesh, "pair")
    rows = {row.name: found, other.name: kept | {"too_large": "used 20.0G of 15.75G hbm"}}
    rows[dots.name] = kept | {"failed": "INTERNAL: no tile sizes"}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    only = ["--families", "gemma3-1b", "--tasks", "pair", "--meshes", mesh, "--trained", "lora"]
    text = run(monkeypatch, capsys, "--results", str(file), *only)
    assert "| gemma3-1b | lora | dots | v5e:2x4/1x8x1 | pair |" in text
    assert "| compiler fails |" in text
    only = [*only[:-2], "--remat", "full"]
    text = run(monkeypatch, capsys, "--results", str(file), *only)
    assert "..." not in text
    first, second, *_ = [line for line in text.splitlines() if line.startswith("| gemma3-1b")]
    assert "| 2.00 |" in first  # the plan's total beside half of it
    assert "| 30.0 | 1.50 | 3.0 | compute | 50% | 61 |" in first
    assert "| does not fit |" in second
    assert text.endswith("2 of 2 rows; libtpu 0; 2026-01-02\n")
    # A row of an earlier version, which did not keep all that is read, is none.
    file.write_text(json.dumps({row.name: {"arguments": 1}, other.name: rows[other.name]}))
    text = run(monkeypatch, capsys, "--results", str(file), "--table")
    assert "1 rows lack what is read now" in text and "\n1 of " in text
    file.write_text(json.dumps(rows))
    # Of the whole matrix, what is not there is counted.
    text = run(monkeypatch, capsys, "--results", str(file), "--table")
    assert "\n3 of " in text and "3 of 3" not in text
    # Rows of other meshes than the matrix has are shown, too, where their models are asked for.
    more = matrix.Row("gemma3-1b", "lora", "full", "h100:8/1x8x1", "pair")
    file.write_text(json.dumps(rows | {more.name: found}))
    text = run(monkeypatch, capsys, "--results", str(file), "--table")
    assert "| h100:8/1x8x1 |" in text and "\n4 of " in text
    text = run(monkeypatch, capsys, "--results", str(file), "--table", "--families", "qwen3-4b")
    assert "h100" not in text


def test_slices_of_several_and_a_samplers_programs_are_rows(tmp_path, monkeypatch, capsys):
    row = matrix.Row("llama3-8b", "full", "full", "2*v5e:16x16/2x256x1", "sft")
    assert (row.topology.slices, row.topology.devices, row.sizes) == (2, 512, (2, 256, 1))
    assert matrix.planned(row).devices == 512
    decode = matrix.Row("llama3-8b", "none", "none", "v5e:2x4/1x8x1", "decode")
    cfg, found, needs, written = matrix.sampled(decode, abstract_mesh((1, 8, 1)))
    # Eight lists of each prompt; weights in 2 bytes over 8 chips, and the layers once more.
    assert (needs.lists, written.branches, written.prompt, cfg.dtype) == (8, 8, 8192, "bfloat16")
    assert found.weights == pytest.approx(2 * PARAMETERS["llama3-8b"] / 8, rel=1e-3)
    pool = found.pools["lists"]
    assert pool is not None and pool[0].slots % 8 == 0
    kept = {
        "date": "2026-01-02", "compiler": "libtpu 0", "seconds": 61.0,
        "held": found.held + found.working["lists"].decode,
        "operations": 3e13, "model": 2e13, "sent": {}, "bound": "memory", "mfu": 0.25,
    }  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps({decode.name: kept}))
    only = ["--families", "llama3-8b", "--tasks", "decode", "--meshes", "v5e:2x4/1x8x1"]
    text = run(monkeypatch, capsys, "--results", str(tmp_path / "rows.json"), *only)
    assert "| llama3-8b | none | none | v5e:2x4/1x8x1 | decode |" in text
    assert "| 1.00 |" in text and "1 of 1 rows" in text
    # One chip has no room for a 70B, and says so.
    large = matrix.Row("llama3-70b", "none", "none", "v5e:2x2/1x4x1", "decode")
    with pytest.raises(InputError, match="not one prompt"):
        matrix.sampled(large, abstract_mesh((1, 4, 1)))
