"""Scales and label placement: values land where they should, names do not cover each other."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.report import numbers as written
from dynarag_jax.report.schema import Curve, KMatrix
from dynarag_jax.report.svg import scales
from dynarag_jax.report.svg.labels import Box, _meets, place_labels
from dynarag_jax.report.svg.lines import _smooth, line_panel
from dynarag_jax.report.svg.matrices import same_shape

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers)
def test_linear_scale_holds_the_range_and_its_ticks(a, b):
    low, high = min(a, b), max(a, b)
    scale = scales.linear(low, high, 200.0, 10.0)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert scale.low <= low + slack and scale.high >= high - slack
    assert 2 <= len(scale.ticks) <= 14
    places = [scale(t) for t in scale.ticks]
    assert places == sorted(places, reverse=True)
    assert all(10 - 1e-6 <= p <= 200 + 1e-6 for p in places)
    assert scale(scale.low) == 200 and scale(scale.high) == pytest.approx(10)


@given(st.floats(1e-6, 1e3), st.floats(31, 1e6))
def test_log_scale_spaces_equal_ratios_equally(low, ratio):
    scale = scales.logarithmic(low, low * ratio, 0.0, 100.0)
    assert scale.low <= low * 1.001 and scale.high >= low * ratio * 0.999
    middle = math.sqrt(scale.low * scale.high)
    assert scale(middle) == pytest.approx(50)
    assert scale.ticks


def test_whole_ticks():
    assert list(scales.linear(1, 2, 0, 1, 4, tight=True, whole=True).ticks) == [1, 2]
    assert list(scales.linear(0, 47, 0, 1, 4, tight=True, whole=True).ticks) == [0, 20, 40]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (59.96, "1 min 00 s"), (245, "4 min 05 s"), (7384, "2 h 03 min"),
     (3599.7, "1 h 00 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert written.duration(seconds) == text


def test_numbers_as_text():
    assert written.percent(0.8315) == "83.2" and written.passages(1.716) == "1.72"
    assert written.memory(1_873_000_000) == "1.87 GB" and written.memory(5_400_000) == "5 MB"
    assert [scales.tick_label(v) for v in (0, 0.05, 1000, 0.30000000000000004, 1e-7)] == [
        "0", "0.05", "1,000", "0.3", "1e-7",
    ]  # fmt: skip
    assert scales.shorten("a  long\nname", 6) == "a lon…"


FRAME = Box(40, 10, 700, 390)
points = st.tuples(st.floats(60, 680), st.floats(30, 370))


@settings(max_examples=25, deadline=None)
@given(st.lists(points, min_size=1, max_size=12))
def test_names_cover_neither_each_other_nor_leave_the_frame(places):
    sizes = [(50.0 + 9 * (i % 5), 15.0) for i in range(len(places))]
    boxes = place_labels(places, sizes, FRAME)
    for i, box in enumerate(boxes):
        assert box.right - box.left == pytest.approx(sizes[i][0])
        assert box.left >= FRAME.left - 0.1 and box.right <= FRAME.right + 0.1
        assert box.top >= FRAME.top - 0.1 and box.bottom <= FRAME.bottom + 0.1
        assert all(box.shared_area(other) == 0 for other in boxes[:i])


def test_names_of_points_in_one_place_are_told_apart():
    places = [(300.0, 200.0 + 0.5 * i) for i in range(10)]
    boxes = place_labels(places, [(90.0, 15.0)] * 10, FRAME)
    assert all(a.shared_area(b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
    marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    assert all(box.shared_area(m) == 0 for box in boxes for m in marks)


def test_names_keep_off_lines_and_bars_where_there_is_room():
    places = [(100.0, 200.0), (300.0, 200.0)]
    lines = [((100.0, 200.0), (300.0, 200.0))]
    bars = [Box(98.5, 150, 101.5, 250)]
    for box in place_labels(places, [(60.0, 15.0)] * 2, FRAME, bars, lines):
        assert not _meets(*lines[0], box) and box.shared_area(bars[0]) == 0


@given(points, points, st.floats(60, 680), st.floats(30, 370))
def test_a_line_meets_a_box_where_points_of_it_lie_inside(start, end, x, y):
    box = Box(x, y, x + 40, y + 15)
    inside = False
    for i in range(401):
        t = i / 400
        px, py = start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])
        inside |= box.left < px < box.right and box.top < py < box.bottom
    if inside:
        assert _meets(start, end, box)
    elif _meets(start, end, box):  # only a corner cut shorter than the steps looked at
        assert _meets(start, end, box.grown(3))
    far = Box(box.left - 2000, box.top, box.right - 2000, box.bottom)
    assert not _meets(start, end, far)


def test_smoothing_keeps_straight_lines_ends_and_gaps():
    line: list[float | None] = [2.0 * i for i in range(300)]
    assert _smooth(line) == pytest.approx(line)
    line[100] = None
    smooth = _smooth(line)
    assert smooth[100] is None and smooth[99] is not None


def test_curves_pass_through_their_values():
    """Every vertex of the drawn path, read back through the axis ticks, is a value given."""
    values = [3.0, 1.0, 2.5, 2.0]
    drawn = line_panel(Curve("stage", "loss", [0, 10, 20, 30], {"loss": values}))
    ticks = re.findall(r'y1="([\d.]+)" y2="[\d.]+" class="grid"></line><text x="40"[^>]*>([\d.]+)<',
                       drawn)  # fmt: skip
    (y0, v0), (y1, v1) = [(float(y), float(v)) for y, v in (ticks[0], ticks[-1])]
    path = re.search(r'd="(M[^"]*)" class="line', drawn)
    assert path
    read = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path[1])]
    assert [v0 + (y - y0) * (v1 - v0) / (y1 - y0) for y in read] == pytest.approx(values, abs=0.01)


def test_long_curves_are_thinned_smoothed_and_broken_at_gaps():
    steps = list(range(3000))
    values = [10.0 / (1 + i) if i % 1000 else None for i in steps]
    drawn = line_panel(Curve("stage", "loss", steps, {"loss": values}))
    assert "log scale" in drawn and 'class="raw s0"' in drawn
    assert drawn.count("L") < 2200


def test_matrices_are_drawn_on_one_shape():
    shaped, more = same_shape([KMatrix("a", ((1, 0, 0), (0, 2, 0))), KMatrix("b", ((0, 0, 0, 5),))])
    assert shaped == [[[1, 0, 0, 0], [0, 2, 0, 0]], [[0, 0, 0, 5], [0, 0, 0, 0]]] and not more
    shaped, more = same_shape([KMatrix("a", ((1, *([0] * 20), 7, 0),))])
    assert shaped[0][0] == [1, *([0] * 14), 7] and more
