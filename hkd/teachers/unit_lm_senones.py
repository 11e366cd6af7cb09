"""What a senone says of its phone, and the n-gram's distribution over senones given only the phones outside.

`outside-phone`: a position is conditioned on the phones outside its own phone and on its state's number, never on
senones, for their tying encodes the phone between them.

Shape letters: U positions of a sentence, P its phones, N positions over all sentences, V senones, Q phones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hkd.errors import UserError
from hkd.files import write_bytes
from hkd.units.tying import split_senones

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_COUNTED_AT_ONCE = 20_000  # sentences
# log-probability of senones of another state than the position's: exp is 0, yet it is finite in float16
IMPOSSIBLE = -1e4


@dataclass(frozen=True, kw_only=True, eq=False)
class SenoneMap:
    """Which phone and which state of it each senone is."""

    phone_of_V: Ints
    state_of_V: Ints

    @property
    def num_phones(self) -> int:
        """Q."""
        return int(self.phone_of_V.max()) + 1

    @property
    def num_states(self) -> int:
        """States a phone, at most."""
        return int(self.state_of_V.max()) + 1

    def split(self, unit_U: NDArray[np.int32]) -> tuple[Ints, Ints, Ints]:
        """As `hkd.units.tying.split_senones`: phone_P, place_U, state_U."""
        return split_senones(unit_U, self.phone_of_V, self.state_of_V)


class SenoneCounts:
    """p(senone | its phone, the phones beside it, state), from counts.

    p(s | l, q, r) = (c(l, q, r, s) + κ · p0(s)) / (c(l, q, r, state of s) + κ), with p0(s) = p(s | q, state) the
    add-half estimate over all contexts (Jelinek-Mercer smoothing with a count-dependent weight). Folding a posterior of
    the phone through it, p(s | phones outside, state) = P(q(s) | phones outside) · p(s | l, q(s), r), sums to one over
    the senones of each state.
    """

    def __init__(self, senones: SenoneMap, *, lrs_M3: Ints, count_M: Floats, prior: float = 1.0) -> None:
        self.senones, self.prior = senones, prior
        self._radix = senones.num_phones + 2
        key_M = lrs_M3[:, 0] * self._radix + lrs_M3[:, 1]
        order = np.argsort(key_M, kind="stable")
        self._key_M, self._lrs_M3, self._count_M = key_M[order], lrs_M3[order], count_M[order]
        group = senones.phone_of_V * senones.num_states + senones.state_of_V
        self._num_groups = senones.num_phones * senones.num_states
        self._group_V = group
        total_V = np.bincount(lrs_M3[:, 2], weights=count_M, minlength=len(group)) + 0.5
        self._p0_V = total_V / np.bincount(group, weights=total_V, minlength=self._num_groups)[group]

    @classmethod
    def count(cls, senones: SenoneMap, sentences: Iterable[NDArray[np.int32]], *, prior: float = 1.0) -> "SenoneCounts":
        """Count triples over sentences, a chunk at a time."""
        num_units, radix = len(senones.phone_of_V), senones.num_phones + 2
        keys, counts = np.zeros(0, np.int64), np.zeros(0)
        filled = filter(len, sentences)
        while chunk := list(islice(filled, _COUNTED_AT_ONCE)):
            beside = [(unit_U, *neighbours(senones, unit_U)) for unit_U in chunk]
            key_N = np.concatenate([(left * radix + right) * num_units + unit_U for unit_U, left, right in beside])
            new, count = np.unique(key_N, return_counts=True)
            keys, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
            counts = np.bincount(place, weights=np.concatenate([counts, count])).astype(np.float64)
        lrs_M3 = np.stack([keys // num_units // radix, keys // num_units % radix, keys % num_units], axis=1)
        return cls(senones, lrs_M3=lrs_M3, count_M=counts, prior=prior)

    def fold(self, phone_logp_NQ: Floats, left_N: Ints, right_N: Ints) -> Floats:
        """log p(senone | phones outside), (N, V), from log P(phone | phones outside) and the phones beside; one per
        state's number."""
        key_N = left_N * self._radix + right_N
        row, entry = pairs(self._key_M, key_N)
        unit, weight = self._lrs_M3[entry, 2], self._count_M[entry]
        num_units = len(self._group_V)
        seen_NV = np.zeros((len(key_N), num_units))
        seen_NV[row, unit] = weight
        total_NG = np.zeros((len(key_N), self._num_groups))
        np.add.at(total_NG, (row, self._group_V[unit]), weight)
        p_NV = (seen_NV + self.prior * self._p0_V) / (total_NG[:, self._group_V] + self.prior)
        out_NV: Floats = np.log(p_NV) + phone_logp_NQ[:, self.senones.phone_of_V]
        return out_NV

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        tensors: dict[str, NDArray[Any]] = {
            "lrs": self._lrs_M3.astype(np.int32),
            "count": self._count_M.astype(np.int64),
            "phone_of_unit": self.senones.phone_of_V.astype(np.int32),
            "state_of_unit": self.senones.state_of_V.astype(np.int32),
        }
        write_bytes(path, save(tensors, metadata={"hkd_senone_counts": "1"}))

    @classmethod
    def load(cls, path: Path) -> "SenoneCounts":
        """Read what `save` wrote. Raises UserError where it is missing or no such file."""
        try:
            t = load_file(path)
            senones = SenoneMap(
                phone_of_V=t["phone_of_unit"].astype(np.int64), state_of_V=t["state_of_unit"].astype(np.int64)
            )
            return cls(senones, lrs_M3=t["lrs"].astype(np.int64), count_M=t["count"].astype(np.float64))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise UserError(f"{path} must hold counts of senones in context, but cannot be read ({error}).") from None


def pairs(key_M: Ints, wanted_N: Ints) -> tuple[Ints, Ints]:
    """All (n, m) with key_M[m] = wanted_N[n], by n; key_M is sorted."""
    low, high = np.searchsorted(key_M, wanted_N, "left"), np.searchsorted(key_M, wanted_N, "right")
    count = high - low
    row = np.repeat(np.arange(len(wanted_N)), count)
    return row, np.arange(int(count.sum())) + np.repeat(low - (np.cumsum(count) - count), count)


def neighbours(senones: SenoneMap, unit_U: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Of each position the phone before and after its own: Q stands for the sentence's begin, Q + 1 for its end."""
    phone_P, place_U, _ = senones.split(unit_U)
    left_P = np.concatenate([[senones.num_phones], phone_P[:-1]])
    right_P = np.concatenate([phone_P[1:], [senones.num_phones + 1]])
    return left_P[place_U], right_P[place_U]
