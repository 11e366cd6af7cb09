"""Whether a head uses the context that its teacher reads, or is a table of confusions.

A head that hears a unit and nothing of its neighbours can say no more than what the teacher says of such a unit on average. That guess is made
here of what the level's hard head hears: q = Σ_v p_hard(v) · table_v. A head whose KL to the teacher is no lower than the guess's has learnt
no more than that table.

Shape letters: N positions, K kept ids, M slots, V units of the level, H units of the head.
"""

from collections.abc import Container
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from hkd.stream.join import JoinedStore

MOST_UTTERANCES = 5000
MOST_CELLS = 1 << 25


def average_teacher(joined: JoinedStore, *, without: Container[str]) -> Tensor | None:
    """table_VH: what the teacher says on average where the transcript has unit v, over the store's utterances (5,000 at most) that are not
    in `without`; the tail is spread evenly. None where the table would be too large, the labels are draws, or no utterance is left."""
    reader = joined.reader
    num_units, num_own = len(reader.spec.inventory), joined.num_units
    if num_units * num_own > MOST_CELLS or reader.spec.selection != "topk":
        return None
    ids = list(islice((name for name in reader.ids if name not in without and joined.labels(name)), MOST_UTTERANCES))
    if not ids:
        return None
    topk = reader.block(ids).topk
    gold_N = torch.from_numpy(topk.gold_N.astype(np.int64))
    unit_NK = torch.from_numpy(joined.head_unit_V[topk.ids_NK])
    p_NK = torch.from_numpy(topk.logp_NK.astype(np.float32)).exp()
    table_VH = torch.zeros(num_units, num_own)
    table_VH.index_put_((gold_N[:, None].expand_as(unit_NK), unit_NK), p_NK, accumulate=True)
    table_VH.index_add_(0, gold_N, ((1 - p_NK.sum(1)).clamp(min=0) / num_own)[:, None].expand(-1, num_own))
    mean_H = table_VH.sum(0) / len(gold_N)  # what is said of units that these utterances lack
    table_VH += mean_H
    return table_VH / table_VH.sum(1, keepdim=True)


def guess(hard_logits_MV: Tensor, table_VH: Tensor) -> Tensor:
    """logits_MH of the guess: the table's rows, mixed by what the hard head hears."""
    return (torch.softmax(hard_logits_MV.float(), dim=1) @ table_VH).clamp(min=1e-12).log()
