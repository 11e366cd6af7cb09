"""Drawings as inline SVG: training curves, intervals of error rates, an utterance and its alignment on one time axis.

No scripts. Colours come from the page's CSS variables, so they follow light and dark. Charts are as wide as a phone's
screen and lie side by side on a wide one, so letters stay readable on both.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from hkd.timebase import SAMPLE_RATE_HZ

NUM_COLOURS = 8
CHART_WIDTH, CHART_HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 10, 34  # margins of a line chart
PIXELS_PER_S = 220.0
_NAMES = 84  # width of the names beside a timeline
_WAVE, _TIER, _SURE, _GAP = 56, 20, 16, 8  # heights in a timeline
_LETTER = 6.4  # width of a letter in a tier, in pixels, about
NOT_TERMS = frozenset({"step", "lr", "gradient"})
DEV = "dev_"  # the trainer's prefix of figures of the dev split
RATES = ("wer", "cer", "per")
Point = tuple[float, float]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that span [low, high], about `most` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or _level(low, high):
        return [low]
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    return [round((first + i) * step, 12) for i in range(math.ceil((high - first * step) / step - 1e-9) + 1)]


def _level(low: float, high: float) -> bool:
    """Whether two values are too close to be told apart on an axis."""
    return high - low <= 1e-10 * max(abs(low), abs(high), 1e-6)


def number(value: float) -> str:
    """A short label: 12000 → 12k, 0.25 → 0.25."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _element(tag: str, content: str = "", **attributes: float | str) -> str:
    """An SVG element; `cls` is its class, `title` shows on hover, numbers are written to a tenth of a pixel."""
    title = str(attributes.pop("title", ""))
    names = {"cls": "class", "anchor": "text-anchor"}
    shown = {
        names.get(name, name): value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
        for name, value in attributes.items()
    }
    inner = (f"<title>{escape(title)}</title>" if title else "") + escape(content)
    given = "".join(f' {name}="{escape(value)}"' for name, value in shown.items())
    return f"<{tag}{given}>{inner}</{tag}>"


def _line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, cls=cls)


def _text(x: float, y: float, content: str, cls: str = "tick", anchor: str = "start") -> str:
    return _element("text", content, x=x, y=y, anchor=anchor, cls=cls)


def _svg(width: float, height: float, parts: Iterable[str], *, label: str, fixed: bool = False) -> Markup:
    """The drawing; `fixed` keeps its size (it then scrolls sideways), else it is as wide as its container."""
    size = f'width="{width:.1f}" height="{height:.1f}"' if fixed else 'width="100%"'
    head = f'<svg {size} viewBox="0 0 {width:.1f} {height:.1f}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")


def line_chart(series: Mapping[str, Sequence[Point]], colours: Mapping[str, int], *, label: str) -> Markup:
    """Lines over steps. `colours`: series → number of its colour. The y axis is from 0 where the values come near."""
    points = [p for values in series.values() for p in values if math.isfinite(p[1])]
    if not points:
        return Markup("")
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = 0.0 if 0 <= low < 0.35 * high else low
    if _level(low, high):  # a level line lies in the middle
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    x1 = max(x for x, _ in points) or 1.0
    x_ticks, y_ticks = ticks(min(0.0, min(x for x, _ in points)), x1), ticks(low, high)
    x0, y0, y1 = x_ticks[0], y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> Point:
        return (
            _LEFT + (x - x0) / ((x1 - x0) or 1) * (CHART_WIDTH - _LEFT - _RIGHT),
            CHART_HEIGHT - _BOTTOM - (y - y0) / ((y1 - y0) or 1) * (CHART_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_text(CHART_WIDTH - _RIGHT, CHART_HEIGHT - 2, "step", anchor="end")]
    for y in y_ticks:
        height = at(x0, y)[1]
        parts.append(_line(_LEFT, height, CHART_WIDTH - _RIGHT, height, "grid"))
        parts.append(_text(_LEFT - 6, height + 4, number(y), anchor="end"))
    parts += [_text(at(x, y0)[0], CHART_HEIGHT - _BOTTOM + 15, number(x), anchor="middle") for x in x_ticks if x <= x1]
    for name, values in series.items():
        kept = [at(x, y) for x, y in thin(values) if math.isfinite(y)]
        colour, dashed = colours[name] % NUM_COLOURS, " dashed" if colours[name] >= NUM_COLOURS else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in kept)
        parts.append(_element("polyline", points=path, cls=f"line s{colour}{dashed}", title=name))
        if len(kept) == 1:
            parts.append(_element("circle", cx=kept[0][0], cy=kept[0][1], r=3, cls=f"f{colour}"))
    return _svg(CHART_WIDTH, CHART_HEIGHT, parts, label=label)


def thin(values: Sequence[Point], most: int = 240) -> list[Point]:
    """At most about `most` points: means of neighbours, the last one kept as it is."""
    if len(values) <= most:
        return list(values)
    width = -(-len(values) // most)
    groups = [values[:-1][i : i + width] for i in range(0, len(values) - 1, width)]
    return [*((g[-1][0], sum(y for _, y in g) / len(g)) for g in groups), values[-1]]


def forest(
    rows: Sequence[tuple[str, float, float | None, float | None, int]], *, label: str, reference: float | None = None
) -> Markup:
    """Rates in % with their intervals as rows (name, rate, low, high, colour). `reference`: a dashed line."""
    ends = [v for _, rate, low, high, _ in rows for v in (rate, low, high) if v is not None and math.isfinite(v)]
    if not ends:
        return Markup("")
    x_ticks = ticks(min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1)
    row_height, top = 34, 8
    height = top + row_height * len(rows) + 24
    bottom = height - 22

    def at(value: float) -> float:
        return 20 + (value - x_ticks[0]) / ((x_ticks[-1] - x_ticks[0]) or 1) * (CHART_WIDTH - 40)

    parts = [_line(at(x), top, at(x), bottom, "grid") for x in x_ticks]
    parts += [_text(at(x), height - 7, f"{number(x)} %", anchor="middle") for x in x_ticks]
    if reference is not None:
        parts.append(_line(at(reference), top, at(reference), bottom, "reference"))
    for row, (name, rate, low, high, colour) in enumerate(rows):
        y, c = top + row_height * row + 23, colour % NUM_COLOURS
        parts.append(_text(0, y - 9, name, cls=""))
        if low is not None and high is not None:
            parts.append(_line(at(low), y, at(high), y, f"whisker s{c}"))
        parts.append(_element("circle", cx=at(rate), cy=y, r=4, cls=f"f{c}", title=f"{name}: {rate:.2f} %"))
    return _svg(CHART_WIDTH, height, parts, label=label)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run's JSON lines file that have a step; a torn last line (a run that still goes on) is left out."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(text)
            float(row["step"])
        except (ValueError, KeyError, TypeError):
            continue
        yield row


def read_curves(run_folder: Path) -> dict[str, list[Point]]:
    """The figures of a run's metrics.jsonl: name → points (step, value). Names on the dev split begin with `dev_`."""
    curves: dict[str, list[Point]] = defaultdict(list)
    for row in json_lines(run_folder / "metrics.jsonl"):
        for name, value in row.items():
            if name not in NOT_TERMS and isinstance(value, int | float) and not isinstance(value, bool):
                curves[name].append((float(row["step"]), float(value)))
    return dict(curves)


def panels(curves: Mapping[str, Mapping[str, Sequence[Point]]]) -> list[tuple[str, dict[str, Sequence[Point]]]]:
    """(title, run → points) of each panel: error rates on dev, the whole loss, each term, in training and on dev."""
    names = dict.fromkeys(name for figures in curves.values() for name in figures)
    dev = {name.removeprefix(DEV): name for name in names if name.startswith(DEV)}
    terms = [name for name in names if not name.startswith(DEV)]
    ordered = [(f"{plain.upper()} on dev, %", name) for plain, name in dev.items() if plain in RATES]
    for term in terms:
        ordered += [(f"{term}, training", term), *([(f"{term} on dev", dev[term])] if term in dev else [])]
    ordered += [(f"{plain} on dev", name) for plain, name in dev.items() if plain not in (*RATES, *terms)]
    found = []
    for title, name in ordered:
        series = {run: figures[name] for run, figures in curves.items() if name in figures}
        if any(len(points) > 1 for points in series.values()):
            found.append((title, series))
    return found


class Segment(NamedTuple):
    """A stretch of a tier. `label`: "" for silence; `p`: the teacher's probability of the reference unit, if any."""

    start_s: float
    stop_s: float
    label: str
    p: float | None = None
    hover: str = ""


def envelope(wave_S: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Lowest and highest sample of each column: (columns, 2)."""
    edges = np.linspace(0, len(wave_S), columns + 1).astype(int)
    pairs = [(wave_S[a:b].min(), wave_S[a:b].max()) if b > a else (0.0, 0.0) for a, b in pairwise(edges)]
    return np.array(pairs, np.float32)


def timeline(wave_S: NDArray[np.float32], tiers: Mapping[str, Sequence[Segment]]) -> Markup:
    """Waveform and tiers on one time axis, each with the teacher's probabilities below; wide ones scroll sideways."""
    seconds = len(wave_S) / SAMPLE_RATE_HZ
    width = seconds * PIXELS_PER_S
    pairs = envelope(wave_S, max(1, int(width / 1.5)))
    y = _WAVE / 2 - _WAVE / 2 * pairs / (float(np.abs(pairs).max()) or 1.0)
    xs = _NAMES + (np.arange(len(pairs)) + 0.5) * width / len(pairs)
    upper, lower = ([f"{a:.1f},{b:.1f}" for a, b in zip(xs, y[:, side], strict=True)] for side in (1, 0))
    wave = _element("polygon", points=" ".join(upper + lower[::-1]), cls="wave")
    parts = [_text(0, 4 + _WAVE / 2, "sound", cls="tier"), wave]
    top: float = _WAVE + _GAP
    for name, segments in tiers.items():
        parts.append(_text(0, top + 14, name, cls="tier"))
        has_p = any(segment.p is not None for segment in segments)
        if has_p:
            parts.append(_text(0, top + _TIER + 13, "teacher's p"))
        for place, segment in enumerate(segments):
            parts += _segment(segment, top, cls=f"seg{place % 2}")
        top += _TIER + (_SURE if has_p else 0) + _GAP
    for at in ticks(0, seconds, max(2, int(seconds * 2) + 1)):
        if at <= seconds:
            x = _NAMES + at * PIXELS_PER_S
            parts += [_line(x, 0, x, top, "grid"), _text(x, top + 13, f"{number(at)} s", anchor="middle")]
    return _svg(_NAMES + width + 16, top + 18, parts, label="waveform and alignment", fixed=True)


def _segment(segment: Segment, top: float, *, cls: str) -> Iterator[str]:
    x, width = _NAMES + segment.start_s * PIXELS_PER_S, (segment.stop_s - segment.start_s) * PIXELS_PER_S
    hover = segment.hover or segment.label
    if segment.label:
        yield _element("rect", x=x, y=top, width=width, height=_TIER, cls=cls, title=hover)
        if len(segment.label) * _LETTER <= width:
            yield _text(x + width / 2, top + 14, segment.label, cls="unit", anchor="middle")
    if segment.p is not None:
        bar: dict[str, Any] = {"x": x, "width": max(width - 1, 1)}
        whole = _SURE - 2
        yield _element("rect", y=top + _TIER + 1, height=whole, cls="sure0", **bar)
        y, title = top + _TIER + 1 + whole * (1 - segment.p), f"{hover}: p = {segment.p:.2f}"
        yield _element("rect", y=y, height=whole * segment.p, cls="sure1", title=title, **bar)
