"""Several processes as one: real ones agree, and what they appended becomes one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarag_jax import parts, processes
from dynarag_jax.errors import InputError
from dynarag_jax.sharding import make_mesh
from tests.hosts import free_port

ROOT = Path(__file__).resolve().parents[1]

PROCESS = """
import json, sys
import jax
port, here = sys.argv[1], int(sys.argv[2])
from dynarag_jax import processes
assert processes.count() == 1 and processes.is_primary()  # before it has joined
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=here)
from dynarag_jax.errors import InputError
from dynarag_jax.sharding import make_mesh

said = {"index": processes.index(), "count": processes.count(), "first": processes.is_primary()}
said["agreed"] = processes.agree({"word": f"of {here}", "number": 2**40 + here, "none": None})
said["short"] = processes.agree("a longer word" if here else "ä")
said["any"] = [processes.in_any(here == 1), processes.in_any(False)]
for turn in range(2):
    said["gathered"] = [x.decode() for x in processes.gather("key", f"{here}/{turn}".encode())]
processes.raise_together(None)
try:
    processes.raise_together(InputError("mine") if here else None)
except (InputError, OSError) as error:
    said["raised"] = [type(error).__name__, str(error)]
said["once"] = processes.once(lambda: f"by {here}")
def fail():
    raise OSError(28, "full", "file")
try:
    processes.once(fail)
except (InputError, OSError) as error:
    said["failed"] = [type(error).__name__, error.errno, error.strerror, error.filename]
for sizes in ((2, 2, 1), (1, 1, 4), (1, 4, 1)):
    team = processes.ProcessTeam(make_mesh(*sizes))
    said[str(sizes)] = [team.count, team.index, team.leader, team.sum([1, 2**40]),
                        team.max([here, -here]), team.min(5 - here), team.any(here == 1)]
    words = [team.told(lambda: f"{turn} of {here}" * 2**18) for turn in range(3)]
    said[f"told {sizes}"] = [[word[:6], len(word)] for word in words]
    try:
        team.told(lambda: (_ for _ in ()).throw(InputError(f"of {here}")))
    except InputError as error:
        said[f"told {sizes}"].append(str(error))
# A batch of 8 rows on every mesh: each process reads its rows, and all lie where they belong.
import numpy as np
from dynarag_jax.policy.batches import BatchShape, Example, collate, place, process_rows
from dynarag_jax.sharding import mesh_of
examples = [Example(str(i), [i + 1], [[i]]) for i in range(8)]
shape = BatchShape(3, 2, 2, 2)
whole = collate(examples, shape)
said["rows"] = {}
for sizes in ((4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 1, 4), (2, 1, 2), (1, 2, 2),
              (1, 1, 4, 1), (1, 1, 2, 2), (2, 1, 2, 1)):
    mesh = mesh_of(sizes)
    rows = process_rows(mesh, 8)
    said["rows"][str(sizes)] = rows
    batch = place(mesh, collate([examples[row] for row in rows], shape))
    for ours, theirs in zip(batch, whole, strict=True):
        if theirs is None:  # what no example has
            assert ours is None
            continue
        assert ours.shape == theirs.shape, (sizes, ours.shape)
        for shard in ours.addressable_shards:
            np.testing.assert_array_equal(shard.data, theirs[shard.index])
processes.wait("the end")
print(json.dumps(said))
"""


def test_two_processes_agree():
    port = str(free_port())
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(i)],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    out = [p.communicate(timeout=240) for p in both]
    assert [p.returncode for p in both] == [0, 0], out
    first, second = (json.loads(said.splitlines()[-1]) for said, _ in out)
    assert [x["index"] for x in (first, second)] == [0, 1]
    assert [x["first"] for x in (first, second)] == [True, False]
    assert first["raised"] == ["InputError", "mine (in process 1)"]
    assert second["raised"] == ["InputError", "mine"]
    assert [said["once"] for said in (first, second)] == ["by 0", None]
    assert first["failed"] == ["OSError", 28, "full", "file"]
    assert second["failed"] == ["OSError", 28, "full (in process 0)", "file"]
    for said in (first, second):
        assert said["count"] == 2
        assert said["agreed"] == {"word": "of 0", "number": 2**40, "none": None}
        assert said["short"] == "ä" and said["any"] == [True, False]
        assert said["gathered"] == ["0/1", "1/1"]
    # Two teams of one, one team of both, two teams again; sums are over teams, not processes.
    for said, here in ((first, 0), (second, 1)):
        assert said["(2, 2, 1)"] == [2, here, True, [2, 2**41], [1, 0], 4, True]
        assert said["(1, 1, 4)"] == [1, 0, here == 0, [1, 2**40], [1, 0], 4, True]
        assert said["(1, 4, 1)"] == said["(2, 2, 1)"]
        # Where a team shares its questions, its leader's word; else each one's own.
        for sizes, by in (("(2, 2, 1)", here), ("(1, 1, 4)", 0), ("(1, 4, 1)", here)):
            words = [[f"{turn} of {by}", 6 * 2**18] for turn in range(3)]
            assert said[f"told {sizes}"] == [*words, f"of {by}"]
        half = list(range(4 * here, 4 * here + 4))
        assert said["rows"] == {
            "(4, 1, 1)": half, "(1, 4, 1)": half, "(2, 2, 1)": half, "(2, 1, 2)": half,
            "(1, 2, 2)": half, "(1, 1, 4)": list(range(8)),
            # Partners along the sequence axis read the same rows, as those along tensor do.
            "(1, 1, 4, 1)": list(range(8)), "(1, 1, 2, 2)": list(range(8)), "(2, 1, 2, 1)": half,
        }  # fmt: skip


def test_one_process_agrees_with_itself():
    processes.wait("nobody")
    processes.raise_together(None)
    assert processes.agree([1, "x"]) == [1, "x"] and processes.in_any(True)
    assert processes.gather("key", b"own") == [b"own"] and not processes.stop_requested(3)
    with pytest.raises(InputError, match="mine"):
        processes.raise_together(InputError("mine"))
    team = processes.ProcessTeam(make_mesh(devices=jax.devices()[:1]))
    assert (team.count, team.index, team.leader, team.sum([3]), team.min(2)) == (1, 0, True, [3], 2)


@given(
    st.permutations(range(6)),
    st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=3),
    st.booleans(),
)
def test_parts_become_one_file_in_order(tmp_path_factory, order, held, merged_before):
    directory = tmp_path_factory.mktemp("parts")
    first: dict[str, dict] = {}
    for team, ids in enumerate(held):
        path = parts.part(directory, "rows", team)
        if merged_before and team == 0:
            path = directory / "rows.jsonl"
        rows = [{"id": f"q{i}", "from": f"{team}/{place}"} for place, i in enumerate(ids)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for row in rows:
            first.setdefault(row["id"], row)
    assert parts.keys_of(parts.parts(directory, "rows")) == first.keys()
    wanted = [f"q{i}" for i in order[:5]]
    assert parts.merge(directory, "rows", wanted) == len(first)
    lines = (directory / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [first[i] for i in wanted if i in first]
    assert [path.name for path in directory.iterdir()] == ["rows.jsonl"]
