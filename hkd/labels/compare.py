"""How far two teachers are apart on the same positions.

A probability that a store did not keep is taken as its tail mass spread evenly over the units it left out; what lies outside A's ids is
compared as one lump. So the divergences are estimates where K < V, and exact (but for the codec) where K = V.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.labels.quality import figures, merge, quality_of
from hkd.labels.reader import LabelReader
from hkd.progress import Progress, no_progress
from hkd.sparse import TopK

BATCH_UTTERANCES = 128


def lookup(topk: TopK, ids_NK: NDArray[np.int32], num_units: int) -> NDArray[np.float64]:
    """log-probabilities that `topk` gives to other ids (N, K'): its own where kept, else the evenly spread tail."""
    n, k = topk.ids_NK.shape
    key_NK = np.arange(n, dtype=np.int64)[:, None] * num_units + topk.ids_NK
    order = np.argsort(key_NK, axis=None, kind="stable")
    keys, values = key_NK.reshape(-1)[order], topk.logp_NK.reshape(-1)[order].astype(np.float64)
    wanted = np.arange(n, dtype=np.int64)[:, None] * num_units + ids_NK
    place = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    spread_N = topk.tail_N.astype(np.float64) - np.log(max(1, num_units - k))
    return np.where(keys[place] == wanted, values[place], spread_N[:, None])


def kl(a: TopK, b: TopK, num_units: int) -> NDArray[np.float64]:
    """Estimated KL(a ‖ b) of every position, in nats; ∞ where b gives a unit no mass that a gives some."""
    logp_NK, logq_NK = a.logp_NK.astype(np.float64), lookup(b, a.ids_NK, num_units)
    p_NK, tail_N = np.exp(logp_NK), np.exp(a.tail_N.astype(np.float64))
    total_N = p_NK.sum(1) + tail_N
    with np.errstate(invalid="ignore", divide="ignore"):
        kept_N = np.where(p_NK > 0, p_NK * (logp_NK - logq_NK), 0).sum(1)
        rest_N = np.maximum(1 - np.exp(logq_NK).sum(1), 1e-12)
        lump_N = np.where(tail_N > 0, tail_N * (a.tail_N - np.log(rest_N)), 0)
        return np.asarray(np.maximum((kept_N + lump_N) / total_N - np.log(total_N), 0))


def compare(path_a: Path | str, path_b: Path | str, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Figures of two stores on the utterances that both hold with the same unit sequence.

    Raises UserError where their inventories differ or they share no utterance.
    """
    a, b = LabelReader.open(path_a), LabelReader.open(path_b)
    if a.spec.inventory.digest != b.spec.inventory.digest:
        digests = f"{a.spec.inventory.digest} and {b.spec.inventory.digest}"
        raise UserError(f"stores to compare must have one unit inventory, but have those of the digests {digests}.")
    if "sample" in (a.spec.selection, b.spec.selection):
        raise UserError("stores to compare must hold top-k rows, but one holds samples.")
    in_both = [name for name in a.ids if name in b]
    same = [name for name in in_both if a.unit_digest(name) == b.unit_digest(name)]
    if not same:
        raise UserError(f"stores to compare must share utterances with the same units, but {path_a} and {path_b} share none.")
    v = len(a.spec.inventory)
    sums = {"kl_ab": 0.0, "kl_ba": 0.0, "top1": 0.0, "shared_ids": 0.0}
    quality: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    positions = 0
    for first in range(0, len(same), BATCH_UTTERANCES):
        names = same[first : first + BATCH_UTTERANCES]
        left, right = a.block(names).topk, b.block(names).topk
        positions += len(left)
        if len(left):
            sums["kl_ab"] += float(kl(left, right, v).sum())
            sums["kl_ba"] += float(kl(right, left, v).sum())
            sums["top1"] += float((left.ids_NK[:, 0] == right.ids_NK[:, 0]).sum())
            shared = np.sort(np.concatenate([left.ids_NK, right.ids_NK], axis=1), axis=1)
            sums["shared_ids"] += float((shared[:, 1:] == shared[:, :-1]).sum()) / min(left.k, right.k)
        quality[0].append(quality_of(left))
        quality[1].append(quality_of(right))
        progress(min(first + BATCH_UTTERANCES, len(same)), len(same))
    many = max(1, positions)
    return {
        "utterances": len(same),
        "only_in_a": len(a) - len(in_both),
        "only_in_b": len(b) - len(in_both),
        "other_units": len(in_both) - len(same),
        "positions": positions,
        "kl_ab": sums["kl_ab"] / many,
        "kl_ba": sums["kl_ba"] / many,
        "top1_agreement": sums["top1"] / many,
        "topk_overlap": sums["shared_ids"] / many,
        "a": {"teacher": a.spec.teacher.get("name"), **figures(merge(quality[0]))},
        "b": {"teacher": b.spec.teacher.get("name"), **figures(merge(quality[1]))},
    }
