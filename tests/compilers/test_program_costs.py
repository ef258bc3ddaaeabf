"""Costs of programs against formulas by hand, for programs that XLA compiles here."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import NamedSharding, PartitionSpec

from dynarag_jax.compilers import program_costs
from dynarag_jax.compilers.program_costs import read_program
from dynarag_jax.compilers.topologies import (
    by_kind,
    compile_program,
    held_bytes,
    read_topology,
    roofline,
)
from dynarag_jax.errors import InputError
from dynarag_jax.sharding import make_mesh

WIDTH, ROWS = 64, 32


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, 4, 1, devices=jax.devices()[:4])


def text_of(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile().as_text()


@pytest.mark.parametrize("layers", [2, 5])
def test_a_loops_body_counts_as_often_as_it_runs(layers):
    def run(x, matrices):
        return jax.lax.scan(lambda y, w: (jnp.sin(y @ w), None), x, matrices)[0]

    shapes = (jnp.ones((ROWS, WIDTH)), jnp.ones((layers, WIDTH, WIDTH)))
    costs = read_program(text_of(run, *shapes))
    assert costs.operations == layers * 2 * ROWS * WIDTH**2
    # Each matrix is read once; not the whole stack in every turn.
    assert 4 * layers * WIDTH**2 <= costs.traffic < 4 * layers * (3 * WIDTH**2 + 10 * ROWS * WIDTH)
    twice = read_program(text_of(lambda x, w: run(run(x, w), w), *shapes))
    assert twice.operations == 2 * costs.operations


def test_loops_within_loops_multiply():
    def outer(x, w):
        def turn(y, _):
            return jax.lax.scan(lambda z, _: (jnp.sin(z @ w), None), y, None, length=3)[0], None

        return jax.lax.scan(turn, x, None, length=4)[0]

    costs = read_program(text_of(outer, jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH))))
    assert costs.operations == 12 * 2 * ROWS * WIDTH**2


def test_loops_that_the_data_end_run_as_often_as_is_said():
    """A bound that is an argument, and a limit beside which a constant stands that is none."""

    def run(x, w, most):
        def outer(carry):
            i, y = carry
            inner = lambda _, z: jnp.sin(z @ w)  # noqa: E731
            return i + 1, jnp.cos(jax.lax.fori_loop(0, most[1], inner, y))

        return jax.lax.while_loop(lambda c: c[0] * 512 < most[0], outer, (0, x))[1]

    text = text_of(run, jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH)), jnp.ones(2, jnp.int32))
    once = 2 * ROWS * WIDTH**2
    for trips, times in (((), 1), ((3,), 3), ((3, 2.5), 7.5)):
        assert read_program(text, trips).operations == times * once
    # One whose trips the program knows counts as it says.
    text = text_of(
        lambda x, w: jax.lax.fori_loop(0, 4, lambda _, y: jnp.sin(y @ w), x),
        jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH)),
    )  # fmt: skip
    assert read_program(text, (7,)).operations == 4 * once


LOOP = """HloModule made

%body (c: (u32[], f32[8,8])) -> (u32[], f32[8,8]) {
  %c = (u32[], f32[8,8]) parameter(0)
  %i = u32[] get-tuple-element(%c), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%c), index=1
  %by = u32[] constant(BY)
  %next = u32[] add(%i, %by)
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (u32[], f32[8,8]) tuple(%next, %y)
}

%goes (d: (u32[], f32[8,8])) -> pred[] {
  %d = (u32[], f32[8,8]) parameter(0)
  %j = u32[] get-tuple-element(%d), index=0
  %limit = u32[] constant(9)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %first = u32[] constant(FIRST)
  %begin = (u32[], f32[8,8]) tuple(%first, %a)
  %loop = (u32[], f32[8,8]) while(%begin), condition=%goes, body=%body
  ROOT %end = f32[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(("first", "by"), [(0, 1), (0, 2), (3, 2), (1, 4), (9, 1)])
def test_a_loop_that_counts_otherwise_runs_as_often_as_it_counts(first, by):
    text = LOOP.replace("FIRST", str(first)).replace("BY", str(by))
    assert read_program(text).operations == len(range(first, 9, by)) * 2 * 8**3


def test_collectives_send_what_rings_send(mesh):
    """A gathered weight, and gradients that are summed and scattered or summed for all."""
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32, sharding=rows)
    size = 4 * WIDTH**2

    gathered = read_program(text_of(lambda x, w: x @ w, x, w, out_shardings=rows))
    assert by_kind(gathered.collectives) == {"all-gather": (1, size * 3 / 4)}
    assert gathered.operations == 2 * ROWS * WIDTH**2 / 4

    summed = read_program(text_of(lambda x: x.T @ x, x, out_shardings=whole))
    assert by_kind(summed.collectives) == {"all-reduce": (1, 2 * size * 3 / 4)}
    assert summed.sent == 2 * size * 3 / 4

    def layers(x, matrices):
        return jax.lax.scan(lambda y, w: (jnp.sin(y @ w), None), x, matrices)[0]

    stack = jax.ShapeDtypeStruct(
        (6, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    looped = read_program(text_of(layers, x, stack, out_shardings=rows))
    assert looped.sent == 6 * size * 3 / 4
    assert max(one.largest for one in looped.collectives) == size


HEAD = """HloModule made

%one (a: f32[8,16]) -> f32[8,16] {
  ROOT %a = f32[8,16]{1,0} parameter(0)
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}", ("all-gather", 256.0)),
        ("all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}", ("all-gather", 384.0)),
        (
            "all-gather(%x), replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}",
            ("all-gather", 448.0),
        ),
        ("collective-permute(%x), source_target_pairs={{0,1}}", ("collective-permute", 512.0)),
        ("all-to-all(%x), replica_groups={{0,1,2,3}}, dimensions={0}", ("all-to-all", 384.0)),
        ("reduce-scatter(%x), replica_groups={{0,1}}, to_apply=%one", ("reduce-scatter", 256.0)),
    ],
)  # fmt: skip
def test_groups_are_read_in_each_way_they_are_written(line, expected):
    costs = read_program(f"{HEAD}  ROOT %made = f32[8,16]{{1,0}} {line}\n}}\n")
    assert [(one.kind, one.sent) for one in costs.collectives] == [expected]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # A part of 2 rows of 8 is read, and stays near; or is read and written back.
        (("((f32[8,16]{1,0}), f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={}",
          "f32[2,16]{1,0:S(1)} slice-done(%made)"), 128),
        (("((f32[8,16]{1,0}), f32[2,16]{1,0}, s32[]{:S(2)}) slice-start(%x), slice={}",
          "f32[2,16]{1,0} slice-done(%made)"), 256),
        (("f32[2,16]{1,0:S(1)} slice(%x), slice={}",), 128),
        # What is brought near is read once; a copy within main memory is written, too.
        (("(f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%x)",
          "f32[8,16]{1,0:S(1)} copy-done(%made)"), 512),
        (("(f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%x)",
          "f32[8,16]{1,0} copy-done(%made)"), 1024),
        # What runs beside the rest counts as what it runs.
        (("((f32[8,16]{1,0}), f32[8,16]{1,0}, u32[]) call-start(%x), to_apply=%sine",
          "f32[8,16]{1,0} call-done(%made)"), 1024),
    ],
    ids=["near", "back", "at once", "copied near", "copied", "beside"],
)  # fmt: skip
def test_what_is_begun_and_done_apart_moves_once(lines, expected):
    sine = HEAD.split("ENTRY")[0] + (
        "%sine (b: f32[8,16]) -> f32[8,16] {\n  %b = f32[8,16]{1,0} parameter(0)\n"
        "  ROOT %s = f32[8,16]{1,0} sine(%b)\n}\n\nENTRY" + HEAD.split("ENTRY")[1]
    )
    steps = "\n".join(
        f"  %{name} = {line}" for name, line in zip(("made", "done"), lines, strict=False)
    )
    assert read_program(f"{sine}{steps}\n}}\n").traffic == expected


def test_a_slice_is_read_as_one_where_a_fusion_inside_of_a_fusion_takes_it():
    text = """HloModule m

%taken (w: f32[30,8,16], i: s32[]) -> f32[8,16] {
  %w = f32[30,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[30,128]{1,0} bitcast(%w)
  %d = f32[1,128]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,128}
  ROOT %t = f32[8,16]{1,0} bitcast(%d)
}

%fused (w.1: f32[30,8,16], i.1: s32[], x.1: f32[8,16]) -> f32[8,16] {
  %w.1 = f32[30,8,16]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %x.1 = f32[8,16]{1,0} parameter(2)
  %f.1 = f32[8,16]{1,0} fusion(%w.1, %i.1), kind=kLoop, calls=%taken
  ROOT %a.1 = f32[8,16]{1,0} add(%f.1, %x.1)
}

ENTRY %main (w.2: f32[30,8,16], i.2: s32[], x.2: f32[8,16]) -> f32[8,16] {
  %w.2 = f32[30,8,16]{2,1,0} parameter(0)
  %i.2 = s32[]{:S(6)} parameter(1)
  %x.2 = f32[8,16]{1,0} parameter(2)
  ROOT %f.2 = f32[8,16]{1,0} fusion(%w.2, %i.2, %x.2), kind=kOutput, calls=%fused
}
"""
    # A slice of 512 bytes and as much beside it, and what is made.
    assert read_program(text).traffic == 3 * 512


SIZES = st.integers(1, 4)


@given(
    size=SIZES, stride=SIZES, low=st.integers(0, 3), dilated=SIZES, base=SIZES,
    read=SIZES, made=SIZES,
)  # fmt: skip
def test_windows_meet_as_many_numbers_as_a_convolution_adds(
    size, stride, low, dilated, base, read, made
):
    """The places of a window that hold no padding, against NumPy on ones."""
    line = np.zeros((read - 1) * base + 1)
    line[::base] = 1
    needed = (made - 1) * stride + (size - 1) * dilated + 1
    padded = np.concatenate([np.zeros(low), line, np.zeros(needed)])
    total = sum(padded[place * stride + k * dilated] for place in range(made) for k in range(size))
    assert program_costs._valid(size, stride, low, dilated, base, read, made) == total


def test_products_written_as_convolutions_are_products():
    """As the compiler of TPUs writes them: a matrix product, and one with a batch as a window."""
    text = """HloModule made

ENTRY %main (x: f32[2,256,64], w: f32[64,32]) -> f32[2,256,32] {
  %x = f32[2,256,64]{2,1,0} parameter(0)
  %w = f32[64,32]{1,0} parameter(1)
  %y = f32[4,8,16]{2,1,0} parameter(2)
  %z = f32[4,16,8]{2,1,0} parameter(3)
  %made = f32[2,256,32]{2,1,0} convolution(%x, %w), window={size=1}, dim_labels=0bf_io0->0bf
  ROOT %each = f32[4,8,8]{2,1,0} convolution(%y, %z), WINDOW, dim_labels=0bf_0io->0bf
}
""".replace("WINDOW", "window={size=4 stride=3 lhs_dilate=4}")
    assert read_program(text).operations == 2 * (2 * 256 * 64 * 32 + 4 * 8 * 16 * 8)


def test_a_compiled_program_holds_what_its_arrays_take():
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    found = compile_program(jax.jit(lambda x, y: x @ y + 1).lower(shape, shape))
    assert found.arguments == 2 * 4 * 256**2 and found.outputs == 4 * 256**2
    assert found.peak >= found.arguments + found.outputs
    # GPUs take a block of temporary memory, of TPUs what is in use at most is known.
    found = dataclasses.replace(found, temporary=5_000_000, peak=3_000_000)
    assert held_bytes(found, read_topology("h100:1")) == 3 * 4 * 256**2 + 5_000_000
    assert held_bytes(found, read_topology("v5p:2x2x1")) == 3_000_000
    bounds = roofline(found.costs, read_topology("v5p:2x2x1").accelerator)
    assert bounds.bound == "memory" and bounds.links == 0
    assert bounds.compute == 2 * 256**3 / 459e12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "give a kind and a shape"),
        ("v5p:4x4", "slices of a v5p have three sizes"),
        ("v5e:2x2x2", "slices of a v5e have two sizes"),
        ("v5e:0x2", "give a kind and a shape"),
        ("h100:2x2x2", "GPUs are hosts x devices"),
        ("h10:2", "did you mean 'h100'"),
    ],
)
def test_names_that_are_no_topologies(name, message):
    with pytest.raises(InputError, match=message):
        read_topology(name)


def test_topologies_count_their_devices():
    assert read_topology("v5p:4x4x4").devices == 64
    assert read_topology("v5e:16x16", slices=2).devices == 512
    assert read_topology("h100:2x8").devices == 16
    assert read_topology("h100:8").devices == 8


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("v5p:2x2x2", (False, False, False)),
        ("v5p:2x4x4", (False, False, False)),
        ("v5p:4x4x4", (True, True, True)),
        ("v4:4x8x12", (True, True, True)),
        ("v5e:2x4", (False, False, False)),
        ("v6e:8x16", (False, True, False)),
        ("v5e:16x16", (True, True, False)),
    ],
)
def test_slices_have_the_rings_that_they_are_built_with(name, rings):
    assert read_topology(name).wraps == rings
