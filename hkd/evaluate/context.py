"""Whether a head uses the context that its teacher reads, or is a table of confusions.

A head that recognises a unit and nothing of its neighbours can predict no more than the teacher's average for such a unit. That guess is computed
here from the level's hard head: q = Σ_v p_hard(v) · table_v. A head whose KL to the teacher is no lower than the guess's has learnt no more than
that table.

Shape letters: N positions, K kept ids, M slots, V units of the level, H units of the head.
"""

from collections.abc import Container
from itertools import islice

import torch
from torch import Tensor

from hkd.labels.ops import can_average, summed
from hkd.stream.join import JoinedStore

MOST_UTTERANCES = 5000


def average_teacher(joined: JoinedStore, *, without: Container[str]) -> Tensor | None:
    """table_VH: what the teacher says on average where the transcript has unit v, over the store's utterances (5,000 at most) that are not
    in `without`; the tail is spread evenly. None where the table would be too large, the labels are draws, or no utterance is left."""
    reader = joined.reader
    if not can_average(reader.spec):
        return None
    ids = list(islice((name for name in reader.ids if name not in without and joined.labels(name)), MOST_UTTERANCES))
    if not ids:
        return None
    sum_VW = torch.from_numpy(summed(reader, ids)).float()
    table_VH = torch.zeros(len(sum_VW), joined.num_units).index_add_(1, torch.from_numpy(joined.head_unit_V), sum_VW[:, :-1])
    table_VH += sum_VW[:, -1:] / joined.num_units
    mean_H = table_VH.sum(0) / table_VH.sum()  # what is said of units that these utterances lack
    table_VH += mean_H
    return table_VH / table_VH.sum(1, keepdim=True)


def guess(hard_logits_MV: Tensor, table_VH: Tensor) -> Tensor:
    """logits_MH of the guess: the table's rows, mixed by what the hard head hears."""
    return (torch.softmax(hard_logits_MV.float(), dim=1) @ table_VH).clamp(min=1e-12).log()
