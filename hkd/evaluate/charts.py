"""Drawings as inline SVG: training curves, intervals of error rates, and an utterance with its alignment on one time axis.

No scripts. Colours come from the page's CSS variables, so they follow light and dark. Charts are as wide as a phone's screen and lie side
by side on a wide one, so letters stay readable on both.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from hkd.timebase import FRAME_SHIFT_S, SAMPLE_RATE_HZ

NUM_COLOURS = 8
CHART_WIDTH, CHART_HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 10, 34
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
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _xy(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, *, anchor: str = "start", cls: str = "") -> str:
    """A line of text."""
    extra = f' class="{cls}"' if cls else ""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{_xy(x)}" y="{_xy(y)}"{where}{extra}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line."""
    return f'<line x1="{_xy(x1)}" y1="{_xy(y1)}" x2="{_xy(x2)}" y2="{_xy(y2)}" class="{cls}"/>'


def rect(x: float, y: float, width: float, height: float, cls: str, title: str = "") -> str:
    """A rectangle; `title` shows on hover."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{_xy(x)}" y="{_xy(y)}" width="{_xy(width)}" height="{_xy(height)}" class="{cls}">{inner}</rect>'


def svg(width: float, height: float, parts: Iterable[str], *, label: str, fixed: bool = False) -> Markup:
    """The drawing; `fixed` keeps its size (it then scrolls sideways), else it is as wide as what holds it."""
    size = f'width="{_xy(width)}" height="{_xy(height)}"' if fixed else 'width="100%"'
    head = f'<svg {size} viewBox="0 0 {_xy(width)} {_xy(height)}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")


def line_chart(series: Mapping[str, Sequence[Point]], colours: Mapping[str, int], *, label: str, x_label: str = "step") -> Markup:
    """Lines over a common x axis. `colours`: series → number of its colour. The y axis spans the values, from 0 where they come near."""
    points = [p for values in series.values() for p in values if math.isfinite(p[1])]
    if not points:
        return Markup("")
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = 0.0 if 0 <= low < 0.35 * high else low
    if _level(low, high):  # a level line lies in the middle
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    y_ticks = ticks(low, high)
    x_ticks = ticks(min(0.0, min(x for x, _ in points)), max(x for x, _ in points) or 1.0)
    x0, x1, y0, y1 = x_ticks[0], max(x for x, _ in points) or 1.0, y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> Point:
        return (
            _LEFT + (x - x0) / ((x1 - x0) or 1) * (CHART_WIDTH - _LEFT - _RIGHT),
            CHART_HEIGHT - _BOTTOM - (y - y0) / ((y1 - y0) or 1) * (CHART_HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for y in y_ticks:
        _, at = place(x0, y)
        parts += [line(_LEFT, at, CHART_WIDTH - _RIGHT, at, "grid"), text(_LEFT - 6, at + 4, number(y), anchor="end", cls="tick")]
    for x in x_ticks:
        if x <= x1:
            at, _ = place(x, y0)
            parts.append(text(at, CHART_HEIGHT - _BOTTOM + 15, number(x), anchor="middle", cls="tick"))
    parts.append(text(CHART_WIDTH - _RIGHT, CHART_HEIGHT - 2, x_label, anchor="end", cls="tick"))
    for name, values in series.items():
        kept = [place(x, y) for x, y in thin(values) if math.isfinite(y)]
        path = " ".join(f"{_xy(x)},{_xy(y)}" for x, y in kept)
        cls = f"line s{colours[name] % NUM_COLOURS}{' dashed' if colours[name] >= NUM_COLOURS else ''}"
        parts.append(f'<polyline points="{path}" class="{cls}"><title>{escape(name)}</title></polyline>')
        if len(kept) == 1:
            parts.append(f'<circle cx="{_xy(kept[0][0])}" cy="{_xy(kept[0][1])}" r="3" class="f{colours[name] % NUM_COLOURS}"/>')
    return svg(CHART_WIDTH, CHART_HEIGHT, parts, label=label)


def thin(values: Sequence[Point], most: int = 240) -> list[Point]:
    """At most about `most` points: means of neighbours, the last one kept as it is."""
    if len(values) <= most:
        return list(values)
    width = -(-len(values) // most)
    groups = [values[:-1][i : i + width] for i in range(0, len(values) - 1, width)]
    return [*((g[-1][0], sum(y for _, y in g) / len(g)) for g in groups), values[-1]]


def forest(
    rows: Sequence[tuple[str, float, float | None, float | None, int]],
    *,
    label: str,
    unit: str = "%",
    reference: float | None = None,
) -> Markup:
    """Rates with their intervals, one below the other: (name, rate, low, high, colour). `reference`: a dashed line."""
    ends = [v for _, rate, low, high, _ in rows for v in (rate, low, high) if v is not None and math.isfinite(v)]
    if not ends:
        return Markup("")
    x_ticks = ticks(min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1)
    row_height, top = 34, 8
    height = top + row_height * len(rows) + 24

    def place(value: float) -> float:
        return 20 + (value - x_ticks[0]) / ((x_ticks[-1] - x_ticks[0]) or 1) * (CHART_WIDTH - 40)

    bottom = height - 22
    parts = [line(place(x), top, place(x), bottom, "grid") for x in x_ticks]
    parts += [text(place(x), height - 7, f"{number(x)} {unit}", anchor="middle", cls="tick") for x in x_ticks]
    if reference is not None:
        parts.append(line(place(reference), top, place(reference), bottom, "reference"))
    for row, (name, rate, low, high, colour) in enumerate(rows):
        y = top + row_height * row + 23
        c = colour % NUM_COLOURS
        parts.append(text(0, y - 9, name))
        if low is not None and high is not None:
            parts.append(line(place(low), y, place(high), y, f"whisker s{c}"))
        parts.append(
            f'<circle cx="{_xy(place(rate))}" cy="{_xy(y)}" r="4" class="f{c}"><title>{escape(name)}: {rate:.2f} {unit}</title></circle>'
        )
    return svg(CHART_WIDTH, height, parts, label=label)


NOT_TERMS = frozenset({"step", "lr", "gradient"})
DEV = "dev_"  # what the trainer puts before figures of the dev split
RATES = ("wer", "cer", "per")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Per figure its points (step, value). `terms`: loss terms, logged in training; `dev`: what the run measured on dev."""

    terms: Mapping[str, Sequence[Point]]
    dev: Mapping[str, Sequence[Point]]


def read_curves(run_folder: Path) -> Curves:
    """The curves of a run; empty where it has no metrics.jsonl. A torn last line (a run still going on) is left out."""
    path = run_folder / "metrics.jsonl"
    terms: dict[str, list[Point]] = {}
    dev: dict[str, list[Point]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(text)
            step = float(row["step"])
        except (ValueError, KeyError, TypeError):
            continue
        into = terms if "loss" in row else dev
        for name, value in row.items():
            if name not in NOT_TERMS and isinstance(value, int | float) and not isinstance(value, bool):
                into.setdefault(name, []).append((step, float(value)))
    return Curves(terms=terms, dev=dev)


def panels(curves: Mapping[str, Curves]) -> list[tuple[str, dict[str, Sequence[Point]]]]:
    """(title, run → points), one a panel: error rates on dev first, then the whole loss, then each term, in training and on dev."""
    dev = list(dict.fromkeys(name for c in curves.values() for name in c.dev))
    terms = list(dict.fromkeys(name for c in curves.values() for name in c.terms))
    rates = [name for name in dev if name.removeprefix(DEV) in RATES]
    ordered = [(f"{name.removeprefix(DEV).upper()} on dev, %", "dev", name) for name in rates]
    for term in terms:
        ordered.append((f"{term}, training", "terms", term))
        ordered += [(f"{term} on dev", "dev", name) for name in dev if name == DEV + term]
    rest = [name for name in dev if name not in rates and name.removeprefix(DEV) not in terms]
    ordered += [(f"{name.removeprefix(DEV)} on dev", "dev", name) for name in rest]
    result = []
    for title, kind, name in ordered:
        series = {run: getattr(c, kind)[name] for run, c in curves.items() if name in getattr(c, kind)}
        if any(len(points) > 1 for points in series.values()):
            result.append((title, series))
    return result


PIXELS_PER_S = 220.0
_NAMES = 84
_WAVE, _TIER, _SURE, _GAP = 56, 20, 16, 8
_LETTER = 6.4  # width of a letter in a tier, in pixels, about


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnTier:
    """A tier to draw: segments [start, stop) in frames with labels ("" for silence), and the teacher's probability of each, or None."""

    name: str
    start: Sequence[int]
    stop: Sequence[int]
    labels: Sequence[str]
    shade: Sequence[int] = field(default=())  # 0, 1, 2: tint of each segment
    sure: Sequence[float | None] = field(default=())  # p(reference unit)
    hover: Sequence[str] = field(default=())


def envelope(wave_S: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Lowest and highest sample of each column: (columns, 2)."""
    edges = np.linspace(0, len(wave_S), columns + 1).astype(int)
    pairs = [(wave_S[a:b].min(), wave_S[a:b].max()) if b > a else (0.0, 0.0) for a, b in pairwise(edges)]
    return np.array(pairs, np.float32)


def timeline(wave_S: NDArray[np.float32], tiers: Sequence[DrawnTier]) -> Markup:
    """The drawing; it keeps its scale and scrolls sideways where the screen is narrow."""
    seconds = len(wave_S) / SAMPLE_RATE_HZ
    width = seconds * PIXELS_PER_S
    parts = [text(0, 4 + _WAVE / 2, "sound", cls="tier"), *_wave(wave_S, width)]
    top: float = _WAVE + _GAP
    for tier in tiers:
        parts += _tier(tier, top)
        top += _TIER + (_SURE if tier.sure else 0) + _GAP
    for at in ticks(0, seconds, max(2, int(seconds * 2) + 1)):
        if at <= seconds:
            x = _NAMES + at * PIXELS_PER_S
            parts += [line(x, 0, x, top, "grid"), text(x, top + 13, f"{number(at)} s", anchor="middle", cls="tick")]
    return svg(_NAMES + width + 16, top + 18, parts, label="waveform and alignment", fixed=True)


def _wave(wave_S: NDArray[np.float32], width: float) -> list[str]:
    pairs = envelope(wave_S, max(1, int(width / 1.5)))
    peak = float(np.abs(pairs).max()) or 1.0
    xs = _NAMES + (np.arange(len(pairs)) + 0.5) * width / len(pairs)
    upper = [f"{x:.1f},{_WAVE / 2 - _WAVE / 2 * high / peak:.1f}" for x, (_, high) in zip(xs, pairs, strict=True)]
    lower = [f"{x:.1f},{_WAVE / 2 - _WAVE / 2 * low / peak:.1f}" for x, (low, _) in zip(xs, pairs, strict=True)]
    return [f'<polygon points="{" ".join(upper + lower[::-1])}" class="wave"/>']


def _tier(tier: DrawnTier, top: float) -> list[str]:
    parts = [text(0, top + 14, tier.name, cls="tier")]
    scale = FRAME_SHIFT_S * PIXELS_PER_S
    if tier.sure:
        parts.append(text(0, top + _TIER + 13, "teacher's p", cls="tick"))
    for i, (start, stop, label) in enumerate(zip(tier.start, tier.stop, tier.labels, strict=True)):
        x, width = _NAMES + start * scale, (stop - start) * scale
        hover = tier.hover[i] if tier.hover else label
        shade = tier.shade[i] if tier.shade else i % 2
        if label:
            parts.append(rect(x, top, width, _TIER, f"seg{shade}", hover))
        if label and len(label) * _LETTER <= width:
            parts.append(text(x + width / 2, top + 14, label, anchor="middle", cls="unit"))
        sure = tier.sure[i] if tier.sure else None
        if sure is not None:
            parts.append(rect(x, top + _TIER + 1, max(width - 1, 1), _SURE - 2, "sure0"))
            height = (_SURE - 2) * sure
            parts.append(
                rect(x, top + _TIER + _SURE - 1 - height, max(width - 1, 1), height, "sure1", f"{hover}: p = {sure:.2f}")
            )
    return parts
