"""A back-off n-gram over unit ids, as arrays: dense rows p(v | history) and p(u_n | all others) for many positions at once.

- Read from ARPA, or built from arrays. Units are 0 … V−1; V stands for <s>, V + 1 for </s>, V + 2 for "nothing there".
- Back-off (Katz): p(w | h) = explicit, or bow(h) · p(w | h without its oldest unit).
- Two-sided: p(u_n = v | all others) ∝ Π over the windows that contain n, the one that ends the sentence included, renormalised over V.
- Look-ups by n-gram with one place left open: keys of the other places, packed into 64 bits and sorted, so that a whole batch of
  positions is one `searchsorted`. No Python loop over positions.
- A unit that the n-gram lacks gets half the probability of its rarest one, so that no unit is impossible.

Shape letters: N positions, V size of the inventory, M n-grams of an order.
"""

import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grams:
    """All n-grams of one order: their ids, natural-log probabilities and back-off weights (0 where none is written)."""

    ids_Mn: Ints
    logp_M: Floats
    bow_M: Floats


def windows(unit_U: NDArray[np.int32], *, order: int, num_units: int) -> tuple[Ints, Ints]:
    """Of each position of a sentence the (order − 1) ids before it and those after it, in the order of the text."""
    reach, bos = order - 1, num_units
    none = [bos + 2] * max(0, reach - 1)
    padded = np.array([*none, bos, *unit_U.tolist(), bos + 1, *none], np.int64)
    if not reach or not len(unit_U):
        empty = np.zeros((len(unit_U), 0), np.int64)
        return empty, empty
    view = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return view[:, :reach].copy(), view[:, reach + 1 :].copy()


class NGram:
    """A back-off n-gram. Raises UserError where its order and V are too large for 64-bit keys."""

    def __init__(self, orders: Sequence[Grams], *, num_units: int) -> None:
        self.num_units = num_units
        self.bos, self.eos, self.nothing = num_units, num_units + 1, num_units + 2
        self.order = len(orders)
        self._radix = num_units + 3
        if self.order * math.log2(self._radix) >= 63:
            raise UserError(
                f"the n-gram's order must fit {num_units} units into 64-bit keys, but is {self.order} instead. Use a lower order."
            )
        self._orders = list(orders)
        self._indices: dict[tuple[int, int], tuple[Ints, Ints]] = {}
        self._unigram = self._unigram_with_floor()

    def _unigram_with_floor(self) -> Floats:
        logp = np.full(self._radix, -np.inf)
        first = self._orders[0]
        logp[first.ids_Mn[:, 0]] = first.logp_M
        seen = logp[: self.num_units]
        finite = seen[np.isfinite(seen)]
        floor = (float(finite.min()) if len(finite) else 0.0) - math.log(2)
        logp[: self.num_units] = np.where(np.isfinite(seen), seen, floor)
        return logp

    def _pack(self, ids_Nn: Ints) -> Ints:
        key = np.zeros(len(ids_Nn), np.int64)
        for column in range(ids_Nn.shape[1]):
            key = key * self._radix + ids_Nn[:, column]
        return key

    def _index(self, order: int, open_place: int) -> tuple[Ints, Ints]:
        """Sorted keys of the n-grams of an order without the open place (−1: no place is open), and which n-gram each belongs to."""
        if (order, open_place) not in self._indices:
            ids = self._orders[order - 1].ids_Mn
            key = self._pack(ids if open_place < 0 else np.delete(ids, open_place, axis=1))
            row = np.argsort(key, kind="stable")
            self._indices[order, open_place] = (key[row], row)
        return self._indices[order, open_place]

    def _exact(self, ids_Nn: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Which n-gram each row is, and whether there is one."""
        keys, row = self._index(ids_Nn.shape[1], -1)
        if not len(keys):
            return np.zeros(len(ids_Nn), np.int64), np.zeros(len(ids_Nn), np.bool_)
        wanted = self._pack(ids_Nn)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return row[at], keys[at] == wanted

    def _open(self, rest_Nn: Ints, order: int, place: int) -> tuple[Ints, Ints, Ints]:
        """All n-grams that fit the rows when `place` is open: (row, unit at the place, n-gram), units only."""
        keys, gram = self._index(order, place)
        wanted = self._pack(rest_Nn)
        low, high = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        count = high - low
        row = np.repeat(np.arange(len(wanted)), count)
        found = gram[np.arange(int(count.sum())) + np.repeat(low - (np.cumsum(count) - count), count)]
        unit = self._orders[order - 1].ids_Mn[found, place]
        keep = unit < self.num_units
        return row[keep], unit[keep], found[keep]

    def windows(self, unit_U: NDArray[np.int32]) -> tuple[Ints, Ints]:
        """Of each position of a sentence the (order − 1) ids before it and those after it, in the order of the text."""
        return windows(unit_U, order=self.order, num_units=self.num_units)

    def left(self, before_Nr: Ints) -> Floats:
        """log p(v | the ids before) for every v, (N, V); sums to 1 − p(</s> | ...) over V, so renormalise."""
        out_NV = np.tile(self._unigram[: self.num_units], (len(before_Nr), 1))
        for length in range(1, self.order):
            context = before_Nr[:, before_Nr.shape[1] - length :]
            row, there = self._exact(context)
            out_NV += np.where(there, self._orders[length - 1].bow_M[row], 0.0)[:, None]
            n, unit, gram = self._open(context, length + 1, length)
            out_NV[n, unit] = self._orders[length].logp_M[gram]
        return out_NV

    def both(self, before_Nr: Ints, after_Nr: Ints) -> Floats:
        """log of Π over the windows that contain the position, for every v, (N, V); not normalised over V."""
        out_NV = self.left(before_Nr)
        for i in range(1, self.order):
            there = after_Nr[:, i - 1] != self.nothing
            if there.any():
                out_NV[there] += self._window(before_Nr[there], after_Nr[there], i)
        return out_NV

    def _window(self, before_Nr: Ints, after_Nr: Ints, i: int) -> Floats:
        """log p(the i-th id after | as much as the order allows of: before, v, the i − 1 ids between), for every v."""
        between, target = after_Nr[:, : i - 1], after_Nr[:, i - 1]
        base = self._unigram[target].copy()  # without v: the history does not reach it
        for length in range(1, i):
            context = between[:, i - 1 - length :]
            row, there = self._exact(context)
            base += np.where(there, self._orders[length - 1].bow_M[row], 0.0)
            row, there = self._exact(np.concatenate([context, target[:, None]], axis=1))
            base = np.where(there, self._orders[length].logp_M[row], base)
        out_NV = np.tile(base[:, None], (1, self.num_units))
        for reach in range(self.order - i):  # ids before v in the history
            rest = np.concatenate([before_Nr[:, before_Nr.shape[1] - reach :], between], axis=1)
            n, unit, gram = self._open(rest, reach + i, reach)
            out_NV[n, unit] += self._orders[reach + i - 1].bow_M[gram]
            n, unit, gram = self._open(np.concatenate([rest, target[:, None]], axis=1), reach + i + 1, reach)
            out_NV[n, unit] = self._orders[reach + i].logp_M[gram]
        return out_NV


def _sections(file: IO[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """(order, fields) of each n-gram line of an ARPA file."""
    order = 0
    for number, line in enumerate(file, 1):
        text = line.strip(" \t\r\n")
        if text.startswith("\\"):
            if text == "\\end\\":
                return
            order = int(text[1:].partition("-")[0]) if text.endswith("-grams:") else 0
        elif order and text:
            fields = text.replace("\t", " ").split(" ")
            if len(fields) not in (order + 1, order + 2):
                raise UserError(f"{path}:{number}: an ARPA line of order {order} must have {order + 1} or {order + 2} fields.")
            yield order, fields
    raise UserError(f"{path} must be an ARPA file, but has no \\end\\ line. It is truncated or something else.")


def read_arpa(path: Path, *, id_of: Mapping[str, int], num_units: int) -> NGram:
    """Read an ARPA file, plain or .gz; n-grams with symbols that `id_of` lacks are left out. Raises UserError where it is none."""
    ids_of = {**id_of, "<s>": num_units, "</s>": num_units + 1}
    rows: list[list[list[int]]] = []
    values: list[list[tuple[float, float]]] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for order, fields in _sections(file, path):
                while len(rows) < order:
                    rows.append([])
                    values.append([])
                try:
                    ids = [ids_of[symbol] for symbol in fields[1 : order + 1]]
                except KeyError:
                    continue
                bow = float(fields[order + 1]) if len(fields) > order + 1 else 0.0
                rows[order - 1].append(ids)
                values[order - 1].append((float(fields[0]), bow))
    except OSError as error:
        raise UserError(f"n-gram {path}: {error.strerror or error}. Give an ARPA file.") from None
    except ValueError as error:
        raise UserError(f"{path} must be an ARPA file, but cannot be read as one ({error}).") from None
    if not rows or not rows[0]:
        raise UserError(f"{path} must hold n-grams of the inventory's units, but holds none. Give the ARPA file of this level.")
    grams = []
    for order, (ids_M, value_M) in enumerate(zip(rows, values, strict=True), 1):
        value = np.array(value_M, np.float64).reshape(-1, 2) * math.log(10)
        grams.append(Grams(ids_Mn=np.array(ids_M, np.int64).reshape(-1, order), logp_M=value[:, 0], bow_M=value[:, 1]))
    return NGram(grams, num_units=num_units)
