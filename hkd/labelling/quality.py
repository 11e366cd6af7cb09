"""How good a teacher is on the transcripts that it labels: sums that add up over shards, and what they say.

- The sums are those of the label store (hkd/labels/quality.py), with calibration bins beside them.
- Calibration: top-1 probability in ten bins against how often the top-1 unit is the gold one; the error is their mean distance,
  weighted by count (Guo et al. 2017, eq. 3).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.labels.quality import figures, quality_of
from hkd.sparse import TopK

BINS = 10


def quality_sums(rows: TopK) -> dict[str, float]:
    """Sums over the positions of some rows, for a shard's mark; those of several shards add up."""
    sums = quality_of(rows)
    has_N = rows.gold_N >= 0
    hit_NK = (rows.ids_NK == rows.gold_N[:, None]) & has_N[:, None]
    sure_N = np.exp(rows.logp_NK[:, 0].astype(np.float64)) if len(rows) else np.zeros(0)
    bin_N = np.minimum((sure_N * BINS).astype(np.int64), BINS - 1)
    for number in range(BINS):
        mine_N = has_N & (bin_N == number)
        sums[f"bin{number}_positions"] = int(mine_N.sum())
        sums[f"bin{number}_mass_sum"] = float(sure_N[mine_N].sum())
        sums[f"bin{number}_hits"] = int(hit_NK[mine_N, :1].sum())
    return sums


def calibration_error(sums: Mapping[str, float | None]) -> float | None:
    """Expected calibration error of the top-1 probability; None where there are no gold units."""
    count = sum(sums.get(f"bin{n}_positions") or 0 for n in range(BINS))
    gap = sum(abs((sums.get(f"bin{n}_mass_sum") or 0.0) - (sums.get(f"bin{n}_hits") or 0)) for n in range(BINS))
    return gap / count if count else None


def summary(sums: Mapping[str, float | None], *, unigram: float | None) -> dict[str, Any]:
    """The figures of a report; None where one cannot be said."""
    return {**figures(sums), "calibration_error": calibration_error(sums), "unigram_perplexity": unigram}


def unigram_perplexity(units: Iterable[NDArray[np.int32]], size: int) -> float | None:
    """Leave-one-out perplexity of the add-one unigram LM of some unit sequences over `size` units: what any teacher must beat.

    Each position is predicted from all others' counts: p = (c_u − 1 + 1) / (N − 1 + V). None below two positions.
    """
    count_V = np.zeros(size, np.float64)
    for unit_U in units:
        count_V += np.bincount(unit_U[unit_U >= 0], minlength=size)
    total = count_V.sum()
    if total < 2:
        return None
    seen = count_V[count_V > 0]
    return math.exp(-float((seen * np.log(seen / (total - 1 + size))).sum()) / total)
