"""Quality of a teacher as sums over positions, so that shards' figures add up; and the figures that people read."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from hkd.topk import TopK


def quality_of(topk: TopK) -> dict[str, float]:
    """Sums over the positions that have a gold unit (and over all, for tail mass and entropy, in nats).

    The entropy counts the mass outside the kept ids as one more unit, hence is a lower bound. A gold unit in the last place of a row may
    have been put there: it counts as no top-k hit (K = V excepted).
    """
    has_N = topk.gold_N >= 0
    hit_NK = (topk.ids_NK == topk.gold_N[:, None]) & has_N[:, None]
    dense = topk.count_NK is None and bool(np.isneginf(topk.tail_N).all())
    logp_NK, tail_N = topk.logp_NK.astype(np.float64), topk.tail_N.astype(np.float64)
    all_NK = np.concatenate([logp_NK, tail_N[:, None]], axis=1)
    p_NK = np.exp(all_NK)
    terms_NK = np.where(p_NK > 0, p_NK * np.where(p_NK > 0, all_NK, 0), 0)
    return {
        "positions": len(topk),
        "gold_positions": int(has_N.sum()),
        "gold_logp_sum": float(topk.gold_logp_N[has_N].astype(np.float64).sum()),
        "top1_hits": int(hit_NK[:, :1].sum()),
        "topk_hits": int((hit_NK if dense else hit_NK[:, :-1]).sum()),
        "top1_mass_sum": float(p_NK[:, 0].sum()) if len(topk) else 0.0,
        "tail_mass_sum": float(np.exp(tail_N).sum()),
        "entropy_sum": float(-terms_NK.sum()),
    }


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
