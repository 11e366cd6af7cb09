"""Drawings are well-formed, keep their scale and show every series; curves are read whole."""

import json
import math
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.evaluate.charts import (
    CHART_HEIGHT,
    CHART_WIDTH,
    PIXELS_PER_S,
    Segment,
    envelope,
    forest,
    line_chart,
    number,
    panels,
    read_curves,
    thin,
    ticks,
    timeline,
)

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
    assert (
        float(whiskers[0].attrib["x1"])
        < float(next(tree.iter("circle")).attrib["cx"])
        < float(whiskers[0].attrib["x2"])
    )
    assert sum("reference" in line.attrib["class"] for line in tree.iter("line")) == 1


@pytest.mark.parametrize(("value", "shown"), [(12000, "12k"), (0.25, "0.25"), (3.0, "3"), (0.0, "0")])
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def write(folder: Path, rows: list[dict[str, object]], tail: str = "") -> Path:
    """A run folder with these rows."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return folder


def test_figures_are_read_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": 10, "loss": 3.0, "ctc": 2.0, "lr": 0.1, "gradient": 1.0},
        {"step": 10, "gradient_norm": {"ctc": 1.0}, "gradient_share": {"ctc": 1.0}},
        {"step": 10, "dev_wer": 50.0, "dev_ctc": 2.5},
        {"step": 20, "loss": 2.0, "ctc": 1.0, "lr": 0.1, "gradient": 1.0},
    ]
    curves = read_curves(write(tmp_path / "run", rows, tail='{"step": 30, "lo'))
    terms = {"loss": [(10, 3.0), (20, 2.0)], "ctc": [(10, 2.0), (20, 1.0)]}
    assert curves == {**terms, "dev_wer": [(10, 50.0)], "dev_ctc": [(10, 2.5)]}


def test_a_run_without_metrics_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}


def test_panels_are_shared_by_runs_error_rates_first(tmp_path: Path) -> None:
    def run(name: str, *terms: str) -> Path:
        rows: list[dict[str, object]] = []
        for step in (1, 2):
            rows.append({"step": step, "loss": 1.0, **dict.fromkeys(terms, 1.0)})
            rows.append({"step": step, "dev_wer": 9.0, **{f"dev_{t}": 1.0 for t in terms}})
        return write(tmp_path / name, rows)

    curves = {"a": read_curves(run("a", "ctc")), "b": read_curves(run("b", "ctc", "kd-senone"))}
    found = panels(curves)
    assert [title for title, _ in found] == [
        "WER on dev, %", "loss, training", "ctc, training", "ctc on dev", "kd-senone, training", "kd-senone on dev",
    ]  # fmt: skip
    assert list(found[0][1]) == ["a", "b"]
    assert list(found[-1][1]) == ["b"]


def test_segments_are_as_wide_as_they_last() -> None:
    wave_S = np.sin(np.arange(16_000) / 20).astype(np.float32)
    segments = [Segment(0.0, 0.2, ""), Segment(0.2, 0.7, "hello", 0.5), Segment(0.7, 1.0, "a", 1.0)]
    tree = ElementTree.fromstring(str(timeline(wave_S, {"word": segments})))
    boxes = [r for r in tree.iter("rect") if r.attrib["class"].startswith("seg")]
    assert [float(b.attrib["width"]) for b in boxes] == [0.5 * PIXELS_PER_S, 0.3 * PIXELS_PER_S]
    bars = [r for r in tree.iter("rect") if r.attrib["class"] == "sure1"]
    heights = [float(b.attrib["height"]) for b in bars]
    assert heights[1] == 2 * heights[0]
    assert "hello: p = 0.50" in [t.text for t in tree.iter("title")]


def test_the_envelope_holds_every_sample() -> None:
    wave_S = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    pairs = envelope(wave_S, 64)
    assert pairs.shape == (64, 2)
    assert pairs[:, 0].min() == wave_S.min()
    assert pairs[:, 1].max() == wave_S.max()
