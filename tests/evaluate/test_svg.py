"""Drawings: ticks span and are round, charts are well-formed and put values where they belong."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.evaluate.svg import CHART_HEIGHT, CHART_WIDTH, forest, line_chart, number, thin, ticks

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(FINITE, st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_span_the_values_evenly(low: float, width: float, most: int) -> None:
    found = ticks(low, low + width, most)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= low + width - 1e-6 * step
    assert all(math.isclose(b - a, step, rel_tol=1e-4) for a, b in pairwise(found))
    assert len(found) <= most + 2
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-3


@given(st.lists(st.tuples(st.floats(0, 1e5), FINITE), min_size=1, max_size=30))
def test_a_chart_is_well_formed_and_keeps_its_points_inside(points: list[tuple[float, float]]) -> None:
    points.sort()
    tree = ElementTree.fromstring(str(line_chart({"a <b>": points}, {"a <b>": 9}, label="x & y")))
    (polyline,) = tree.iter("polyline")
    for pair in polyline.attrib["points"].split():
        x, y = map(float, pair.split(","))
        assert -0.1 <= x <= CHART_WIDTH + 0.1
        assert -0.1 <= y <= CHART_HEIGHT + 0.1
    assert polyline.attrib["class"] == "line s1 dashed"


def test_a_chart_without_finite_values_is_left_out() -> None:
    assert line_chart({"a": [(0, math.nan)]}, {"a": 0}, label="x") == ""


def test_higher_values_stand_higher() -> None:
    tree = ElementTree.fromstring(str(line_chart({"a": [(0, 1.0), (10, 3.0)]}, {"a": 0}, label="x")))
    (polyline,) = tree.iter("polyline")
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in polyline.attrib["points"].split())
    assert (x0 < x1, y0 > y1) == (True, True)


@given(st.integers(1, 2000))
def test_thinning_keeps_the_last_point_and_the_mean(count: int) -> None:
    points = [(float(i), float(i % 7)) for i in range(count)]
    thinned = thin(points, 50)
    assert len(thinned) <= 52
    assert thinned[-1] == points[-1]
    assert all(a[0] < b[0] for a, b in pairwise(thinned))


def test_a_forest_draws_each_interval_from_low_to_high() -> None:
    drawing = forest([("a", 20.0, 10.0, 30.0, 0), ("b", 25.0, None, None, 1)], label="x", reference=20.0)
    tree = ElementTree.fromstring(str(drawing))
    whiskers = [line for line in tree.iter("line") if "whisker" in line.attrib["class"]]
    assert len(whiskers) == 1
    assert float(whiskers[0].attrib["x1"]) < float(next(tree.iter("circle")).attrib["cx"]) < float(whiskers[0].attrib["x2"])
    assert sum("reference" in line.attrib["class"] for line in tree.iter("line")) == 1


@pytest.mark.parametrize(("value", "shown"), [(12000, "12k"), (0.25, "0.25"), (3.0, "3"), (0.0, "0")])
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown
