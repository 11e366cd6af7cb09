"""What a teacher says of each unit on average, and the store that a teacher which reads no context would have written.

Such a store is a control: it smooths the reference as its teacher does, unit by unit, and knows nothing of the neighbours. A student that learns
as much of it as of the teacher itself has learnt no context.

Shape letters: N positions, K kept ids, V units, W = V + 1 (the last column is the tail).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import digest_of
from hkd.labels.combine import utterances_of, write
from hkd.labels.reader import LabelReader
from hkd.labels.rows import UtteranceLabels
from hkd.labels.schema import StoreSpec
from hkd.progress import Progress, no_progress
from hkd.sparse import NO_GOLD, TopK

MOST_CELLS = 1 << 25
UTTERANCES_AT_ONCE = 256
GIVEN = "unit"  # what these predictions are conditioned on, as `given` of a teacher


def can_average(spec: StoreSpec) -> bool:
    """Whether a table of V × W fits in memory, and the rows are probabilities and no draws."""
    return spec.selection == "topk" and (len(spec.inventory) + 1) ** 2 <= MOST_CELLS


def summed(reader: LabelReader, ids: Sequence[str]) -> NDArray[np.float64]:
    """sum_VW: Σ of the teacher's probabilities over the positions of these utterances whose transcript has unit v; a position adds 1 to its row."""
    num_units = len(reader.spec.inventory)
    width = num_units + 1
    sum_VW = np.zeros(num_units * width)
    for first in range(0, len(ids), UTTERANCES_AT_ONCE):
        topk = reader.block(ids[first : first + UTTERANCES_AT_ONCE]).topk
        topk = topk[np.flatnonzero(topk.gold_N != NO_GOLD)]
        start_N1 = topk.gold_N.astype(np.int64)[:, None] * width
        cell_N1K = start_N1 + np.pad(topk.ids_NK, ((0, 0), (0, 1)), constant_values=num_units)
        p_N1K = np.exp(np.concatenate([topk.logp_NK, topk.tail_N[:, None]], 1, dtype=np.float64))
        sum_VW += np.bincount(cell_N1K.ravel(), p_N1K.ravel(), minlength=len(sum_VW))
    return sum_VW.reshape(num_units, width)


def average_rows(sum_VW: NDArray[np.float64], *, k: int, temperatures: Sequence[float]) -> TopK:
    """W rows: what is said of each unit on average, then of a position without a reference unit: the average of all.

    A unit that was never seen has the average of all, too, with one position's worth of itself beside it.
    """
    import torch

    from hkd.topk import select_topk

    num_units = len(sum_VW)
    all_W, seen_V = sum_VW.sum(0), sum_VW.sum(1) > 0
    row_WW = np.concatenate([sum_VW, all_W[None]])
    for unit in np.flatnonzero(~seen_V):
        row_WW[unit] = all_W
        row_WW[unit, unit] += 1
    with np.errstate(divide="ignore"):
        logit_WW = np.log(row_WW)
    outside_W = torch.arange(num_units + 1) == num_units
    gold_W = torch.cat([torch.arange(num_units), torch.tensor([NO_GOLD])])
    return select_topk(torch.from_numpy(logit_WW), gold_W, k=k, temperatures=temperatures, exclude_V=outside_W)


def average(
    source: Path | str,
    out: Path | str,
    *,
    over: Iterable[str] | None = None,
    k: int | None = None,
    command: str = "",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> StoreSpec:
    """Write the store again with each position's distribution replaced by the average of its reference unit's, over the utterances `over`
    (those of them that the store has; default: all). k: ids a row; default: the store's, though averages are broader.
    Extra temperatures are those of the average, not averages over tempered distributions.

    Raises UserError where the store holds draws, its inventory is too large for a table, or none of `over` is in it.
    """
    reader = LabelReader.open(source)
    old = reader.spec
    if not can_average(old):
        what = f"{len(old.inventory):,} units" if old.selection == "topk" else "draws"
        raise UserError(
            f"a store to average must hold probabilities of at most {int(MOST_CELLS**0.5) - 1:,} units, but {source} has {what}."
        )
    ids = list(reader.ids if over is None else (name for name in over if name in reader))
    sum_VW = summed(reader, ids)
    if not sum_VW.any():
        raise UserError(
            f"the utterances to average over must be in {source} with labels, but none is. Name others, or another split."
        )
    teacher = {**old.teacher, "name": f"averages of {old.teacher.get('name', '?')}", "given": GIVEN}
    spec = replace(
        old,
        k=k or old.k,
        teacher=teacher,
        extra={**old.extra, "averaged_from": old.digest, "averaged_over": digest_of(sorted(ids))},
        command=command or old.command,
    )
    row_W = average_rows(sum_VW, k=spec.width, temperatures=spec.temperatures)

    def fetch(names: Sequence[str]) -> Iterator[UtteranceLabels]:
        for labels in utterances_of(reader.block(names), names):
            yield replace(labels, topk=row_W[labels.topk.gold_N.astype(np.int64)])

    return write(out, spec, reader.ids, fetch, overwrite=overwrite, progress=progress)
