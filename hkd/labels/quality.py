"""Quality of a teacher as sums over positions, so that shards' figures add up; and the figures that people read."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.sparse import TopK

PIECE = 512
CALIBRATION_BINS = 10
NOTHING = -1e4  # a log-probability whose exponential is 0


def quality_of(topk: TopK) -> dict[str, float]:
    """Sums over the positions that have a gold unit (and over all, for tail mass and entropy, in nats).

    The entropy counts the mass outside the kept ids as one more unit, hence is a lower bound. A gold unit in the last place of a row may
    have been put there: it counts as no top-k hit (K = V excepted).
    """
    has_N = topk.gold_N >= 0
    hit_NK = topk.ids_NK == topk.gold_N[:, None]  # never where there is no gold unit: it is −1 there
    dense = topk.count_NK is None and bool(np.isneginf(topk.tail_N).all())
    tail_N = topk.tail_N.astype(np.float64)
    return {
        "positions": len(topk),
        "gold_positions": int(has_N.sum()),
        "gold_logp_sum": float(topk.gold_logp_N[has_N].astype(np.float64).sum()),
        "top1_hits": int(np.count_nonzero(hit_NK[:, :1])),
        "topk_hits": int(np.count_nonzero(hit_NK) - (0 if dense else np.count_nonzero(hit_NK[:, -1:]))),
        "top1_mass_sum": float(np.exp(topk.logp_NK[:, :1].astype(np.float64)).sum()),
        "tail_mass_sum": float(np.exp(tail_N).sum()),
        "entropy_sum": _entropy(topk.logp_NK) + _entropy(tail_N[:, None]),
    }


def _entropy(logp_NK: NDArray[np.floating[Any]]) -> float:
    """−Σ p log p over all, in the rows' own precision, in pieces that stay in the processor's cache; 0 where p is 0."""
    total = 0.0
    for start in range(0, len(logp_NK), PIECE):
        piece_NK = np.maximum(logp_NK[start : start + PIECE], NOTHING)
        total -= float((np.exp(piece_NK) * piece_NK).sum(axis=1).sum(dtype=np.float64))
    return total


def calibration_bins(confidence_N: NDArray[np.floating[Any]], correct_N: NDArray[np.bool_]) -> dict[str, float]:
    """Sums of `calibration_error` over rows: each one's likeliest unit has this probability, and is the right one or not.

    Of n bins, bin i holds [i / n, (i + 1) / n); 1 belongs to the last.
    """
    bin_N = np.minimum((confidence_N * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    sums: dict[str, float] = {}
    for number in range(CALIBRATION_BINS):
        mine_N = bin_N == number
        sums[f"bin{number}_positions"] = int(mine_N.sum())
        sums[f"bin{number}_mass_sum"] = float(confidence_N[mine_N].sum())
        sums[f"bin{number}_hits"] = int(correct_N[mine_N].sum())
    return sums


def calibration_error(sums: Mapping[str, float | None]) -> float | None:
    """Σ_bins (rows in bin / N) · |accuracy − mean confidence| (Guo et al. 2017, equation 3); None for no rows."""
    bins = range(CALIBRATION_BINS)
    count = sum(sums.get(f"bin{n}_positions") or 0 for n in bins)
    gap = sum(abs((sums.get(f"bin{n}_mass_sum") or 0.0) - (sums.get(f"bin{n}_hits") or 0)) for n in bins)
    return gap / count if count else None


def merge(parts: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Sums of sums; a figure that is not finite in one part is None in all."""
    total: dict[str, float | None] = {}
    for part in parts:
        for key, value in part.items():
            so_far = total.get(key, 0.0)
            total[key] = None if value is None or so_far is None else so_far + value
    return total


def figures(sums: Mapping[str, float | None]) -> dict[str, float | None]:
    """What people read: perplexity, top-1 and top-k hit rate, mean tail mass, mean entropy. None where it cannot be said."""

    def mean(key: str, over: str) -> float | None:
        value, count = sums.get(key), sums.get(over)
        return value / count if value is not None and count else None

    gold = "gold_positions" if "gold_positions" in sums else "positions"
    logp = mean("gold_logp_sum", gold)
    return {
        "perplexity": math.exp(min(-logp, 700.0)) if logp is not None else None,
        "top1_hit_rate": mean("top1_hits", gold),
        "topk_hit_rate": mean("topk_hits", gold),
        "tail_mass": mean("tail_mass_sum", "positions"),
        "entropy": mean("entropy_sum", "positions"),
    }
