"""Labels of one level against another's, by the hierarchy of the units: senones fold to phones, positions of all levels to words.

- Senone against phone store: at each phone the senone teacher's mass, folded to phones, against the phone teacher's. A senone's teacher
  may know other context (`given`), so these need not be equal; labels of other units, or shifted ones, show as agreement near chance.
- Any two stores: how well the surprisal of a word (the sum over its positions of −log p(gold)) goes together.

Shape letters: N phones of all utterances, U senones of them, K kept ids, Q phones of the inventory.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.labels.format import LEFT_OUT, LabelBlock
from hkd.labels.store import LabelReader
from hkd.progress import Progress, no_progress
from hkd.sparse import TopK
from hkd.teachers.unit_lm_senones import SenoneMap
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.tying import Tying

BLOCK = 256
_FLOOR = 1e-6  # of the rest's mass, which rounding may take below 0
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldReport:
    """A senone store against a phone store, means over positions."""

    fine: str
    coarse: str
    utterances: int = 0
    other_sequence: int = 0  # utterances whose phones are not the same in both: nothing can be compared
    positions: int = 0  # senones
    agreement: float = float("nan")  # share where both have the same likeliest phone
    chance: float = float("nan")  # the same, had the likeliest phones nothing to do with each other
    fine_gold: float = float("nan")  # mass on the reference phone, folded
    coarse_gold: float = float("nan")
    not_kept: float = float("nan")  # mass outside the senones that are kept, which cannot be folded
    kl: float = float("nan")  # KL(phone teacher ‖ folded senone teacher), nats, over the phones that both keep and the rest


@dataclass(frozen=True, kw_only=True, slots=True)
class WordReport:
    """Two stores over the same words: correlation (Pearson) of the words' surprisals, in nats."""

    one: str
    other: str
    words: int
    correlation: float
    one_mean: float
    other_mean: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchyReport:
    """All pairs that can be held against each other."""

    folds: tuple[FoldReport, ...] = ()
    words: tuple[WordReport, ...] = ()
    left_out: tuple[str, ...] = field(default=())  # stores that hold draws, not probabilities

    def to_json(self) -> dict[str, Any]:
        """As plain lists."""
        return asdict(self)


def check_hierarchy(
    stores: Mapping[str, LabelReader], *, tying: Tying, utterances: int = 1000, progress: Progress = no_progress
) -> HierarchyReport:
    """Hold all stores of a project against each other on their first `utterances` common ones.

    Raises UserError where there are fewer than two stores, or a store's units are not the project's acoustic model's.
    """
    drawn = tuple(name for name, reader in stores.items() if reader.spec.selection == "sample")
    usable = {name: reader for name, reader in stores.items() if name not in drawn}
    if len(usable) < 2:
        raise UserError(
            f"checking labels against each other needs two stores with probabilities, but there are {len(usable)}. Dump another level."
        )
    for name, reader in usable.items():
        inventory = tying.inventories.get(reader.spec.level)
        if reader.spec.level in (SENONE, MONOPHONE) and (inventory is None or inventory.digest != reader.spec.inventory.digest):
            raise UserError(
                f"label store '{name}' must have the units of the project's acoustic model, but has others. Dump it anew."
            )
    pairs = list(itertools.combinations(usable, 2))
    fine = [name for name in usable if usable[name].spec.level == SENONE]
    coarse = [name for name in usable if usable[name].spec.level == MONOPHONE]
    total = len(pairs) + len(fine) * len(coarse)
    folds, words = [], []
    for one, other in itertools.product(fine, coarse):
        folds.append(fold(usable[one], usable[other], tying=tying, ids=_common(usable[one], usable[other], utterances)))
        progress(len(folds), total)
    for one, other in pairs:
        words.append(word_surprisals(usable[one], usable[other], ids=_common(usable[one], usable[other], utterances)))
        progress(len(folds) + len(words), total)
    return HierarchyReport(folds=tuple(folds), words=tuple(words), left_out=drawn)


def _common(one: LabelReader, other: LabelReader, most: int) -> list[str]:
    """The first utterances, in the first store's order, that both label."""
    ids = (name for run in one.runs() for name in run if name in other)
    labelled = (name for name in ids if LEFT_OUT not in (one.unit_digest(name), other.unit_digest(name)))
    return list(itertools.islice(labelled, most))


def fold(fine: LabelReader, coarse: LabelReader, *, tying: Tying, ids: Sequence[str]) -> FoldReport:
    """A senone store folded to phones, against a phone store."""
    senones = SenoneMap(phone_of_V=tying.phone_of_senone_V.astype(np.int64), state_of_V=tying.state_of_senone_V.astype(np.int64))
    num_phones = len(coarse.spec.inventory)
    sums = dict.fromkeys(("agreement", "fine_gold", "coarse_gold", "not_kept", "kl"), 0.0)
    likeliest = np.zeros((2, num_phones))
    positions = other_sequence = 0
    for start in range(0, len(ids), BLOCK):
        names = ids[start : start + BLOCK]
        fine_block, coarse_block = fine.block(names), coarse.block(names)
        for at in range(len(names)):
            senone_rows, phone_rows = _rows(fine_block, at), _rows(coarse_block, at)
            phone_P, place_U, _ = senones.split(senone_rows.gold_N)
            if not np.array_equal(phone_P, phone_rows.gold_N):
                other_sequence += 1
                continue
            folded_UQ = fold_rows(senone_rows, senones.phone_of_V, num_phones)
            given_UQ = _dense(phone_rows, num_phones)[place_U]
            gold_U, row_U = phone_rows.gold_N[place_U], np.arange(len(place_U))
            sums["agreement"] += float((folded_UQ.argmax(1) == given_UQ.argmax(1)).sum())
            sums["fine_gold"] += float(folded_UQ[row_U, gold_U].sum())
            sums["coarse_gold"] += float(np.exp(phone_rows.gold_logp_N[place_U].astype(np.float64)).sum())
            sums["not_kept"] += float((1 - folded_UQ.sum(1)).sum())
            sums["kl"] += float(_kl(given_UQ, folded_UQ).sum())
            for side, rows in enumerate((folded_UQ, given_UQ)):
                likeliest[side] += np.bincount(rows.argmax(1), minlength=num_phones)
            positions += len(place_U)
    means = {name: value / positions for name, value in sums.items()} if positions else {}
    if positions:
        means["chance"] = float((likeliest[0] / positions * likeliest[1] / positions).sum())
    return FoldReport(
        fine=fine.spec.name, coarse=coarse.spec.name, utterances=len(ids) - other_sequence, other_sequence=other_sequence,
        positions=positions, **means,
    )  # fmt: skip


def _rows(block: LabelBlock, at: int) -> TopK:
    return block.topk[int(block.offset_B1[at]) : int(block.offset_B1[at + 1])]


def fold_rows(rows: TopK, phone_of_V: NDArray[np.int64], num_phones: int) -> Floats:
    """Kept senones' mass by phone, (U, Q); what is not kept is missing."""
    folded_UQ = np.zeros((len(rows), num_phones))
    np.add.at(folded_UQ, (np.arange(len(rows))[:, None], phone_of_V[rows.ids_NK]), np.exp(rows.logp_NK.astype(np.float64)))
    return folded_UQ


def _dense(rows: TopK, num_phones: int) -> Floats:
    """p_NQ with 0 for phones that are not kept."""
    p_NQ = np.zeros((len(rows), num_phones))
    np.put_along_axis(p_NQ, rows.ids_NK.astype(np.int64), np.exp(rows.logp_NK.astype(np.float64)), 1)
    return p_NQ


def _kl(given_UQ: Floats, folded_UQ: Floats) -> Floats:
    """KL over the phones that both keep something of, and one event for all others: a lower bound of the whole."""
    kept_UQ = (given_UQ > 0) & (folded_UQ > 0)
    given_UQ, folded_UQ = np.where(kept_UQ, given_UQ, 1.0), np.where(kept_UQ, folded_UQ, 1.0)
    sum_U = (kept_UQ * given_UQ * np.log(given_UQ / folded_UQ)).sum(1)
    rest_U, other_U = (np.maximum(1 - (kept_UQ * p_UQ).sum(1), _FLOOR) for p_UQ in (given_UQ, folded_UQ))
    kl_U: Floats = sum_U + rest_U * np.log(rest_U / other_U)
    return kl_U


def word_surprisals(one: LabelReader, other: LabelReader, *, ids: Sequence[str]) -> WordReport:
    """How the words' surprisals go together in two stores, over words that both have positions of."""
    columns: tuple[list[float], list[float]] = ([], [])
    for start in range(0, len(ids), BLOCK):
        names = ids[start : start + BLOCK]
        blocks = [reader.block(names) for reader in (one, other)]
        for at in range(len(names)):
            sums = [_by_word(block, at) for block in blocks]
            for word in sorted(sums[0].keys() & sums[1].keys()):
                for column, by_word in zip(columns, sums, strict=True):
                    column.append(by_word[word])
    x, y = (np.array(column) for column in columns)
    spread = bool(len(x) > 1 and x.std() > 0 and y.std() > 0)
    return WordReport(
        one=one.spec.name, other=other.spec.name, words=len(x),
        correlation=float(np.corrcoef(x, y)[0, 1]) if spread else float("nan"),
        one_mean=float(x.mean()) if len(x) else float("nan"), other_mean=float(y.mean()) if len(y) else float("nan"),
    )  # fmt: skip


def _by_word(block: LabelBlock, at: int) -> dict[int, float]:
    rows = slice(int(block.offset_B1[at]), int(block.offset_B1[at + 1]))
    word_U, surprisal_U = block.word_N[rows], -block.topk.gold_logp_N[rows].astype(np.float64)
    known_U = (word_U >= 0) & np.isfinite(surprisal_U)
    sums = np.bincount(word_U[known_U], weights=surprisal_U[known_U]) if known_U.any() else np.zeros(0)
    return {int(word): float(sums[word]) for word in np.unique(word_U[known_U])}
