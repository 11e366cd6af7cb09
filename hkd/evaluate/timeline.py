"""An utterance on one time axis: its waveform, the tiers of its alignment, and below each tier how sure the teacher was of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from hkd.evaluate.svg import line, number, rect, svg, text, ticks
from hkd.timebase import FRAME_SHIFT_S, SAMPLE_RATE_HZ

PIXELS_PER_S = 220.0
_LEFT = 84
_WAVE, _TIER, _SURE, _GAP = 56, 20, 16, 8
_LETTER = 6.4  # width of a letter in a tier, in pixels, about


@dataclass(frozen=True, kw_only=True, slots=True)
class TierView:
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


def timeline(wave_S: NDArray[np.float32], tiers: Sequence[TierView]) -> Markup:
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
            x = _LEFT + at * PIXELS_PER_S
            parts += [line(x, 0, x, top, "grid"), text(x, top + 13, f"{number(at)} s", anchor="middle", cls="tick")]
    return svg(_LEFT + width + 16, top + 18, parts, label="waveform and alignment", fixed=True)


def _wave(wave_S: NDArray[np.float32], width: float) -> list[str]:
    pairs = envelope(wave_S, max(1, int(width / 1.5)))
    peak = float(np.abs(pairs).max()) or 1.0
    xs = _LEFT + (np.arange(len(pairs)) + 0.5) * width / len(pairs)
    upper = [f"{x:.1f},{_WAVE / 2 - _WAVE / 2 * high / peak:.1f}" for x, (_, high) in zip(xs, pairs, strict=True)]
    lower = [f"{x:.1f},{_WAVE / 2 - _WAVE / 2 * low / peak:.1f}" for x, (low, _) in zip(xs, pairs, strict=True)]
    return [f'<polygon points="{" ".join(upper + lower[::-1])}" class="wave"/>']


def _tier(tier: TierView, top: float) -> list[str]:
    parts = [text(0, top + 14, tier.name, cls="tier")]
    scale = FRAME_SHIFT_S * PIXELS_PER_S
    if tier.sure:
        parts.append(text(0, top + _TIER + 13, "teacher's p", cls="tick"))
    for i, (start, stop, label) in enumerate(zip(tier.start, tier.stop, tier.labels, strict=True)):
        x, width = _LEFT + start * scale, (stop - start) * scale
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
