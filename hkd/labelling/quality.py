"""How good a teacher is on the transcripts that it labels: sums that add up over shards, and what they say.

- The sums are those of the label store (hkd/labels/quality.py), with calibration bins beside them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.labels.card import calibration_bins, calibration_error, figures, quality_of
from hkd.sparse import TopK


def quality_sums(rows: TopK) -> dict[str, float]:
    """Sums over the positions of some rows, for a shard's mark; those of several shards add up."""
    has_N = rows.gold_N >= 0
    sure_N = np.exp(rows.logp_NK[:, 0].astype(np.float64)) if len(rows) else np.zeros(0)
    hit_N = rows.ids_NK[:, 0] == rows.gold_N if len(rows) else np.zeros(0, bool)
    return quality_of(rows) | calibration_bins(sure_N[has_N], hit_N[has_N])


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
